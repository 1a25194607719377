"""The types q5_1 and q4_1: blocks worked by hand, the package's quantisers on random ones, and whole files."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from leverlab.config.gguf import KINDS as EXPORTED
from leverlab.errors import LeverlabError
from leverlab.export import gguf as export
from leverlab.lm import quantised
from leverlab.lm.quantised import KINDS, Kind, block_bounds, block_errors, compare_kind, export_kind
from tests.lm.exported import Taught, taught

BLOCKS = (Type.Q5_1, Type.Q4_1)
STEPS = {Type.Q5_1: 31, Type.Q4_1: 15}
NEW: tuple[Kind, ...] = ("q5_1", "q4_1")


def block(*values: float, rest: float = 0.0) -> NDArray[np.float32]:
    """One row of one block: `values`, and `rest` behind them."""
    row = np.full((1, 32), rest, np.float32)
    row[0, : len(values)] = values
    return row


def integers(data: NDArray[np.uint8], stored: Type) -> NDArray[np.int64]:
    """The integers of the blocks, as ggml-quants.c lays them out: (blocks, 32)."""
    blocks = data.reshape(-1, gguf.GGML_QUANT_SIZES[stored][1])
    nibbles = blocks[:, -16:].astype(np.int64)
    low = np.concatenate([nibbles & 15, nibbles >> 4], axis=1)
    if stored == Type.Q4_1:
        return low
    return low + 16 * np.unpackbits(blocks[:, 4:8], axis=1, bitorder="little").astype(np.int64)


def with_integers(data: NDArray[np.uint8], wanted: NDArray[np.int64], stored: Type) -> NDArray[np.uint8]:
    blocks = data.reshape(-1, gguf.GGML_QUANT_SIZES[stored][1]).copy()
    blocks[:, -16:] = (wanted[:, :16] & 15) | ((wanted[:, 16:] & 15) << 4)
    if stored == Type.Q5_1:
        blocks[:, 4:8] = np.packbits(wanted >> 4, axis=1, bitorder="little")
    return blocks.reshape(data.shape)


def random_rows(exponents: range, seed: int) -> NDArray[np.float32]:
    """Rows of 64 values of each magnitude: normal, uniform, and all on one side of 0."""
    rng = np.random.default_rng(seed)
    rows = [
        draw * 2.0**exponent
        for exponent in exponents
        for draw in (
            rng.standard_normal((4, 64)) / 4,
            rng.uniform(-1, 1, (4, 64)),
            rng.uniform(0.5, 1, (4, 64)) * rng.choice([-1, 1], (4, 1)),
        )
    ]
    return np.concatenate(rows).astype(np.float32)


def test_types_are_those_of_ggml() -> None:
    """The numbers of ggml.h and llama.h, which other programs read; every kind that is exported is there."""
    assert {kind: (int(tensor), int(file)) for kind, (tensor, file) in quantised._TYPES.items()} == {
        "q5_1": (7, 9),
        "q4_1": (3, 3),
    }
    assert set(KINDS) == {*EXPORTED, *NEW}


@pytest.mark.parametrize("stored", BLOCKS)
def test_a_block_by_hand(stored: Type) -> None:
    """From -2 to `steps` - 2 in `steps` steps: the scale is 1 and the least value -2, exact in half precision.

    Halves go up and cost half a step. Half precision is 2^-10 apart at 1, so that the scale may be off by 2^-11, and
    2^-9 apart at 2.
    """
    steps = STEPS[stored]
    values = block(-2, steps - 2, -1.5, -0.75, 0.25, rest=1)
    data = gguf.quants.quantize(values, stored)
    assert bytes(data[0, :4]) == b"\x00\x3c\x00\xc0"
    assert integers(data, stored)[0, :6].tolist() == [0, steps, 1, 1, 2, 3]
    limit = 0.5 + steps * 2.0**-11 + 2.0**-10 + 2.0**-22 * (steps + 2)
    assert block_bounds(values, stored)[0].tolist() == [limit] * 32
    assert block_errors(values, data, stored) == (0.5, limit, 0)


@pytest.mark.parametrize("stored", BLOCKS)
def test_a_block_of_one_value(stored: Type) -> None:
    """The scale is 0, and the value costs what half precision costs, whose numbers are 2^-14 apart at 0.1."""
    values = block(rest=0.1)
    data = gguf.quants.quantize(values, stored)
    worst, allowed, beyond = block_errors(values, data, stored)
    assert worst == abs(float(np.float16(0.1)) - float(np.float32(0.1)))
    assert allowed == pytest.approx(2.0**-15 + STEPS[stored] * 2.0**-25, rel=1e-3)
    assert beyond == 0


@pytest.mark.parametrize("stored", BLOCKS)
def test_no_quantiser_of_the_package_exceeds_its_bound(stored: Type) -> None:
    """From the smallest numbers of float32 to the largest of half precision; normal blocks come within a tenth."""
    values = random_rows(range(-148, 15), seed=0)
    with np.errstate(all="ignore"):  # the package divides by scales that are no normal numbers
        data = gguf.quants.quantize(values, stored)
    error = np.abs(gguf.quants.dequantize(data, stored).astype(np.float64) - values)
    limits = block_bounds(values, stored)
    assert (error <= limits).all()
    assert block_errors(values, data, stored) == (error.max(), limits.max(), 0)
    assert (error / limits).max() > 0.9


@pytest.mark.parametrize("stored", BLOCKS)
def test_a_value_one_step_further_away_is_told(stored: Type) -> None:
    """Every value of random blocks: its integer is changed by one, away from the value (inwards at the extremes)."""
    values = random_rows(range(-8, 8), seed=2)
    data = gguf.quants.quantize(values, stored)
    found = integers(data, stored)
    assert (with_integers(data, found, stored) == data).all()
    stored_values = gguf.quants.dequantize(data, stored).reshape(-1, 32)
    moved = found + np.where(values.reshape(-1, 32) > stored_values, -1, 1)
    possible = (moved >= 0) & (moved <= STEPS[stored])
    assert possible.mean() > 0.9
    changed = with_integers(data, np.where(possible, moved, found), stored)
    assert block_errors(values, changed, stored)[2] == possible.sum()


@pytest.mark.parametrize("stored", BLOCKS)
@pytest.mark.parametrize("at", [0, 2])
def test_what_is_no_number_is_beyond(stored: Type, at: int) -> None:
    """In the scale or in the least value of the first block."""
    values = random_rows(range(0, 2), seed=4)
    data = gguf.quants.quantize(values, stored)
    data[0, at : at + 2] = np.array([np.nan], np.float16).view(np.uint8)
    worst, allowed, beyond = block_errors(values, data, stored)
    assert math.isnan(worst)
    assert math.isfinite(allowed)
    assert beyond == 32


@pytest.mark.parametrize("stored", BLOCKS)
def test_chunks_change_nothing(stored: Type, monkeypatch: pytest.MonkeyPatch) -> None:
    values = random_rows(range(-3, 3), seed=5)
    data = gguf.quants.quantize(values, stored)
    found = block_errors(values[::-1], data, stored)  # others than were stored
    assert found[2] > 100
    for chunk in (1, 100, 64 * 7):
        monkeypatch.setattr(quantised, "_CHUNK", chunk)
        assert block_errors(values[::-1], data, stored) == found


# Files


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Taught:
    return taught(tmp_path_factory.mktemp("taught"), 0)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_written_and_compared(policy: Taught, tmp_path: Path, kind: Kind) -> None:
    """The same bytes twice. Kinds that the main pipeline has are its own files; vectors are f32 in all."""
    path = policy.export(kind, tmp_path)
    tensors = compare_kind(policy.folder, path)
    assert {tensor.type for tensor in tensors} == {"F32", kind.upper()}
    assert all((tensor.type == "F32") == (len(tensor.shape) == 1) for tensor in tensors)
    assert all(tensor.values_beyond == 0 for tensor in tensors)
    assert len(tensors) == 2 + 11 * 4  # the embedding, the last norm, and of each layer
    (tmp_path / "again").mkdir()
    assert policy.export(kind, tmp_path / "again").read_bytes() == path.read_bytes()
    if kind in EXPORTED:
        export.export_text(policy.folder, tmp_path / "plain.gguf", kind)
        assert (tmp_path / "plain.gguf").read_bytes() == path.read_bytes()


def test_files_of_more_bits_are_larger(policy: Taught, tmp_path: Path) -> None:
    sizes = [policy.export(kind, tmp_path).stat().st_size for kind in KINDS]
    assert sizes == sorted(sizes, reverse=True)


def test_a_kind_that_is_not_known(policy: Taught, tmp_path: Path) -> None:
    with pytest.raises(LeverlabError, match="'q2_k' is not known; use one of f16, q8_0, q5_1"):
        export_kind(policy.folder, tmp_path / "a.gguf", "q2_k")  # type: ignore[arg-type]


def changed(policy: Taught, folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """A copy of the checkpoint with other tensors."""
    shutil.copytree(policy.folder, folder)
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("kind", NEW)
def test_another_checkpoint_is_told(policy: Taught, tmp_path: Path, kind: Kind) -> None:
    """One weight of a matrix and one of a norm."""

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"][3, 5] += 0.05
        tensors["model.norm.weight"][7] += 1e-6

    other = changed(policy, tmp_path / "other", edit)
    found = compare_kind(other, policy.export(kind, tmp_path))
    beyond = {item.name: item.values_beyond for item in found if item.values_beyond}
    assert beyond == {"blk.1.ffn_up.weight": 1, "output_norm.weight": 1}


def test_values_that_are_too_large_are_refused(policy: Taught, tmp_path: Path) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = 7e4

    other = changed(policy, tmp_path / "other", edit)
    with pytest.raises(LeverlabError, match=r"up_proj.weight holds values up to 7e\+04, Q4_1 only up to 6.55e\+04;"):
        export_kind(other, tmp_path / "a.gguf", "q4_1")
    assert not (tmp_path / "a.gguf").exists()


def test_a_file_that_is_damaged_is_told(policy: Taught, tmp_path: Path) -> None:
    """A scale that is no number, a file that is cut, and one that has another vocabulary."""
    path = policy.export("q4_1", tmp_path)
    whole = path.read_bytes()
    (queries,) = [tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == "blk.0.attn_q.weight"]
    at = int(queries.data_offset)
    path.write_bytes(whole[:at] + b"\x00\x7e" + whole[at + 2 :])
    with pytest.raises(LeverlabError, match=r"blk\.0\.attn_q\.weight holds NaN or infinite values; export again"):
        compare_kind(policy.folder, path)
    path.write_bytes(whole[:-100])
    with pytest.raises(LeverlabError, match="truncated"):
        compare_kind(policy.folder, path)
    path.write_bytes(whole.replace(b"im_start", b"im_stare", 1))
    with pytest.raises(LeverlabError, match=r"tokenizer\.ggml\.tokens\[1\] is"):
        compare_kind(policy.folder, path)


def test_another_hyperparameter_is_told(policy: Taught, tmp_path: Path) -> None:
    path = policy.export("q5_1", tmp_path)
    shutil.copytree(policy.folder, tmp_path / "other")
    config = (tmp_path / "other/config.json").read_text(encoding="utf-8")
    (tmp_path / "other/config.json").write_text(config.replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    with pytest.raises(LeverlabError, match="layer_norm_rms_epsilon is"):
        compare_kind(tmp_path / "other", path)
