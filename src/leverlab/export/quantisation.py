"""The types that values have in a GGUF file, and what rounding to each of them may cost.

Quantised types hold blocks of 32 values: integers, and a scale in half precision (ggml-quants.c). The quantisers of the
`gguf` package give the same bits as llama.cpp's own.
"""

import math
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, LlamaFileType
from numpy.typing import NDArray

from leverlab.config.gguf import Kind

TYPES: dict[Kind, tuple[GGMLQuantizationType, LlamaFileType]] = {
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q5_0": (GGMLQuantizationType.Q5_0, LlamaFileType.MOSTLY_Q5_0),
    "q4_0": (GGMLQuantizationType.Q4_0, LlamaFileType.MOSTLY_Q4_0),
}
_HALF = 65504.0
LARGEST = {  # the largest magnitude that each type can hold
    GGMLQuantizationType.F32: float(np.finfo(np.float32).max),
    GGMLQuantizationType.F16: _HALF,
    GGMLQuantizationType.Q8_0: 127 * _HALF,
    GGMLQuantizationType.Q5_0: 16 * _HALF,
    GGMLQuantizationType.Q4_0: 8 * _HALF,
}
_BLOCK = 32
_CHUNK = 1 << 20  # values compared at once: bounds memory on models with large vocabularies


def stored_type(shape: tuple[int, ...], kind: Kind) -> GGMLQuantizationType:
    """Return the type that a tensor of `shape` has in a file of `kind`."""
    if len(shape) == 1:  # norms and biases: llama.cpp computes with them in f32
        return GGMLQuantizationType.F32
    wanted = TYPES[kind][0]
    return wanted if shape[-1] % gguf.GGML_QUANT_SIZES[wanted][0] == 0 else GGMLQuantizationType.F16


def n_bytes(shape: tuple[int, ...], stored: GGMLQuantizationType) -> int:
    """Return the bytes of a tensor of `shape` in the type `stored`."""
    block, size = gguf.GGML_QUANT_SIZES[stored]
    return math.prod(shape) // block * size


def errors(values: NDArray[np.float32], data: NDArray[Any], stored: GGMLQuantizationType) -> tuple[float, float, int]:
    """Return the largest error of the stored `data`, the largest bound, and how many values lie beyond their own bound.

    NaN and infinity in the data come back as the largest error, and are beyond any bound.
    """
    rows = values.reshape(-1, values.shape[-1])
    packed = data.reshape(len(rows), -1)
    step = max(1, _CHUNK // rows.shape[1])
    worst, allowed, beyond = 0.0, 0.0, 0
    for start in range(0, len(rows), step):
        exact, chunk = rows[start : start + step].astype(np.float64), packed[start : start + step]
        with np.errstate(all="ignore"):  # a damaged scale is told by the NaN or infinity that it makes
            error = np.abs(gguf.quants.dequantize(chunk, stored).astype(np.float64) - exact)
            bound = bounds(exact, stored)
        worst = float(np.maximum(worst, error.max()))  # unlike max, it passes NaN on
        allowed = max(allowed, float(bound.max()))
        beyond += int((~(error <= bound)).sum())
    return worst, allowed, beyond


def bounds(exact: NDArray[np.float64], stored: GGMLQuantizationType) -> NDArray[np.float64]:
    """Return for every value (rows, columns) the largest error that rounding it to `stored` can make."""
    match stored:
        case GGMLQuantizationType.F32:
            return np.zeros_like(exact)
        case GGMLQuantizationType.F16:  # unit roundoff 2^-11; below the normal numbers, half the spacing of 2^-24
            return np.maximum(np.abs(exact) * 2.0**-11, 2.0**-25)
        case GGMLQuantizationType.Q8_0:
            return _symmetric_bounds(exact, 127)
        case GGMLQuantizationType.Q5_0:
            return _lopsided_bounds(exact, 16)
        case GGMLQuantizationType.Q4_0:
            return _lopsided_bounds(exact, 8)
    raise AssertionError(stored)


def _symmetric_bounds(exact: NDArray[np.float64], steps: int) -> NDArray[np.float64]:
    """Return the bounds of round(x / d) · d, with d = max|x| / steps, stored in half precision.

    The first rounding costs half a step, and a few float32 roundings of a number up to `steps`; that of d, off by `off`
    at most, costs `off` for each of up to `steps` steps.
    """
    blocks = exact.reshape(len(exact), -1, _BLOCK)
    scale, off = _half(np.abs(blocks.astype(np.float32)).max(axis=2, keepdims=True) / np.float32(steps))
    per_block = (0.5 + steps * 2.0**-22) * (scale + off) + steps * off
    return np.broadcast_to(per_block, blocks.shape).reshape(exact.shape)


def _lopsided_bounds(exact: NDArray[np.float64], steps: int) -> NDArray[np.float64]:
    """Return the bounds of types whose integers reach from -steps to steps - 1, with d = -x / steps of the largest |x|.

    A value near the opposite of the largest finds no integer `steps` and costs up to a whole step.
    """
    blocks = exact.astype(np.float32).reshape(len(exact), -1, _BLOCK)
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2)[..., None], axis=2)
    scale, off = _half(np.abs(extreme) / np.float32(steps))
    exact_scale = -extreme.astype(np.float64) / steps
    integers = np.divide(blocks, exact_scale, out=np.zeros(blocks.shape), where=exact_scale != 0)
    rounding = np.maximum(0.5, integers - (steps - 1)) + steps * 2.0**-22
    return (rounding * (scale + off) + steps * off).reshape(exact.shape)


def _half(scale: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return scales as half precision has them, and half the spacing of numbers there."""
    stored = scale.astype(np.float16)
    spacing = np.where(stored == _HALF, 32.0, np.spacing(stored).astype(np.float64))  # numpy's is infinite at the end
    return stored.astype(np.float64), spacing / 2
