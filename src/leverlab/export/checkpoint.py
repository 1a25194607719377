"""A hub-format checkpoint as an export sees it: its tensors by name, read one at a time, and its parts in GGUF's words.

Names and shapes are derived from `config.json` alone and the files are held against them, so a tensor too few, too many
or of another shape is an error here, and not a model that answers nonsense in llama.cpp.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from leverlab.errors import LeverlabError
from leverlab.export.tokenizer_fields import Value, read_json

Arrangement = Callable[[NDArray[np.float32]], NDArray[np.float32]]
STORED_TYPES = ("BF16", "F16", "F32")  # safetensors' names of what float32 holds without loss
VISION = "visual."  # where the vision part's tensors begin, behind `model.` in some files
_SHARD_NAME = re.compile(r"[A-Za-z0-9_.-]+\.safetensors")


class Stored(NamedTuple):
    """A tensor as a checkpoint stores it: file, full name, shape."""

    file: Path
    source: str
    shape: tuple[int, ...]


class Expected(NamedTuple):
    """A tensor of the GGUF file that config.json calls for, and what it is made of.

    source: the checkpoint's tensor, without the prefixes before its part. stored: that tensor's shape. shape: the shape
    in GGUF. arrange: from the one to the other, None when they are the same.
    """

    target: str
    source: str
    stored: tuple[int, ...]
    shape: tuple[int, ...]
    arrange: Arrangement | None = None

    @classmethod
    def plain(cls, target: str, source: str, shape: tuple[int, ...]) -> "Expected":
        """Return one that is stored as GGUF wants it."""
        return cls(target, source, shape, shape)


@dataclass(frozen=True)
class Tensor:
    """One tensor of a GGUF file: its shape there, where the checkpoint stores it, and how it is rearranged."""

    file: Path
    source: str
    shape: tuple[int, ...]
    arrange: Arrangement | None = None

    def load(self) -> NDArray[np.float32]:
        """Return the values in GGUF's order. Raises `LeverlabError` when one is NaN or infinite."""
        with _opened(self.file) as file:
            values: NDArray[np.float32] = file.get_tensor(self.source).to(torch.float32).numpy()
        if not np.isfinite(values).all():
            raise LeverlabError(f"{self.file}: {self.source} holds NaN or infinite values; use an earlier checkpoint")
        return values if self.arrange is None else np.ascontiguousarray(self.arrange(values))


@dataclass(frozen=True)
class Part:
    """What one GGUF file holds of a checkpoint: architecture, fields (in the order in which they are written) and
    tensors by their GGUF names."""

    architecture: str
    fields: dict[str, Value]
    tensors: dict[str, Tensor]


def mapping(keys: Any, name: str, where: Path) -> dict[str, Any]:
    """Return `keys` of a config file. Raises `LeverlabError` when they are no mapping."""
    if not isinstance(keys, dict):
        raise LeverlabError(f"{where}: {name} must be a mapping, not {keys!r:.50}; restore the checkpoint's config")
    return keys


def stored_tensors(folder: Path, vision: bool) -> dict[str, Stored]:
    """Return the tensors of the vision part, or those of the text part, by their names without prefixes.

    A text tensor is named as in a plain text model (`layers.0...`), one of the vision part as behind `visual.`.
    Raises `LeverlabError` when a file is missing, truncated or of a type that is not exported, and for a tensor that is
    stored twice.
    """
    tensors: dict[str, Stored] = {}
    for file in weight_files(folder):
        with _opened(file) as opened:
            for source in opened.keys():  # noqa: SIM118 - not a mapping
                name = source
                for prefix in ("model.", "language_model.", "model."):  # both orders exist in Qwen2.5-VL's files
                    name = name.removeprefix(prefix)
                if name.startswith(VISION) != vision:
                    continue
                name = name.removeprefix(VISION)
                if name in tensors:
                    raise LeverlabError(
                        f"{file}: {source} is also {tensors[name].source} of {tensors[name].file}; remove one of them"
                    )
                values = opened.get_slice(source)
                if values.get_dtype() not in STORED_TYPES:
                    raise LeverlabError(
                        f"{file}: {source} is of type {values.get_dtype()}, not {', '.join(STORED_TYPES)}; restore it"
                    )
                tensors[name] = Stored(file, source, tuple(values.get_shape()))
    return tensors


def match(expected: list[Expected], stored: Mapping[str, Stored], folder: Path) -> dict[str, Tensor]:
    """Return the tensors of the GGUF file. Raises `LeverlabError` for one missing, unexpected or of another shape."""
    wanted = {item.source for item in expected}
    if missing := wanted - stored.keys():
        raise LeverlabError(
            f"{folder} lacks {len(missing)} tensor(s) that config.json calls for, first {min(missing)}; "
            "restore the checkpoint"
        )
    if surplus := stored.keys() - wanted:
        raise LeverlabError(
            f"{folder} has {len(surplus)} tensor(s) that config.json does not call for, first {min(surplus)}; "
            "restore the checkpoint"
        )
    tensors = {}
    for item in expected:
        found = stored[item.source]
        if found.shape != item.stored:
            raise LeverlabError(
                f"{found.file}: {found.source} has shape {found.shape}, not the {item.stored} of config.json; restore "
                "the checkpoint"
            )
        tensors[item.target] = Tensor(found.file, found.source, item.shape, item.arrange)
    return tensors


def check_layers(layers: int, stored: Mapping[str, Stored], folder: Path) -> None:
    """Raise `LeverlabError` for more layers than tensors, before anything is made for each of them."""
    if layers > len(stored):
        raise LeverlabError(
            f"{folder} holds {len(stored)} tensor(s) of this part, too few for the {layers} layers of its config.json; "
            "restore the checkpoint"
        )


def weight_files(folder: Path) -> Iterator[Path]:
    """Yield the safetensors files of a checkpoint, in order; that they exist is not checked.

    Raises `LeverlabError` when its index is damaged, or names a file that does not lie beside it.
    """
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        yield folder / "model.safetensors"
        return
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise LeverlabError(f"{index} names no shards under 'weight_map'; restore the checkpoint")
    for name in shards.values():
        if not isinstance(name, str) or not _SHARD_NAME.fullmatch(name):
            raise LeverlabError(f"{index}: shard {name!r:.80} is no safetensors file beside it; restore the index")
    for name in sorted(set(shards.values())):
        yield folder / name


def _opened(file: Path) -> Any:
    """Return the safetensors file, open for reading single tensors (a context manager)."""
    try:
        return safe_open(file, framework="pt")
    except FileNotFoundError:
        raise LeverlabError(f"{file} does not exist; restore the missing part of the checkpoint") from None
    except (OSError, SafetensorError) as error:
        raise LeverlabError(f"{file} is truncated or damaged ({error}); restore the checkpoint") from None


def unread(error: ValidationError, where: Path, what: str) -> LeverlabError:
    """Return what to say of a config that pydantic refuses; `what` has the key that is wrong."""
    problem = error.errors()[0]
    return LeverlabError(
        f"{where}: key '{'.'.join(map(str, problem['loc']))}' of {what} is {problem['msg'].lower()}; restore the "
        "checkpoint's config"
    )
