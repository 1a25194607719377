"""Export of a checkpoint to GGUF, llama.cpp's file format, and the proof that nothing was lost on the way.

The text part goes to one file, the vision part to another (`mmproj`). Matrices become f16 or a quantised type, vectors
stay f32. One tensor is in memory at a time.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import gguf
import numpy as np
from gguf import GGUFValueType

from leverlab.config.gguf import KINDS, Kind
from leverlab.errors import LeverlabError
from leverlab.export.checkpoint import Part
from leverlab.export.gguf_file import contents, read_gguf, shape_of
from leverlab.export.quantisation import LARGEST, TYPES, errors, n_bytes, stored_type
from leverlab.export.text_part import read_text_part
from leverlab.export.tokenizer_fields import Value
from leverlab.export.vision_part import read_vision_part

_ENTRY_TYPES = {str: GGUFValueType.STRING, int: GGUFValueType.INT32, float: GGUFValueType.FLOAT32}  # of lists


@dataclass(frozen=True)
class TensorComparison:
    """How one tensor of a GGUF file differs from the checkpoint's."""

    name: str
    shape: tuple[int, ...]
    type: str  # ggml's name: F32, F16, Q8_0, …
    max_abs_error: float
    max_allowed_error: float  # the largest bound of any value of the tensor; every value is held against its own
    values_beyond: int  # values whose error exceeds their bound; 0 in a sound file


def export_text(checkpoint: Path, out: Path, kind: Kind) -> None:
    """Write the text part of a hub-format checkpoint folder to the GGUF file `out`, with matrices of type `kind`.

    Architectures: the text part of Qwen2.5-VL (as `qwen2vl`), and plain Qwen2, Qwen3 and Llama. A matrix whose rows are
    no multiple of 32 wide stays f16. The bytes depend on the checkpoint's contents alone, not on its path, its shards
    or the time. `out` appears whole or not at all; its folder is made if missing. Raises `LeverlabError` when the
    checkpoint is incomplete, damaged or not expressible, when a value is too large for `kind`, and when `out` cannot be
    written.
    """
    if kind not in KINDS:
        raise LeverlabError(f"GGUF type {kind!r} is not known; use one of {', '.join(KINDS)}")
    _export(read_text_part(checkpoint), out, kind)


def export_vision(checkpoint: Path, out: Path) -> None:
    """Write the vision part of a Qwen2.5-VL checkpoint folder to the GGUF file `out`, with matrices in f16.

    Everything else as `export_text`.
    """
    _export(read_vision_part(checkpoint), out, "f16")


def _export(part: Part, out: Path, kind: Kind) -> None:
    with _written_aside(out, part.architecture) as writer:
        for key, value in _fields(part, kind).items():
            writer.add_key_value(key, value, _value_type(value))
        for name, tensor in part.tensors.items():
            stored = stored_type(tensor.shape, kind)
            writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), n_bytes(tensor.shape, stored), stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in part.tensors.values():
            values, stored = tensor.load(), stored_type(tensor.shape, kind)
            if (largest := float(np.abs(values).max())) > LARGEST[stored]:
                raise LeverlabError(
                    f"{tensor.file}: {tensor.source} holds values up to {largest:.3g}, {stored.name} only up to "
                    f"{LARGEST[stored]:.3g}; use another checkpoint"
                )
            writer.write_tensor_data(gguf.quants.quantize(values, stored))


def compare(checkpoint: Path, path: Path, part: Literal["text", "vision"] = "text") -> list[TensorComparison]:
    """Return, for every tensor of the GGUF file `path`, how far its values are from the checkpoint's `part`.

    A value's bound is what rounding to its type may cost and no more: 0 for F32, half a unit in the last place for F16,
    for quantised types half a step of its block plus the rounding of the block's scale, where step and scale are those
    that the checkpoint's values call for. A tensor with `values_beyond` > 0 was not
    exported from this checkpoint, or not correctly. Raises `LeverlabError` when the file is truncated or no GGUF, when
    a tensor is missing, unexpected, not finite or of another shape or type, and when a field (hyperparameter, token,
    merge, template) differs in type or value.
    """
    fields, tensors = read_gguf(path)
    source = read_text_part(checkpoint) if part == "text" else read_vision_part(checkpoint)
    file_type = contents(fields["general.file_type"], path) if "general.file_type" in fields else None
    kinds = [kind for kind, (_, known) in TYPES.items() if file_type == known]
    if not kinds:
        raise LeverlabError(f"{path}: general.file_type {file_type} is none of {', '.join(KINDS)}; export again")
    _compare_fields({"general.architecture": source.architecture} | _fields(source, kinds[0]), fields, path)
    if missing := source.tensors.keys() - tensors.keys():
        raise LeverlabError(
            f"{path} lacks {len(missing)} tensor(s) of {checkpoint}, first {min(missing)}; export again"
        )
    if surplus := tensors.keys() - source.tensors.keys():
        raise LeverlabError(
            f"{path} has {len(surplus)} tensor(s) not in {checkpoint}, first {min(surplus)}; export again"
        )
    result = []
    for name, tensor in source.tensors.items():
        stored, found = stored_type(tensor.shape, kinds[0]), tensors[name]
        shape = shape_of(found)
        if (found.tensor_type, shape) != (stored, tensor.shape):
            raise LeverlabError(
                f"{path}: {name} is {found.tensor_type.name} {shape}, not {stored.name} {tensor.shape}; export again"
            )
        worst, allowed, beyond = errors(tensor.load(), found.data, stored)
        if not math.isfinite(worst):
            raise LeverlabError(f"{path}: {name} holds NaN or infinite values; export again")
        result.append(TensorComparison(name, shape, stored.name, worst, allowed, beyond))
    return result


def _fields(part: Part, kind: Kind) -> dict[str, Value]:
    """Return the fields of the file, without the architecture, which the writer puts first by itself."""
    return {
        "general.file_type": int(TYPES[kind][1]),
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
        **part.fields,
    }


def _value_type(value: Value) -> GGUFValueType:
    if isinstance(value, bool):  # before int, which it is too
        return GGUFValueType.BOOL
    if isinstance(value, int):
        return GGUFValueType.UINT32
    if isinstance(value, float):
        return GGUFValueType.FLOAT32
    return GGUFValueType.STRING if isinstance(value, str) else GGUFValueType.ARRAY


@contextlib.contextmanager
def _written_aside(out: Path, architecture: str) -> Iterator[gguf.GGUFWriter]:
    """Yield a writer to a file beside `out`, which takes the place of `out` when the block ends without an error."""
    aside = out.with_name(f"{out.name}.partial")
    writer = gguf.GGUFWriter(aside, architecture)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield writer
        writer.close()
        aside.replace(out)
    except OSError as error:
        raise LeverlabError(f"{out} cannot be written ({error}); free space there or choose another place") from None
    finally:
        with contextlib.suppress(OSError):  # a full disk refuses the last buffer once more
            writer.close()
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def _compare_fields(expected: dict[str, Value], found: dict[str, gguf.ReaderField], path: Path) -> None:
    for key in sorted(expected.keys() | found.keys()):
        wanted, value = expected.get(key), contents(found[key], path) if key in found else None
        if wanted is None and key.startswith("general."):  # a name or an author changes no answer
            continue
        if isinstance(wanted, float):
            wanted = float(np.float32(wanted))
        elif isinstance(wanted, list):
            wanted = [float(np.float32(entry)) if isinstance(entry, float) else entry for entry in wanted]  # type: ignore[assignment]
        if isinstance(wanted, list) and isinstance(value, list) and len(wanted) == len(value):
            for index, (left, right) in enumerate(zip(wanted, value, strict=True)):
                if left != right:
                    raise LeverlabError(
                        f"{path}: {key}[{index}] is {right!r}, in the checkpoint {left!r}; export again"
                    )
        elif isinstance(wanted, list):
            count = len(value) if isinstance(value, list) else "no"
            raise LeverlabError(f"{path}: {key} has {count} entries, in the checkpoint {len(wanted)}; export again")
        elif wanted != value:
            raise LeverlabError(f"{path}: {key} is {value!r}, in the checkpoint {wanted!r}; export again")
        if wanted is not None and (types := found[key].types) != _types(wanted):
            names = ", ".join(kind.name for kind in types)
            raise LeverlabError(f"{path}: {key} is of type {names}, which llama.cpp does not take; export again")


def _types(value: Value) -> list[GGUFValueType]:
    """Return the type of a field and, behind it, of a list's entries."""
    if isinstance(value, list):
        return [GGUFValueType.ARRAY, _ENTRY_TYPES[type(value[0])]]
    return [_value_type(value)]
