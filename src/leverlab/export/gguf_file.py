"""A GGUF file as it lies on the disk: its fields and its tensors, read without trust in what it says of itself."""

import sys
from pathlib import Path
from typing import Any, TypeVar

import gguf
import numpy as np
from gguf import GGUFValueType
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from leverlab.errors import LeverlabError

Fields = dict[str, gguf.ReaderField]
Tensors = dict[str, gguf.ReaderTensor]
_Model = TypeVar("_Model", bound=BaseModel)
_LONGEST = 1 << 20  # entries of a list: more than any vocabulary has, and little enough to read


class _Reader(gguf.GGUFReader):
    """The package's reader, which by itself reads on behind the end of the file, into lists of any length and depth.

    It also takes ten seconds for a vocabulary of 150,000 tokens, and this half a second.
    """

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> NDArray[Any]:
        values = super()._get(offset, dtype, count, override_order)
        if len(values) != count:
            raise ValueError(f"it ends before the {count} value(s) at byte {offset}")
        return values

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        if raw_type != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        if self.byte_order != "I":
            raise ValueError("its bytes are in the other order")
        head = [self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)]
        kind, length, start = GGUFValueType(int(head[0][0])), int(head[1][0]), orig_offs + 12
        if kind == GGUFValueType.ARRAY or length > _LONGEST:
            raise ValueError(f"it holds a list of lists or of more than {_LONGEST} entries at byte {orig_offs}")
        if kind == GGUFValueType.STRING:
            parts, end = self._texts(start, length)
        else:
            parts = [self._get(start, self.gguf_scalar_to_np[kind], length)]
            end = start + parts[0].nbytes
        types = [GGUFValueType.ARRAY, kind] if length else [GGUFValueType.ARRAY]
        return end - orig_offs, head + parts, list(range(2, 2 + len(parts))), types

    def _texts(self, start: int, length: int) -> tuple[list[NDArray[Any]], int]:
        """Return the bytes of `length` texts, each behind its size, and where they end."""
        whole, parts, at = self.data.data, [], start
        for _ in range(length):
            size = int.from_bytes(whole[at : at + 8], sys.byteorder)
            parts.append(np.frombuffer(whole, np.uint8, size, at + 8))  # which raises when there are fewer
            at += 8 + size
        return parts, at


def read_gguf(path: Path) -> tuple[Fields, Tensors]:
    """Return the fields and the tensors (values mapped, not read) of a GGUF file.

    Raises `LeverlabError` when it is missing, truncated or no GGUF file.
    """
    try:
        with np.errstate(over="raise"):  # an offset beyond 64 bits
            reader = _Reader(path)
        end = reader.data_offset
        for tensor in reader.tensors:
            if tensor.data_offset != end:
                raise ValueError(f"{tensor.name} lies at byte {tensor.data_offset}, not {end}")
            end = gguf.GGUFWriter.ggml_pad(end + tensor.n_bytes, reader.alignment)
        if path.stat().st_size != end:
            raise ValueError("its size is not what its tensors add up to")
    except FileNotFoundError:
        raise LeverlabError(f"{path} does not exist; export it first") from None
    except (OSError, ValueError, IndexError, KeyError, ArithmeticError) as error:
        raise LeverlabError(f"{path} is truncated or no GGUF file ({error}); export it again") from None
    fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    return fields, {tensor.name: tensor for tensor in reader.tensors}


def contents(field: gguf.ReaderField, path: Path) -> Any:
    """Return the value of a field: a text, a number, a truth or a list. Raises `LeverlabError` for damaged text."""
    try:
        return field.contents()
    except ValueError as error:
        raise LeverlabError(f"{path}: {field.name} is no UTF-8 text ({error}); export again") from None


def checked(model: type[_Model], fields: Fields, path: Path) -> _Model:
    """Return the fields that `model` asks for by its aliases.

    Raises `LeverlabError` when one is missing, or not what the model takes.
    """
    keys = {info.alias for info in model.model_fields.values()} & fields.keys()
    try:
        return model.model_validate({key: contents(fields[key], path) for key in keys if key is not None})
    except ValidationError as error:
        problem = error.errors()[0]
        raise LeverlabError(
            f"{path}: field '{problem['loc'][0]}' is not as it must be ({problem['msg'].lower()}); export again"
        ) from None


def shape_of(tensor: gguf.ReaderTensor) -> tuple[int, ...]:
    """Return the shape as numpy counts dimensions; ggml counts them from the innermost."""
    return tuple(int(size) for size in reversed(tensor.shape))


def decode(tensor: gguf.ReaderTensor, path: Path, rows: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
    """Return the values of a tensor, or those of `rows` of it; the rest is not read.

    Raises `LeverlabError` for a type that cannot be decoded.
    """
    data = tensor.data if rows is None else tensor.data[rows]
    try:
        return np.asarray(gguf.quants.dequantize(data, tensor.tensor_type), dtype=np.float32)
    except NotImplementedError:
        raise LeverlabError(
            f"{path}: {tensor.name} is of type {tensor.tensor_type.name}, which cannot be decoded; export again"
        ) from None
