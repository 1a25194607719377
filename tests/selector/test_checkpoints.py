"""Checkpoints: what is saved is loaded bit for bit, and nothing else is loaded at all."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from leverlab.errors import LeverlabError
from leverlab.selector.architecture import Architecture
from leverlab.selector.checkpoints import FORMAT, load_selector, save_selector
from leverlab.selector.network import Selector
from tests.selector.reference import PLAIN, VARIANTS, each_variant

SHAPE = {"widths": (4, 3, 2), "dropout": 0.25, **asdict(PLAIN)}


@pytest.fixture(name="saved")
def save(tmp_path: Path) -> tuple[Selector, Path]:
    torch.manual_seed(0)
    selector = Selector((4, 3, 2), PLAIN, 0.25)
    selector.set_statistics("image", torch.randn(9, 4))
    path = tmp_path / "run" / "epoch-001.safetensors"
    save_selector(path, selector)
    return selector, path


def rewrite(path: Path, **changes: object) -> None:
    """Write the checkpoint again with other tensors (None takes one out) or another header."""
    tensors, shape, format_ = load_file(path), json.dumps(SHAPE), FORMAT
    for name, value in changes.items():
        if name == "shape":
            shape = str(value)
        elif name == "format":
            format_ = str(value)
        elif value is None:
            del tensors[name]
        else:
            tensors[name] = value
    try:
        header = json.dumps({"format": format_, **json.loads(shape)})
    except (ValueError, TypeError):
        header = shape  # a test of what is no JSON, or no mapping
    save_file(tensors, path, metadata={"leverlab": header})


def test_a_checkpoint_loads_bit_for_bit_and_in_evaluation_mode(saved: tuple[Selector, Path]) -> None:
    selector, path = saved
    back = load_selector(path)
    assert not back.training
    assert (back.widths, back.architecture, back.dropout.p) == ((4, 3, 2), PLAIN, 0.25)
    assert list(back.state_dict()) == list(selector.state_dict())
    for name, tensor in selector.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name
    assert not torch.equal(back.image_mean, torch.zeros(4))


def test_a_rewritten_checkpoint_loads(saved: tuple[Selector, Path]) -> None:
    """So that what the tests below refuse is refused for the change and not for the rewriting."""
    rewrite(saved[1])
    assert torch.equal(load_selector(saved[1]).key.weight, saved[0].key.weight)
    with safe_open(saved[1], "pt") as file:
        assert json.loads(file.metadata()["leverlab"])["format"] == FORMAT


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_or_empty_file_is_refused(saved: tuple[Selector, Path], keep: int) -> None:
    path = saved[1]
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(LeverlabError, match="cannot be read") as error:
        load_selector(path)
    assert str(path) in str(error.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.safetensors", tmp_path):
        with pytest.raises(LeverlabError, match="cannot be read") as error:
            load_selector(path)
        assert str(path) in str(error.value)


@pytest.mark.parametrize("header", [None, {"format": "pt"}, {"format": FORMAT + "0"}])
def test_a_foreign_file_is_refused(tmp_path: Path, header: dict[str, str] | None) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(2)}, path, metadata=header)
    with pytest.raises(LeverlabError, match="is not a selector checkpoint") as error:
        load_selector(path)
    assert str(path) in str(error.value)


CHANGES: dict[str, dict[str, object]] = {
    "missing weight": {"key.weight": None},
    "missing statistics": {"image_mean": None},
    "unexpected tensor": {"attention.weight": torch.zeros(2)},
    "wrong shape": {"read.bias": torch.zeros(15)},
    "renamed tensor": {"gate.weight": None, "gates.weight": torch.zeros(16, 16)},
    "another width in the header": {"shape": json.dumps(SHAPE | {"width": 8})},
    "other feature widths in the header": {"shape": json.dumps(SHAPE | {"widths": (4, 2, 3)})},
    "too few feature widths": {"shape": json.dumps(SHAPE | {"widths": (4, 3)})},
    "widths that are no list": {"shape": json.dumps(SHAPE | {"widths": 4})},
    "a header that is no JSON": {"shape": "{width: 16"},
    "a header of another kind": {"shape": "[1, 2]"},
    "a header without dropout": {"shape": json.dumps({"widths": (4, 3, 2), **asdict(PLAIN)})},
    "an unknown state": {"shape": json.dumps(SHAPE | {"state": "lstm"})},
    "a state that is no text": {"shape": json.dumps(SHAPE | {"state": ["gru"]})},
    "an unknown head": {"shape": json.dumps(SHAPE | {"head": "cosine"})},
    "a penalty that is neither on nor off": {"shape": json.dumps(SHAPE | {"mmr": 0})},
    "a STOP that is neither on nor off": {"shape": json.dumps(SHAPE | {"stop": "no"})},
    "a dropout that cannot be": {"shape": json.dumps(SHAPE | {"dropout": 2})},
}


@pytest.mark.parametrize("name", CHANGES)
def test_tensors_that_do_not_fit_are_refused(saved: tuple[Selector, Path], name: str) -> None:
    rewrite(saved[1], **CHANGES[name])
    with pytest.raises(LeverlabError, match="do not fit its architecture") as error:
        load_selector(saved[1])
    assert str(saved[1]) in str(error.value)


@each_variant
def test_every_variant_loads_bit_for_bit(tmp_path: Path, architecture: Architecture) -> None:
    torch.manual_seed(0)
    selector = Selector((4, 3, 2), architecture, 0.25)
    save_selector(tmp_path / "variant.safetensors", selector)
    back = load_selector(tmp_path / "variant.safetensors")
    assert back.architecture == architecture
    assert list(back.state_dict()) == list(selector.state_dict())
    for name, tensor in selector.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name


@each_variant
def test_the_tensors_of_another_variant_are_refused(tmp_path: Path, architecture: Architecture) -> None:
    path = tmp_path / "variant.safetensors"
    save_selector(path, Selector((4, 3, 2), architecture, 0.25))
    for other in VARIANTS:
        rewrite(path, shape=json.dumps(SHAPE | asdict(other)))
        if other == architecture:
            assert load_selector(path).architecture == architecture
            continue
        with pytest.raises(LeverlabError, match="do not fit its architecture") as error:
            load_selector(path)
        assert str(path) in str(error.value)
        assert f"state {other.state}, head {other.head}, mmr {str(other.mmr).lower()}" in str(error.value)


@pytest.mark.parametrize("key", ["width", "state", "head", "mmr", "stop"])
def test_a_header_of_an_older_version_is_refused(saved: tuple[Selector, Path], key: str) -> None:
    rewrite(saved[1], shape=json.dumps({name: value for name, value in SHAPE.items() if name != key}))
    with pytest.raises(LeverlabError, match=f"does not state its {key}, .*; run the stage that writes it again"):
        load_selector(saved[1])


def test_a_header_without_shape_is_refused(saved: tuple[Selector, Path]) -> None:
    save_file(load_file(saved[1]), saved[1], metadata={"leverlab": json.dumps({"format": FORMAT})})
    with pytest.raises(LeverlabError, match="do not fit its architecture"):
        load_selector(saved[1])


def test_a_save_that_fails_leaves_the_old_checkpoint(
    saved: tuple[Selector, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    selector, path = saved
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_selector(path, Selector((4, 3, 2), PLAIN, 0.0))
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert torch.equal(load_selector(path).key.weight, selector.key.weight)


def test_equal_selectors_give_equal_bytes(saved: tuple[Selector, Path]) -> None:
    """Two clones must make the same dvc.lock, and a resumed run the bytes of an unbroken one."""
    selector, path = saved
    written: set[bytes] = set()
    for _ in range(40):
        save_selector(path, selector)
        written.add(path.read_bytes())
    assert len(written) == 1
