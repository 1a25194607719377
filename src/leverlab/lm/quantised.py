"""GGUF files of more types than `leverlab.export` writes: q5_1 and q4_1, whose blocks have a scale and a least value.

A value is `scale * integer + least`, both in half precision, the integer from 0 to 31 or 15 (ggml-quants.c). Blocks of
values that are all on one side of 0 lose less so than in q5_0 and q4_0; half a bit more is spent on each value.
"""

import math
from pathlib import Path
from typing import Any, Literal, get_args

import gguf
import numpy as np
from gguf import GGMLQuantizationType, LlamaFileType
from numpy.typing import NDArray

from leverlab.config.gguf import KINDS as EXPORTED
from leverlab.errors import LeverlabError
from leverlab.export import gguf as export
from leverlab.export.checkpoint import Part, Tensor
from leverlab.export.gguf import TensorComparison
from leverlab.export.gguf_file import contents, read_gguf, shape_of
from leverlab.export.quantisation import LARGEST, _half, errors, n_bytes, stored_type
from leverlab.export.text_part import read_text_part
from leverlab.export.tokenizer_fields import Value

Kind = Literal["f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]  # of a file's matrices, the largest first
KINDS: tuple[Kind, ...] = get_args(Kind)
_TYPES = {
    "q5_1": (GGMLQuantizationType.Q5_1, LlamaFileType.MOSTLY_Q5_1),
    "q4_1": (GGMLQuantizationType.Q4_1, LlamaFileType.MOSTLY_Q4_1),
}
_STEPS = {GGMLQuantizationType.Q5_1: 31, GGMLQuantizationType.Q4_1: 15}  # the largest integer
_BLOCK = 32
_HALF = 65504.0  # the largest least value
_CHUNK = 1 << 20  # values compared at once: bounds memory on models with large vocabularies


def export_kind(checkpoint: Path, out: Path, kind: Kind) -> None:
    """Write the checkpoint folder to the GGUF file `out`: `leverlab.export.gguf.export_text` for all `KINDS`."""
    if kind in EXPORTED:
        export.export_text(checkpoint, out, kind)
        return
    if kind not in KINDS:
        raise LeverlabError(f"GGUF type {kind!r} is not known; use one of {', '.join(KINDS)}")
    part = read_text_part(checkpoint)
    with export._written_aside(out, part.architecture) as writer:
        for key, value in _fields(part, kind).items():
            writer.add_key_value(key, value, export._value_type(value))
        for name, tensor in part.tensors.items():
            stored = _stored_type(tensor.shape, kind)
            writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), n_bytes(tensor.shape, stored), stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in part.tensors.values():
            writer.write_tensor_data(_quantised(tensor, _stored_type(tensor.shape, kind)))


def compare_kind(checkpoint: Path, path: Path) -> list[TensorComparison]:
    """Return how far the values of the GGUF file `path` are from the checkpoint's: `leverlab.export.gguf.compare` for
    all `KINDS`.

    A value's bound in q5_1 and q4_1 is half a step of its block plus the rounding of the block's scale and least value.
    """
    fields, tensors = read_gguf(path)
    file_type = contents(fields["general.file_type"], path) if "general.file_type" in fields else None
    kinds = [kind for kind, (_, known) in _TYPES.items() if file_type == known]
    if not kinds:
        return export.compare(checkpoint, path)
    part = read_text_part(checkpoint)
    export._compare_fields({"general.architecture": part.architecture} | _fields(part, kinds[0]), fields, path)
    if part.tensors.keys() != tensors.keys():
        name = min(part.tensors.keys() ^ tensors.keys())
        raise LeverlabError(f"{path} or {checkpoint} has {name}, and the other has not; export again")
    result = []
    for name, tensor in part.tensors.items():
        stored, found = _stored_type(tensor.shape, kinds[0]), tensors[name]
        shape = shape_of(found)
        if (found.tensor_type, shape) != (stored, tensor.shape):
            raise LeverlabError(
                f"{path}: {name} is {found.tensor_type.name} {shape}, not {stored.name} {tensor.shape}; export again"
            )
        compared = block_errors if stored in _STEPS else errors
        worst, allowed, beyond = compared(tensor.load(), found.data, stored)
        if not math.isfinite(worst):
            raise LeverlabError(f"{path}: {name} holds NaN or infinite values; export again")
        result.append(TensorComparison(name, shape, stored.name, worst, allowed, beyond))
    return result


def block_errors(
    values: NDArray[np.float32], data: NDArray[Any], stored: GGMLQuantizationType
) -> tuple[float, float, int]:
    """Return `leverlab.export.quantisation.errors` for q5_1 and q4_1: the largest error of the stored `data`, the
    largest bound, and how many values lie beyond their own bound.

    NaN and infinity in the data come back as the largest error, and are beyond any bound.
    """
    rows = values.reshape(-1, values.shape[-1])
    packed = data.reshape(len(rows), -1)
    step = max(1, _CHUNK // rows.shape[1])
    worst, allowed, beyond = 0.0, 0.0, 0
    for start in range(0, len(rows), step):
        exact, chunk = rows[start : start + step], packed[start : start + step]
        with np.errstate(all="ignore"):  # a damaged scale is told by the NaN or infinity that it makes
            error = np.abs(gguf.quants.dequantize(chunk, stored).astype(np.float64) - exact)
        bound = block_bounds(exact, stored)
        worst = float(np.maximum(worst, error.max()))  # unlike max, it passes NaN on
        allowed = max(allowed, float(bound.max()))
        beyond += int((~(error <= bound)).sum())
    return worst, allowed, beyond


def block_bounds(exact: NDArray[np.float32], stored: GGMLQuantizationType) -> NDArray[np.float64]:
    """Return for every value (rows, columns) the largest error that rounding it to q5_1 or q4_1 can make.

    It is that of round((x - m) / d) · d + m, with m = min x and d = (max x - m) / steps, both stored in half precision.
    The first rounding costs half a step. What d is off by in half precision counts for each of up to `steps` steps,
    what m is off by counts once. A few float32 roundings of numbers up to `steps` · d and |m| come on top.
    """
    steps, blocks = _STEPS[stored], exact.reshape(len(exact), -1, _BLOCK)
    least = blocks.min(axis=2, keepdims=True)
    scale = (blocks.max(axis=2, keepdims=True) - least) / np.float32(steps)
    (_, off_scale), (_, off_least) = _half(scale), _half(np.abs(least))
    single = 2.0**-22 * (steps * scale.astype(np.float64) + np.abs(least))
    per_block = 0.5 * scale.astype(np.float64) + steps * off_scale + off_least + single
    return np.broadcast_to(per_block, blocks.shape).reshape(exact.shape)


def _fields(part: Part, kind: str) -> dict[str, Value]:
    return export._fields(part, "f16") | {"general.file_type": int(_TYPES[kind][1])}


def _stored_type(shape: tuple[int, ...], kind: str) -> GGMLQuantizationType:
    """Return the type of a tensor: that of the kind where f16 files have f16, and rows are whole blocks."""
    stored = stored_type(shape, "f16")
    return _TYPES[kind][0] if stored == GGMLQuantizationType.F16 and shape[-1] % _BLOCK == 0 else stored


def _quantised(tensor: Tensor, stored: GGMLQuantizationType) -> NDArray[Any]:
    values, most = tensor.load(), LARGEST.get(stored, _HALF)
    if (largest := float(np.abs(values).max())) > most:
        raise LeverlabError(
            f"{tensor.file}: {tensor.source} holds values up to {largest:.3g}, {stored.name} only up to {most:.3g}; "
            "use another checkpoint"
        )
    return np.asarray(gguf.quants.quantize(values, stored))
