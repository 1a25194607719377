"""What `compare` reads of a GGUF file that was exported: its head, its fields, its tensors."""

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import save

from leverlab.errors import LeverlabError
from leverlab.export.gguf import Kind, TensorComparison, compare, export_text
from tests.fuzz.conftest import Tally
from tests.fuzz.mutations import byte_mutants
from tests.fuzz.tiny_text import SHAPES, make_tensors, write_checkpoint

Maker = Callable[..., Tally]

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def allowed(exact: Any, kind: str) -> Any:
    """Return what rounding may cost each value: nothing, half an ulp, or half a step of the block and its scale."""
    if exact.ndim == 1:
        return np.zeros_like(exact)
    if kind == "f16":
        return np.maximum(np.abs(exact) * 2.0**-11, 2.0**-25)
    steps = np.abs(exact).reshape(-1, 32).max(axis=1, keepdims=True) / 127
    bound = steps * 0.5001 + 127 * np.spacing(steps.astype(np.float16)).astype(np.float64)
    return np.repeat(bound, 32, axis=1).reshape(exact.shape)


def decoded(data: bytes, shape: tuple[int, ...], kind: str) -> Any:
    if len(shape) == 1:
        return np.frombuffer(data, "<f4").astype(np.float64)
    if kind == "f16":
        return np.frombuffer(data, "<f2").astype(np.float64).reshape(shape)
    blocks = np.frombuffer(data, np.dtype([("scale", "<f2"), ("steps", "i1", 32)]))
    return (blocks["scale"][:, None].astype(np.float64) * blocks["steps"]).reshape(shape)


def typed(key: str, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind) + value


def crafted(whole: bytes, places: dict[str, tuple[int, int]], kind: Kind) -> Iterator[tuple[str, bytes]]:
    """Yield files that chance would not hit on: other types, endless and nested lists, tensors that overlap."""
    key = b"qwen2vl.block_count"
    at = whole.index(key) + len(key)
    for other in (5, 6, 10, 11):
        yield f"block_count of type {other}", whole[:at] + struct.pack("<I", other) + whole[at + 4 :]
    key = b"tokenizer.ggml.add_bos_token"
    at = whole.index(key) + len(key)
    for other in (0, 1):
        yield f"add_bos_token of type {other}", whole[:at] + struct.pack("<I", other) + whole[at + 4 :]
    head = whole[:16] + struct.pack("<Q", int.from_bytes(whole[16:24], "little") + 1)
    for item in (0, 4, 8, 9, 12):
        for size in (2**31, 2**60, 2**64 - 1):
            yield f"{size} of type {item}", head + typed("x", 9, struct.pack("<IQ", item, size)) + whole[24:]
    yield "lists in lists", head + typed("x", 9, struct.pack("<IQ", 9, 1) * 3000) + whole[24:]
    for count in (2**31, 2**63, 2**64 - 1):
        yield f"{count} tensors", whole[:8] + struct.pack("<Q", count) + whole[16:]
        yield f"{count} fields", whole[:16] + struct.pack("<Q", count) + whole[24:]
    info = {name: whole.index(name.encode()) + len(name) for name in places}
    for name in places:
        dims = int.from_bytes(whole[info[name] : info[name] + 4], "little")
        at = info[name] + 4 + 8 * dims
        for size in (0, 2**31, 2**63, 2**64 - 1):
            yield f"{name} {size} wide", whole[: info[name] + 4] + struct.pack("<Q", size) + whole[info[name] + 12 :]
            yield f"{name} at {size}", whole[: at + 4] + struct.pack("<Q", size) + whole[at + 12 :]
        yield f"{name} of {2**30} dimensions", whole[: info[name]] + struct.pack("<I", 2**30) + whole[info[name] + 4 :]
    left, right = (info[f"blk.0.{name}_norm.weight"] + 16 for name in ("attn", "ffn"))
    yield "two norms in one place", whole[:left] + whole[right : right + 8] + whole[left + 8 :]
    at = places["blk.0.ffn_up.weight"][0]
    if kind == "q8_0":
        for scale in (1.0, -1.0, 1e4, np.inf, np.nan, 0.0):
            block = np.float16(scale).tobytes()
            yield f"zeros of scale {scale}", whole[:at] + block + bytes(32) + whole[at + 34 :]
            yield f"scale {scale}", whole[:at] + block + whole[at + 2 :]
            yield f"ones of scale {scale}", whole[:at] + block + b"\x01" * 32 + whole[at + 34 :]


def fuzz_gguf(folder: Path, tally: Maker, kind: Kind) -> None:
    path = folder.parent / f"{kind}.gguf"
    export_text(folder, path, kind)
    whole, tensors = path.read_bytes(), make_tensors()
    reader = gguf.GGUFReader(path)
    places = {tensor.name: (tensor.data_offset, tensor.data_offset + tensor.n_bytes) for tensor in reader.tensors}
    infos, last = reader.tensors[0].field.offset, reader.tensors[-1].field
    head, start = last.offset + sum(part.nbytes for part in last.parts), reader.data_offset

    def check(records: list[TensorComparison]) -> None:
        assert [record.name for record in records] == list(places)
        data = path.read_bytes()
        assert len(data) == len(whole)
        assert data[4] in (2, 3)  # of the format: where the low byte comes first, the second version is the same
        assert data[:4] + data[5:head] == whole[:4] + whole[5:head]
        for record in records:
            source, shape = SHAPES[record.name]
            exact, piece = tensors[source].astype(np.float64), data[slice(*places[record.name])]
            error, bound = np.abs(decoded(piece, shape, kind) - exact), allowed(exact, kind)
            assert record.max_abs_error == pytest.approx(error.max())
            assert 0 <= record.max_allowed_error <= bound.max()
            assert record.values_beyond >= (error > bound).sum()
            assert record.values_beyond == 0 or piece != whole[slice(*places[record.name])]

    count = tally(lambda: compare(folder, path), check, [str(path)])
    for begin, end, number in ((0, 24, 100), (24, infos, 200), (infos, start, 350), (start, len(whole), 150)):
        part = byte_mutants(whole[begin:end], number, seed=begin)
        count.attempt_all(path, ((f"{begin}+ {what}", whole[:begin] + new + whole[end:]) for what, new in part))
    count.attempt_all(path, byte_mutants(whole, 50, seed=1))
    count.attempt_all(path, crafted(whole, places, kind))


@pytest.mark.slow
def test_gguf(folder: Path, tally: Maker) -> None:
    """A file in which no value is beyond its bound has the head of the exported one, and every value within bounds."""
    fuzz_gguf(folder, tally, "f16")
    fuzz_gguf(folder, tally, "q8_0")


@pytest.mark.parametrize(("size", "problem"), [(2**40, "more than 1048576 entries"), (2**20, "ends before")])
def test_an_endless_list(folder: Path, size: int, problem: str) -> None:
    """It is refused by its length, or at the end of the file, and not after so many entries of nothing."""
    path = folder.parent / "text.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + typed("x", 9, struct.pack("<IQ", 6, size)))
    with pytest.raises(LeverlabError, match=rf"text\.gguf is truncated or no GGUF file \(it .*{problem}"):
        compare(folder, path)


def test_a_checkpoint_with_a_value_too_large_for_the_type(folder: Path) -> None:
    """A step of 1e8 / 127 is beyond half precision, which leaves the values of the block without a bound."""
    path, tensors = folder.parent / "text.gguf", make_tensors()
    export_text(folder, path, "q8_0")
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e8
    (folder / "model.safetensors").write_bytes(save(tensors))
    beyond = {record.name: record.values_beyond for record in compare(folder, path) if record.values_beyond}
    assert beyond == {"blk.0.ffn_up.weight": 32}
