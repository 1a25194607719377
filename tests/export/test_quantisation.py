"""What rounding to each GGUF type may cost: blocks worked by hand, and the package's quantisers on random ones."""

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from leverlab.config.gguf import KINDS
from leverlab.export import quantisation
from leverlab.export.quantisation import LARGEST, TYPES, bounds, errors, n_bytes, stored_type

BLOCKS = (Type.Q8_0, Type.Q5_0, Type.Q4_0)
STEPS = {Type.Q8_0: 127, Type.Q5_0: 16, Type.Q4_0: 8}  # the integer of the largest magnitude
LOWEST = {Type.Q8_0: -127, Type.Q5_0: -16, Type.Q4_0: -8}
HIGHEST = {Type.Q8_0: 127, Type.Q5_0: 15, Type.Q4_0: 7}
Values = NDArray[np.float32]


def block(*values: float) -> Values:
    """Return one row of one block: `values`, and zeros behind them."""
    row = np.zeros((1, 32), np.float32)
    row[0, : len(values)] = values
    return row


def of(values: Values, stored: Type) -> NDArray[np.float64]:
    return bounds(values.astype(np.float64), stored)


def integers(data: NDArray[np.uint8], stored: Type) -> NDArray[np.int64]:
    """Return the integers of the blocks, as ggml-quants.c lays them out: (blocks, 32)."""
    blocks = data.reshape(-1, gguf.GGML_QUANT_SIZES[stored][1])
    if stored == Type.Q8_0:
        return blocks[:, 2:].view(np.int8).astype(np.int64)
    nibbles = blocks[:, -16:].astype(np.int64)
    low = np.concatenate([nibbles & 15, nibbles >> 4], axis=1)
    if stored == Type.Q4_0:
        return low - 8
    return low + 16 * np.unpackbits(blocks[:, 2:6], axis=1, bitorder="little").astype(np.int64) - 16


def with_integers(data: NDArray[np.uint8], wanted: NDArray[np.int64], stored: Type) -> NDArray[np.uint8]:
    """Return the blocks with other integers and the same scales."""
    blocks = data.reshape(-1, gguf.GGML_QUANT_SIZES[stored][1]).copy()
    if stored == Type.Q8_0:
        blocks[:, 2:] = wanted.astype(np.int8).view(np.uint8)
        return blocks.reshape(data.shape)
    counted = wanted - LOWEST[stored]
    blocks[:, -16:] = (counted[:, :16] & 15) | ((counted[:, 16:] & 15) << 4)
    if stored == Type.Q5_0:
        blocks[:, 2:6] = np.packbits(counted >> 4, axis=1, bitorder="little")
    return blocks.reshape(data.shape)


def random_rows(stored: Type, exponents: range, seed: int) -> Values:
    """Return rows of 64 values of each magnitude: normal, uniform, in between two steps, and both extremes at once."""
    rng = np.random.default_rng(seed)
    rows = []
    for exponent in exponents:
        normal = rng.standard_normal((4, 64))
        uniform = rng.uniform(-1, 1, (4, 64))
        steps = STEPS.get(stored, 127)
        between = (rng.integers(-steps, steps, (4, 64)) + 0.5) / steps
        between[:, [0, 32]] = np.sign(rng.standard_normal((4, 2)))
        opposite = rng.uniform(-1, 1, (4, 64))
        opposite[:, ::32], opposite[:, 1::32] = 1, -rng.uniform(0.9, 1, (4, 2))
        opposite[1::2] *= -1
        drawn = np.concatenate([normal, uniform, between, opposite])
        drawn /= np.abs(drawn).max(axis=1, keepdims=True)
        rows.append(drawn * 2.0**exponent * rng.uniform(1, 2, (len(drawn), 1)))
    return np.concatenate(rows).astype(np.float32)


def test_file_types_are_those_of_ggml() -> None:
    """The numbers of ggml.h and llama.h, which other programs read."""
    assert {kind: (int(tensor), int(file)) for kind, (tensor, file) in TYPES.items()} == {
        "f16": (1, 1),
        "q8_0": (8, 7),
        "q5_0": (6, 8),
        "q4_0": (2, 2),
    }
    assert tuple(TYPES) == KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_what_type_a_tensor_gets(kind: quantisation.Kind) -> None:
    """Vectors stay f32; rows that are no multiple of 32 wide, as those of a patch embedding, are f16 in every file."""
    own = TYPES[kind][0]
    assert stored_type((64,), kind) == Type.F32
    assert stored_type((3, 64), kind) == own
    assert stored_type((64, 3, 8, 32), kind) == own
    for shape in ((3, 48), (32, 33), (64, 3, 8, 8), (32, 1)):
        assert stored_type(shape, kind) == Type.F16


@pytest.mark.parametrize(
    ("stored", "expected"),
    [(Type.F32, 768), (Type.F16, 384), (Type.Q8_0, 6 * 34), (Type.Q5_0, 6 * 22), (Type.Q4_0, 6 * 18)],
)
def test_bytes_of_a_tensor(stored: Type, expected: int) -> None:
    """Six blocks: a scale of two bytes, and 32 integers of 8, 5 or 4 bits."""
    assert n_bytes((3, 64), stored) == n_bytes((3, 1, 2, 32), stored) == expected
    assert gguf.quants.quantize(np.zeros((3, 64), np.float32), stored).nbytes == expected


def test_f32_may_cost_nothing() -> None:
    values = np.array([[1.0, -3e38, 1e-45, 0.0]], np.float32)
    assert errors(values, values.view(np.uint8), Type.F32) == (0.0, 0.0, 0)
    moved = np.nextafter(values, np.float32(4))  # by the least that there is; 3e38 by 2e31
    worst, allowed, beyond = errors(values, moved.view(np.uint8), Type.F32)
    assert (worst, allowed, beyond) == (2.0**104, 0.0, 4)


def test_f16_by_hand() -> None:
    """Numbers near 1 are 2^-10 apart, those near 2^10 1 apart, and below 2^-14 all are 2^-24 apart; ties go to even."""
    values = np.array([[1 + 2.0**-11, 1024.5, 1025.5, 2.0**-25, 3 * 2.0**-25, 2.0**-24, 0.0, -65504.0]], np.float32)
    stored = np.array([[1, 1024, 1026, 0, 2.0**-23, 2.0**-24, 0, -65504]], np.float16)
    assert (gguf.quants.quantize(values, Type.F16) == stored).all()
    exact_errors = [2.0**-11, 0.5, 0.5, 2.0**-25, 2.0**-25, 0, 0, 0]
    limits = [2.0**-11 * (1 + 2.0**-11), 0.5 + 2.0**-12, 0.5 + 3 * 2.0**-12, *[2.0**-25] * 4, 31.984375]
    assert of(values, Type.F16)[0].tolist() == limits
    assert np.abs(stored.astype(np.float64) - values)[0].tolist() == exact_errors
    assert errors(values, stored, Type.F16) == (0.5, 31.984375, 0)
    other = np.array([[1 + 2.0**-9, 1026, 1025, 2.0**-24, 2.0**-24, 0, 2.0**-24, -65472]], np.float16)
    assert errors(values, other, Type.F16) == (32.0, 31.984375, 5)  # all but the ties, whose other neighbour is as near


def test_q8_0_by_hand() -> None:
    """The largest magnitude 127 makes the scale 1, to which half precision is true within 2^-11.

    Halves go away from zero: 0.5 → 1, -2.5 → -3, and cost half a step; the sum in `bounds` is that and 127 times what
    the scale may be off.
    """
    values = block(-127.0, 127.0, 0.5, -2.5, 0.4, -0.75)
    data = gguf.quants.quantize(values, Type.Q8_0)
    assert bytes(data[0, :2]) == b"\x00\x3c"
    assert integers(data, Type.Q8_0)[0, :6].tolist() == [-127, 127, 1, -3, 0, -1]
    limit = (0.5 + 127 * 2.0**-22) * (1 + 2.0**-11) + 127 * 2.0**-11
    assert of(values, Type.Q8_0)[0].tolist() == [limit] * 32
    assert errors(values, data, Type.Q8_0) == (0.5, limit, 0)


@pytest.mark.parametrize(
    ("stored", "last", "expected", "costs"),
    [
        (Type.Q4_0, 7, [-8, 7, 7, 7, 6, -7, -7, -1, 1, 0], [0, 1, 0.75, 0.25, 0.25, 0, 0.5, 0.25, 0.5, 0.25]),
        (Type.Q5_0, 15, [-16, 15, 15, 15, 14, -15, -15, -1, 1, 0], [0, 1, 0.75, 0.25, 0.25, 0, 0.5, 0.25, 0.5, 0.25]),
    ],
)
def test_the_opposite_of_the_largest_value_costs_a_whole_step(
    stored: Type, last: int, expected: list[int], costs: list[float]
) -> None:
    """The scale is 1: integers reach from -8 to 7 (-16 to 15), so that 8 becomes 7, 7.75 too, and 7.25 too.

    The other way round with the signs of all values changed, when the scale is -1. Halves go up, and the first of two
    values of the same magnitude counts as the largest.
    """
    most = last + 1
    values = block(-most, most, most - 0.25, last + 0.25, last - 0.75, -last, -last - 0.5, -0.75, 0.5, 0.25)
    slack, off = most * 2.0**-22, 2.0**-11  # of the scale 1 as half precision has it
    limits = [(rounding + slack) * (1 + off) + most * off for rounding in (0.5, 1, 0.75, *[0.5] * 29)]
    for sign, scale in ((1, b"\x00\x3c"), (-1, b"\x00\xbc")):
        data = gguf.quants.quantize(sign * values, stored)
        assert bytes(data[0, :2]) == scale
        assert integers(data, stored)[0, :10].tolist() == expected
        assert np.abs(gguf.quants.dequantize(data, stored) - sign * values)[0, :10].tolist() == costs
        assert of(sign * values, stored)[0].tolist() == limits
        assert errors(sign * values, data, stored) == (1.0, limits[1], 0)


@pytest.mark.parametrize("stored", BLOCKS)
def test_a_block_of_zeros(stored: Type) -> None:
    """Nothing is lost, and the bound is as little as the least scale of half precision, 2^-24, makes it."""
    values = block()
    data = gguf.quants.quantize(values, stored)
    worst, allowed, beyond = errors(values, data, stored)
    assert (worst, beyond) == (0, 0)
    assert allowed == (0.5 + STEPS[stored] * 2.0**-22) * 2.0**-25 + STEPS[stored] * 2.0**-25


@pytest.mark.parametrize("stored", BLOCKS)
def test_scales_below_the_normal_numbers_of_half_precision(stored: Type) -> None:
    """A scale of 1.5 · 2^-24 becomes 2 · 2^-24: the largest value is off by half of 2^-24 for each of its steps.

    One of 2^-26 becomes 0, and with it every value.
    """
    steps = STEPS[stored]
    values = block(-1.5 * steps * 2.0**-24, 1.5 * 2.0**-24)
    data = gguf.quants.quantize(values, stored)
    assert bytes(data[0, :2]) == b"\x02\x00"
    assert integers(data, stored)[0, :2].tolist() == [-steps, 1]
    worst, allowed, beyond = errors(values, data, stored)
    assert (worst, beyond) == (steps * 2.0**-25, 0)
    assert allowed == (0.5 + steps * 2.0**-22) * 5 * 2.0**-25 + steps * 2.0**-25
    values = block(-steps * 2.0**-26)
    data = gguf.quants.quantize(values, stored)
    assert bytes(data[0, :2]) in (b"\x00\x00", b"\x00\x80")
    worst, allowed, beyond = errors(values, data, stored)
    assert (worst, beyond) == (steps * 2.0**-26, 0)
    assert allowed < 1.01 * (steps + 0.5) * 2.0**-25


@pytest.mark.parametrize("stored", BLOCKS)
def test_bounds_are_those_of_each_block(stored: Type) -> None:
    """A block of small values is not forgiven what a large one beside it or above it may cost."""
    values = np.concatenate([block(-64.0), block(-1.0)], axis=1).repeat(2, axis=0)
    values[1] /= 16
    found = of(values, stored)
    assert found.shape == (2, 64)
    assert [found[0, 0], found[0, 32], found[1, 0], found[1, 32]] == pytest.approx(
        [64 * found[0, 32], found[0, 32], 4 * found[0, 32], found[0, 32] / 16], rel=0.1
    )


EVERY = (Type.F32, Type.F16, *BLOCKS)


@pytest.mark.parametrize("stored", EVERY)
def test_no_quantiser_of_the_package_exceeds_its_bound(stored: Type) -> None:
    """From the smallest numbers of float32, which become 0, to the largest that the type holds."""
    values = random_rows(stored, range(-148, int(np.log2(LARGEST[stored])) - 1), seed=0)
    with np.errstate(all="ignore"):  # the package divides by scales that are no normal numbers
        data = gguf.quants.quantize(values, stored)
    error = np.abs(gguf.quants.dequantize(data, stored).astype(np.float64) - values)
    limits = of(values, stored)
    assert (error <= limits).all()
    assert errors(values, data, stored) == (error.max(), limits.max(), 0)


@pytest.mark.parametrize("stored", BLOCKS)
def test_bounds_are_nearly_reached(stored: Type) -> None:
    """They are no wider than what rounding can cost: blocks of normal magnitude come within a tenth of them."""
    values = random_rows(stored, range(-6, 6), seed=1)
    data = gguf.quants.quantize(values, stored)
    error = np.abs(gguf.quants.dequantize(data, stored).astype(np.float64) - values)
    assert (error / of(values, stored)).max() > 0.9


@pytest.mark.parametrize("stored", BLOCKS)
def test_a_value_one_step_further_away_is_told(stored: Type) -> None:
    """Every value of random blocks: its integer is changed by one, away from the value (inwards at the extremes)."""
    values = random_rows(stored, range(-10, 10), seed=2)
    data = gguf.quants.quantize(values, stored)
    found = integers(data, stored)
    assert (with_integers(data, found, stored) == data).all()
    scales = data.reshape(len(found), -1)[:, :2].copy().view(np.float16).astype(np.float64)
    residue = values.reshape(-1, 32) - found * scales
    away = np.where(residue * scales > 0, -1, 1)
    moved = found + away
    possible = (moved >= LOWEST[stored]) & (moved <= HIGHEST[stored])
    assert possible.mean() > 0.9
    changed = with_integers(data, np.where(possible, moved, found), stored)
    assert errors(values, changed, stored)[2] == possible.sum()


@pytest.mark.parametrize("stored", [Type.F32, Type.F16])
def test_a_value_one_unit_further_away_is_told(stored: Type) -> None:
    values = random_rows(stored, range(-10, 10), seed=2)
    kind = np.float32 if stored == Type.F32 else np.float16
    rounded = gguf.quants.quantize(values, stored)
    away = np.where(rounded > values, np.inf, -np.inf).astype(kind)
    assert errors(values, np.nextafter(rounded, away), stored)[2] == values.size


@pytest.mark.parametrize("stored", BLOCKS)
@pytest.mark.parametrize("factor", [0.98, 1.02, -1.0, 0.0])
def test_a_scale_that_is_off_is_told(stored: Type, factor: float) -> None:
    """Two per cent are 2.5 steps at the largest value of a block of 127 steps.

    Of 16 or 8 steps they are less than half of one, and are told by values that were halfway between two steps.
    """
    values = random_rows(stored, range(-10, 10), seed=3)
    data = gguf.quants.quantize(values, stored).reshape(-1, gguf.GGML_QUANT_SIZES[stored][1])
    scales = data[:, :2].copy().view(np.float16) * np.float16(factor)
    data[:, :2] = scales.view(np.uint8)
    beyond = errors(values, data.reshape(len(values), -1), stored)[2]
    if stored == Type.Q8_0 or factor <= 0:
        assert beyond >= len(data)
    else:
        assert beyond > 0


@pytest.mark.parametrize("stored", [Type.F16, *BLOCKS])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_beyond_and_is_the_largest_error(
    stored: Type, bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first of several chunks too, where later errors are numbers."""
    monkeypatch.setattr(quantisation, "_CHUNK", 32)
    values = random_rows(stored, range(0, 4), seed=4)[:, :32]
    data = gguf.quants.quantize(values, stored)
    data.view(np.uint8)[0, :2] = np.array([bad], np.float16).view(np.uint8)
    worst, allowed, beyond = errors(values, data, stored)
    assert np.isnan(worst) or worst == np.inf
    assert np.isfinite(allowed)
    assert beyond == (1 if stored == Type.F16 else 32)


@pytest.mark.parametrize("stored", EVERY)
def test_chunks_change_nothing(stored: Type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are compared in pieces, and the leading dimensions of a kernel are rows like others."""
    values = random_rows(stored, range(-3, 3), seed=5)
    data = gguf.quants.quantize(values, stored)
    found = errors(values[::-1], data, stored)  # others than were stored
    assert found[2] > 1000
    for chunk in (1, 64, 100, 64 * 7):
        monkeypatch.setattr(quantisation, "_CHUNK", chunk)
        assert errors(values[::-1], data, stored) == found
        kernel = values[::-1].reshape(-1, 4, 2, 64)
        assert errors(kernel, data.reshape(-1, 4, 2, data.shape[1]), stored) == found


@pytest.mark.parametrize("stored", [Type.F16, *BLOCKS])
def test_the_largest_values(stored: Type) -> None:
    """`LARGEST` is held, and what is one per mille larger becomes infinite (as the scale does) and has no bound."""
    values = block(-LARGEST[stored], LARGEST[stored] / 2)
    worst, _, beyond = errors(values, gguf.quants.quantize(values, stored), stored)
    assert np.isfinite(worst)
    assert beyond == 0
    values *= np.float32(1.001)
    with np.errstate(over="ignore"):
        data = gguf.quants.quantize(values, stored)
    worst, _, beyond = errors(values, data, stored)
    assert not np.isfinite(worst)
    assert beyond == (1 if stored == Type.F16 else 32)


@pytest.mark.parametrize("stored", BLOCKS)
def test_a_wrong_value_beside_the_largest_is_told(stored: Type) -> None:
    """Half precision is 32 apart at its end: a scale of 65,504 is within 16, as any other above 2^15."""
    values = block(-LARGEST[stored], LARGEST[stored] / 2)
    data = gguf.quants.quantize(values, stored)
    steps = STEPS[stored]
    with np.errstate(over="ignore"):
        limits = of(values, stored)
    assert limits[0, 2] == (0.5 + steps * 2.0**-22) * (65504 + 16) + steps * 16
    wrong = with_integers(data, integers(data, stored) * [[1] + [0] * 31], stored)
    assert errors(values, wrong, stored)[2] == 1
