"""The small files of a checkpoint folder in the hub's format, in every layout that transformers has written.

Loading and exporting read a checkpoint by these functions, so that both see the same image processor, chat template and
tokenizer, as transformers' own processor classes do.
"""

import json
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from leverlab.errors import LeverlabError
from leverlab.library_errors import reason_of

PIXEL_LIMITS = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}  # those of Qwen2-VL's image processor
_SHARD_NAME = re.compile(r"[A-Za-z0-9_.-]+\.safetensors")


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file of a checkpoint. Raises `LeverlabError` when it is missing or damaged."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise LeverlabError(f"{path} does not exist; restore the checkpoint folder (the hub's format)") from None
    except (OSError, UnicodeDecodeError) as error:
        raise LeverlabError(f"{path} cannot be read ({error}); restore the checkpoint folder") from None


def read_json(path: Path) -> dict[str, Any]:
    """Return the mapping in a JSON file. Raises `LeverlabError` when it is missing, damaged or no mapping."""
    try:
        data = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise LeverlabError(f"{path} is not valid JSON ({error}); restore the checkpoint folder") from None
    if not isinstance(data, dict):
        raise LeverlabError(f"{path} must hold a JSON mapping, not {type(data).__name__}; restore the folder")
    return data


def image_processor_keys(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the image processor's settings and the file that has them.

    The newest place first: the key `image_processor` of processor_config.json, then preprocessor_config.json. The
    limits of the image size are under `size` (`shortest_edge`, `longest_edge`; in pixels of area), wherever the file
    has them (`min_pixels` and `max_pixels` count before `size`). Raises `LeverlabError` when neither file has an image
    processor, or it is no mapping.
    """
    where = folder / "processor_config.json"
    keys = read_json(where).get("image_processor") if where.exists() else None
    if keys is None:
        where = folder / "preprocessor_config.json"
        if not where.exists():
            raise LeverlabError(
                f"{folder} has no image processor; restore its preprocessor_config.json (or processor_config.json with "
                "the key 'image_processor')"
            )
        keys = read_json(where)
    if not isinstance(keys, dict):
        raise LeverlabError(f"{where}: image_processor must be a mapping, not {keys!r:.50}; restore the file")
    limits = {"shortest_edge": "min_pixels", "longest_edge": "max_pixels"}
    size = PIXEL_LIMITS if keys.get("size") is None else keys["size"]
    if isinstance(size, dict):
        by_name = {edge: keys[name] for edge, name in limits.items() if keys.get(name) is not None}
        size = {key: value for key, value in size.items() if key not in limits.values()} | by_name
    return where, {key: value for key, value in keys.items() if key not in limits.values()} | {"size": size}


def chat_template(folder: Path) -> str | None:
    """Return the chat template (Jinja), or None where the checkpoint has none.

    It is that of the processor (chat_template.jinja, chat_template.json, or the key `chat_template` of
    processor_config.json), else the tokenizer's in tokenizer_config.json. Raises `LeverlabError` when a file is
    damaged, has several templates or no text, and when two files of the processor have different templates: tools
    differ in which of them they take.
    """
    found: dict[Path, Any] = {}
    if (jinja := folder / "chat_template.jinja").exists():
        found[jinja] = read_text(jinja)
    if (legacy := folder / "chat_template.json").exists():
        found[legacy] = read_json(legacy).get("chat_template")
        if found[legacy] is None:
            raise LeverlabError(f"{legacy} holds no chat_template; restore it, or move the file away")
    for name in ("processor_config.json", "tokenizer_config.json"):
        where = folder / name
        template = read_json(where).get("chat_template") if where.exists() else None
        if template is not None and not (found and name.startswith("tokenizer")):
            found[where] = template
    for where, template in found.items():
        _check_template(where, template)
    if len(set(found.values())) > 1:
        names = " and ".join(where.name for where in found)
        raise LeverlabError(f"{folder} has different chat templates in {names}; keep one of them")
    return next(iter(found.values()), None)


def _check_template(where: Path, template: Any) -> None:
    if not isinstance(template, str):
        raise LeverlabError(
            f"{where}: chat_template is a {type(template).__name__}, where one text is needed; "
            "save the one to use as chat_template.jinja"
        )
    if any("\ud800" <= letter <= "\udfff" for letter in template):
        raise LeverlabError(f"{where}: chat_template holds half a character (a lone surrogate); restore the file")


def tokenizer_json(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the tokenizer in the words of tokenizer.json, and the file that it comes from.

    A folder of older days has vocab.json and merges.txt in its place. They do not say how a text is split; the
    tokenizer class does, so only Qwen2's is read. Raises `LeverlabError` when a file is missing or damaged, or the
    class is another.
    """
    where = folder / "tokenizer.json"
    if where.exists():
        return where, read_json(where)
    where = folder / "vocab.json"
    if not where.exists() or not (folder / "merges.txt").exists():
        raise LeverlabError(f"{folder} has no tokenizer; restore its tokenizer.json (or vocab.json and merges.txt)")
    name = read_json(folder / "tokenizer_config.json").get("tokenizer_class")
    if name not in ("Qwen2Tokenizer", "Qwen2TokenizerFast"):
        raise LeverlabError(
            f"{where} belongs to a {name}, which does not say how text is split; save the tokenizer again with "
            "transformers, which writes tokenizer.json"
        )
    from transformers import Qwen2Tokenizer  # only here: GGUF files are read where there is no transformers

    try:
        tokenizer: Any = Qwen2Tokenizer.from_pretrained(folder)
    except Exception as error:  # two libraries raise errors of many kinds here
        problem = reason_of(error)
        raise LeverlabError(f"{where} and merges.txt are no tokenizer ({problem}); restore them") from None
    return where, json.loads(tokenizer.backend_tokenizer.to_str())


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of the checkpoint: one, or the shards that its index names.

    The one file counts where both are there, as for transformers. Raises `LeverlabError` when the index is damaged, or
    names a file that is not beside it, and when the config names the weights: transformers would load those. Whether
    the files exist is for `open_weights` to find.
    """
    config = folder / "config.json"
    if config.exists() and (named := read_json(config).get("transformers_weights")) is not None:
        raise LeverlabError(
            f"{config} names its weights ({named!r:.80} as transformers_weights), which is not supported; remove the "
            "key, and name the files as the hub does"
        )
    index = folder / "model.safetensors.index.json"
    if (whole := folder / "model.safetensors").exists() or not index.exists():
        return [whole]
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise LeverlabError(f"{index} names no shards under 'weight_map'; restore the checkpoint")
    for name in shards.values():
        if not isinstance(name, str) or not _SHARD_NAME.fullmatch(name):
            raise LeverlabError(f"{index}: shard {name!r:.80} is no safetensors file beside it; restore the index")
    return [folder / name for name in sorted(set(shards.values()))]


def open_weights(file: Path) -> Any:
    """Return the safetensors file, open for reading single tensors with torch (a context manager).

    Raises `LeverlabError` when it is missing, truncated or damaged.
    """
    try:
        return safe_open(file, framework="pt")
    except FileNotFoundError:
        raise LeverlabError(f"{file} does not exist; restore the missing part of the checkpoint") from None
    except (OSError, SafetensorError) as error:
        raise LeverlabError(f"{file} is truncated or damaged ({error}); restore the checkpoint") from None
