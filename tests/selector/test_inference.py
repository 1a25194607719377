"""The numpy selector: by-hand picks, equality with the trained network, and files that must not load."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from leverlab.errors import LeverlabError
from leverlab.export.selector import inference_tensors
from leverlab.selector.architecture import Architecture
from leverlab.selector.decoding import greedy
from leverlab.selector.inference import FORMAT, InferenceSelector, expected_shapes, save_inference
from leverlab.selector.network import FEATURES, Selector
from tests.selector.reference import PLAIN, VARIANTS, each_variant

WIDTHS = (5, 4, 3)
CONFIG = {"widths": list(WIDTHS), **asdict(PLAIN), "pool": "abc"}


def build(seed: int, projection: float = 1.0, architecture: Architecture = PLAIN) -> Selector:
    """A selector with large weights, so that every nonlinearity bends, and with statistics to fold.

    A small `projection` brings the variances under the layer norms near their epsilon. The penalty is large enough to
    decide picks.
    """
    torch.manual_seed(seed)
    selector = Selector(WIDTHS, architecture, 0.5).eval()
    with torch.no_grad():
        for parameter in selector.parameters():
            parameter.copy_(parameter * 2 + 0.3 * torch.randn_like(parameter))
        for name in FEATURES:
            getattr(selector, name).weight.mul_(projection)
            getattr(selector, name).bias.mul_(projection)
        if selector.mmr is not None:
            selector.mmr.weight.fill_(8.0)
    for name, width in zip(FEATURES, WIDTHS, strict=True):
        selector.set_statistics(name, torch.randn(30, width) * torch.rand(width) * 4 + torch.randn(width))
    return selector


def draw(seed: int, queries: int, candidates: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    query = [rng.normal(size=(queries, width)) * 2 for width in WIDTHS[:2]]
    return query, [rng.normal(size=(queries, candidates, width)) * 2 for width in WIDTHS]


def tensors_of_zeros(architecture: Architecture) -> dict[str, np.ndarray]:
    return {name: np.zeros(shape, np.float32) for name, shape in expected_shapes((1, 1, 1), architecture).items()}


@each_variant
@pytest.mark.parametrize("projection", [1.0, 0.02])
@pytest.mark.parametrize("seed", range(6))
def test_picks_equal_those_of_the_network_in_float64(seed: int, projection: float, architecture: Architecture) -> None:
    selector = build(seed, projection, architecture)
    query, demos = draw(seed, 40, 12)
    exact = selector.double()
    encoded = exact.encode(tuple(map(torch.from_numpy, query)), tuple(map(torch.from_numpy, demos)))
    expected = greedy(exact, encoded, 4).numpy()
    picks = InferenceSelector(inference_tensors(selector), CONFIG | asdict(architecture)).pick(query, demos, 4)
    assert picks.shape == (40, 4)
    np.testing.assert_array_equal(picks, expected)
    assert len(np.unique(expected[:, 0])) > 4  # the selector does look at its input
    if architecture.mmr:
        with torch.no_grad():
            exact.mmr.weight.fill_(-1e4)
        assert (greedy(exact, encoded, 4).numpy() != expected).any()  # and at what it has picked


def test_picks_by_hand() -> None:
    """Width 1, all zero but these: an answer a has key a, and norm gives its bias 1, so the logit is 1 * a at every
    pick: answers come in falling order, ties at the first candidate."""
    architecture = Architecture(1, "gru", "dot", False, False)
    tensors = tensors_of_zeros(architecture)
    tensors["norm.bias"] += 1
    for name in ("answer.weight", "key.weight", "read.weight"):
        tensors[name] += 1
    selector = InferenceSelector(tensors, {**asdict(architecture), "widths": [1, 1, 1]})
    answers = np.array([[[0.0], [3.0], [-1.0], [3.0]], [[5.0], [4.0], [6.0], [7.0]]])
    picks = selector.pick([np.zeros((2, 1))] * 2, [np.zeros((2, 4, 1))] * 2 + [answers], 3)
    assert picks.tolist() == [[1, 3, 0], [3, 2, 0]]


def test_float32_features_give_the_picks_of_the_same_numbers_in_float64() -> None:
    selector = InferenceSelector(inference_tensors(build(0)), CONFIG)
    query, demos = ([part.astype(np.float32) for part in parts] for parts in draw(3, 200, 30))
    wide = ([part.astype(np.float64) for part in parts] for parts in (query, demos))
    np.testing.assert_array_equal(selector.pick(query, demos, 4), selector.pick(*wide, 4))


def test_a_question_does_not_see_the_others_of_its_batch() -> None:
    selector = InferenceSelector(inference_tensors(build(1)), CONFIG)
    query, demos = draw(4, 6, 9)
    whole = selector.pick(query, demos, 3)
    for n in range(6):
        alone = selector.pick([part[n : n + 1] for part in query], [part[n : n + 1] for part in demos], 3)
        np.testing.assert_array_equal(alone[0], whole[n])


@pytest.fixture(name="folder")
def save(tmp_path: Path) -> Path:
    save_inference(tmp_path / "selector", inference_tensors(build(0)), CONFIG)
    return tmp_path / "selector"


def test_what_is_saved_loads_bit_for_bit(folder: Path) -> None:
    selector = InferenceSelector.load(folder)
    assert selector.config == {"format": FORMAT, **CONFIG}
    assert selector.architecture == PLAIN
    for name, tensor in inference_tensors(build(0)).items():
        np.testing.assert_array_equal(load_file(folder / "selector.safetensors")[name], tensor)
    query, demos = draw(5, 10, 8)
    np.testing.assert_array_equal(
        selector.pick(query, demos, 4), InferenceSelector(inference_tensors(build(0)), CONFIG).pick(query, demos, 4)
    )


def test_equal_selectors_give_equal_bytes(folder: Path) -> None:
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert sorted(before) == ["config.json", "selector.safetensors"]
    for _ in range(10):
        save_inference(folder, dict(reversed(inference_tensors(build(0)).items())), dict(reversed(CONFIG.items())))
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def refuse(folder: Path, match: str) -> None:
    with pytest.raises(LeverlabError, match=match) as error:
        InferenceSelector.load(folder)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("name", ["config.json", "selector.safetensors"])
@pytest.mark.parametrize("keep", [None, 0, 20, -5])
def test_a_missing_or_cut_file_is_refused(folder: Path, name: str, keep: int | None) -> None:
    if keep is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes((folder / name).read_bytes()[:keep])
    refuse(folder, "cannot be read")


def write_config(folder: Path, content: Any) -> None:
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")


GOOD: dict[str, Any] = {"format": FORMAT, **CONFIG}
BAD_CONFIGS: dict[str, Any] = {
    "a list": [1, 2],
    "null": None,
    "no format": CONFIG,
    "no widths": {key: value for key, value in GOOD.items() if key != "widths"},
    "no width": {key: value for key, value in GOOD.items() if key != "width"},
    "two widths": GOOD | {"widths": [5, 4]},
    "widths that are a number": GOOD | {"widths": 5},
    "width null": GOOD | {"width": None},
    "no state": {key: value for key, value in GOOD.items() if key != "state"},
    "no head": {key: value for key, value in GOOD.items() if key != "head"},
    "no mmr": {key: value for key, value in GOOD.items() if key != "mmr"},
    "an unknown state": GOOD | {"state": "lstm"},
    "an unknown head": GOOD | {"head": "cosine"},
    "a head that is no text": GOOD | {"head": {"kind": "dot"}},
    "mmr that is a number": GOOD | {"mmr": 1},
    "no stop": {key: value for key, value in GOOD.items() if key != "stop"},
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_a_damaged_config_is_refused(folder: Path, name: str) -> None:
    write_config(folder, BAD_CONFIGS[name])
    refuse(folder, "cannot be read")


@pytest.mark.parametrize("change", [{"width": "16"}, {"widths": ["5", "4", "3"]}, {"widths": [5, None, 3]}])
def test_a_config_with_text_for_a_number_is_refused(folder: Path, change: dict[str, Any]) -> None:
    write_config(folder, GOOD | change)
    refuse(folder, "misshapen|cannot be read")


def test_bytes_that_are_no_text_are_refused(folder: Path) -> None:
    (folder / "config.json").write_bytes(b"\xff\xfe{}")
    refuse(folder, "cannot be read")


def test_another_format_is_refused(folder: Path) -> None:
    write_config(folder, GOOD | {"format": "leverlab-selector-inference-0"})
    refuse(folder, "holds the format 'leverlab-selector-inference-0'")


@pytest.mark.parametrize("change", [{"width": 8}, {"widths": [4, 5, 3]}])
def test_a_config_of_another_architecture_is_refused(folder: Path, change: dict[str, Any]) -> None:
    write_config(folder, GOOD | change)
    refuse(folder, "missing, unexpected or misshapen")


@each_variant
def test_the_tensors_of_another_variant_are_refused(tmp_path: Path, architecture: Architecture) -> None:
    save_inference(tmp_path, inference_tensors(build(0, architecture=architecture)), CONFIG | asdict(architecture))
    assert InferenceSelector.load(tmp_path).architecture == architecture
    for other in VARIANTS:
        if other != architecture:
            write_config(tmp_path, GOOD | asdict(other))
            refuse(tmp_path, f"missing, unexpected or misshapen tensors for {other}")


@pytest.mark.parametrize("kind", ["missing", "unexpected", "renamed", "misshapen"])
def test_tensors_that_do_not_fit_are_refused(folder: Path, kind: str) -> None:
    path = folder / "selector.safetensors"
    tensors = load_file(path)
    if kind in ("missing", "renamed"):
        taken = tensors.pop("read.weight")
    if kind == "unexpected":
        tensors["extra"] = np.zeros(3, np.float32)
    if kind == "renamed":
        tensors["attention.weight"] = taken
    if kind == "misshapen":
        tensors["key.bias"] = np.zeros(15, np.float32)
    save_file(tensors, path, metadata={"format": FORMAT})
    named = {"unexpected": "extra", "misshapen": "key.bias", "missing": "read.weight", "renamed": "attention.weight"}
    refuse(folder, named[kind].replace(".", r"\."))
