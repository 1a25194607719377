"""What `compare` reads of a GGUF file that was exported: its head, its fields, its tensors."""

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import pytest
from safetensors.numpy import save

from leverlab.config.gguf import Kind
from leverlab.errors import LeverlabError
from leverlab.export.gguf import TensorComparison, compare, export_text, export_vision
from tests.fuzz.conftest import Tally
from tests.fuzz.mutations import byte_mutants
from tests.fuzz.tiny_text import SHAPES, make_tensors, write_checkpoint
from tests.fuzz.tiny_vision import make_vision, write_vision_checkpoint

Maker = Callable[..., Tally]

pytestmark = pytest.mark.filterwarnings("error")


class Names(NamedTuple):
    """Fields and tensors of a part that are damaged on purpose."""

    count: str
    flag: str
    norms: tuple[str, str]  # whose values are alike


TEXT = Names("qwen2vl.block_count", "tokenizer.ggml.add_bos_token", ("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight"))
VISION = Names("clip.vision.block_count", "clip.use_silu", ("v.blk.0.ln1.weight", "v.blk.0.ln2.weight"))


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


def crafted(whole: bytes, places: dict[str, tuple[int, int]], kind: Kind, names: Names) -> Iterator[tuple[str, bytes]]:
    """Yield files that chance would not hit on: other types, endless and nested lists, tensors that overlap."""
    key = names.count.encode()
    at = whole.index(key) + len(key)
    for other in (5, 6, 10, 11):
        yield f"{names.count} of type {other}", whole[:at] + struct.pack("<I", other) + whole[at + 4 :]
    key = names.flag.encode()
    at = whole.index(key) + len(key)
    for other in (0, 1):
        yield f"{names.flag} of type {other}", whole[:at] + struct.pack("<I", other) + whole[at + 4 :]
    head = whole[:16] + struct.pack("<Q", int.from_bytes(whole[16:24], "little") + 1)
    for item in (0, 4, 8, 9, 12):
        for size in (2**31, 2**60, 2**64 - 1):
            yield f"{size} of type {item}", head + typed("x", 9, struct.pack("<IQ", item, size)) + whole[24:]
    yield "lists in lists", head + typed("x", 9, struct.pack("<IQ", 9, 1) * 3000) + whole[24:]
    for count in (2**31, 2**63, 2**64 - 1):
        yield f"{count} tensors", whole[:8] + struct.pack("<Q", count) + whole[16:]
        yield f"{count} fields", whole[:16] + struct.pack("<Q", count) + whole[24:]
    info = {name: whole.index(struct.pack("<Q", len(name)) + name.encode()) + 8 + len(name) for name in places}
    for name in places:
        dims = int.from_bytes(whole[info[name] : info[name] + 4], "little")
        at = info[name] + 4 + 8 * dims
        for size in (0, 2**31, 2**63, 2**64 - 1):
            yield f"{name} {size} wide", whole[: info[name] + 4] + struct.pack("<Q", size) + whole[info[name] + 12 :]
            yield f"{name} at {size}", whole[: at + 4] + struct.pack("<Q", size) + whole[at + 12 :]
        yield f"{name} of {2**30} dimensions", whole[: info[name]] + struct.pack("<I", 2**30) + whole[info[name] + 4 :]
    left, right = (info[name] + 16 for name in names.norms)
    yield "two norms in one place", whole[:left] + whole[right : right + 8] + whole[left + 8 :]
    if kind == "q8_0":
        at = places["blk.0.ffn_up.weight"][0]
        for scale in (1.0, -1.0, 1e4, np.inf, np.nan, 0.0):
            block = np.float16(scale).tobytes()
            yield f"zeros of scale {scale}", whole[:at] + block + bytes(32) + whole[at + 34 :]
            yield f"scale {scale}", whole[:at] + block + whole[at + 2 :]
            yield f"ones of scale {scale}", whole[:at] + block + b"\x01" * 32 + whole[at + 34 :]


def placed(reader: gguf.GGUFReader) -> dict[str, tuple[int, int]]:
    return {tensor.name: (tensor.data_offset, tensor.data_offset + tensor.n_bytes) for tensor in reader.tensors}


def checker(path: Path, wanted: dict[str, Any], kind: Kind) -> Callable[[list[TensorComparison]], None]:
    """Return a check of what was said of `path`, which is sound now and holds the tensors `wanted`."""
    whole, reader = path.read_bytes(), gguf.GGUFReader(path)
    places, last = placed(reader), reader.tensors[-1].field
    head = last.offset + sum(part.nbytes for part in last.parts)

    def check(records: list[TensorComparison]) -> None:
        assert [record.name for record in records] == list(places)
        data = path.read_bytes()
        assert len(data) == len(whole)
        assert data[4] in (2, 3)  # of the format: where the low byte comes first, the second version is the same
        assert data[:4] + data[5:head] == whole[:4] + whole[5:head]
        for record in records:
            exact, piece = wanted[record.name].astype(np.float64), data[slice(*places[record.name])]
            error, bound = np.abs(decoded(piece, exact.shape, kind) - exact), allowed(exact, kind)
            assert record.shape == exact.shape
            assert record.max_abs_error == pytest.approx(error.max())
            assert 0 <= record.max_allowed_error <= bound.max()
            assert record.values_beyond >= (error > bound).sum()
            assert record.values_beyond == 0 or piece != whole[slice(*places[record.name])]

    return check


def fuzz_text(folder: Path, tally: Maker, kind: Kind) -> None:
    path, tensors = folder.parent / f"{kind}.gguf", make_tensors()
    export_text(folder, path, kind)
    wanted = {name: tensors[source] for name, (source, _) in SHAPES.items()}
    fuzz_gguf(path, tally(lambda: compare(folder, path), checker(path, wanted, kind), [str(path)]), kind, TEXT)


def fuzz_gguf(path: Path, count: Tally, kind: Kind, names: Names) -> None:
    whole, reader = path.read_bytes(), gguf.GGUFReader(path)
    places = placed(reader)
    infos, start = reader.tensors[0].field.offset, reader.data_offset
    for begin, end, number in ((0, 24, 100), (24, infos, 200), (infos, start, 350), (start, len(whole), 150)):
        part = byte_mutants(whole[begin:end], number, seed=begin)
        count.attempt_all(path, ((f"{begin}+ {what}", whole[:begin] + new + whole[end:]) for what, new in part))
    count.attempt_all(path, byte_mutants(whole, 50, seed=1))
    count.attempt_all(path, crafted(whole, places, kind, names))


@pytest.mark.slow
def test_gguf(folder: Path, tally: Maker) -> None:
    """A file in which no value is beyond its bound has the head of the exported one, and every value within bounds."""
    fuzz_text(folder, tally, "f16")
    fuzz_text(folder, tally, "q8_0")


def flags_and_colours(whole: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield files with other fields that the text part has none of: true flags, and lists of floats."""
    for key in ("clip.use_silu", "clip.has_vision_encoder"):
        at = whole.index(key.encode()) + len(key) + 4
        yield f"{key} false", whole[:at] + b"\0" + whole[at + 1 :]
    for key in ("clip.vision.image_mean", "clip.vision.image_std"):
        at = whole.index(key.encode()) + len(key)
        for value in (0.0, np.nan, np.inf, 0.5):
            for place in range(3):
                start = at + 16 + 4 * place  # behind the types of list and entry, and the length
                yield f"{key}[{place}] {value}", whole[:start] + struct.pack("<f", value) + whole[start + 4 :]
        for entry in (4, 5):
            yield f"{key} of type {entry}", whole[: at + 4] + struct.pack("<I", entry) + whole[at + 8 :]


@pytest.mark.slow
def test_vision_gguf(tmp_path: Path, tally: Maker) -> None:
    """The same of the vision part's file, whose tensors are rows and frames of the checkpoint's."""
    folder, path = tmp_path / "checkpoint", tmp_path / "mmproj.gguf"
    write_vision_checkpoint(folder)
    export_vision(folder, path)
    whole, places = path.read_bytes(), placed(gguf.GGUFReader(path))
    count = tally(lambda: compare(folder, path, "vision"), checker(path, make_vision()[1], "f16"), [str(path)])
    fuzz_gguf(path, count, "f16", VISION)
    count.attempt_all(path, flags_and_colours(whole))
    data = byte_mutants(whole[min(places.values())[0] :], 800, seed=2)
    count.attempt_all(path, ((what, whole[: min(places.values())[0]] + new) for what, new in data))


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
