"""GGUF's tokenizer fields from the tokenizer files of a hub checkpoint.

llama.cpp tokenizes with code of its own, chosen by name (`gpt2` with the pre-tokenizer `qwen2`). A tokenizer that
differs from it in any part that changes token ids is refused, because the exported model would read other tokens than
those that it learned.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gguf import Keys, TokenType
from tokenizers.pre_tokenizers import ByteLevel

from leverlab.errors import LeverlabError

# What llama.cpp does for `tokenizer.ggml.pre` = "qwen2" (src/llama-vocab.cpp).
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

Value = str | bool | int | float | list[str] | list[int]


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file of a checkpoint. Raises `LeverlabError` when it is missing or damaged."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise LeverlabError(f"{path} does not exist; export needs a complete folder in the hub's format") from None
    except (OSError, UnicodeDecodeError) as error:
        raise LeverlabError(f"{path} cannot be read ({error}); restore the checkpoint folder") from None


def read_json(path: Path) -> dict[str, Any]:
    """Return the mapping that a JSON file holds. Raises `LeverlabError` when it is missing, damaged or no mapping."""
    try:
        data = json.loads(read_text(path))
    except ValueError as error:
        raise LeverlabError(f"{path} is not valid JSON ({error}); restore the checkpoint folder") from None
    if not isinstance(data, dict):
        raise LeverlabError(f"{path} must hold a JSON mapping, not {type(data).__name__}; restore the folder")
    return data


def tokenizer_fields(folder: Path, vocab_size: int) -> dict[str, Value]:
    """Return the `tokenizer.*` fields of GGUF for the checkpoint in `folder`.

    `vocab_size` is the number of rows of the token embedding; rows without a token get an unused `[PAD<id>]`. No BOS
    token is ever written. Raises `LeverlabError` when a file is missing or damaged, or the tokenizer is not a
    byte-level BPE with the Qwen2 split.
    """
    tokenizer, settings = read_json(folder / "tokenizer.json"), read_json(folder / "tokenizer_config.json")
    where = folder / "tokenizer.json"
    try:
        _require_qwen2_bpe(tokenizer, where)
        tokens, types = _tokens(tokenizer, vocab_size, where)
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise LeverlabError(f"{where} is not a whole tokenizer ({error!r}); save it again with transformers") from None
    fields: dict[str, Value] = {
        Keys.Tokenizer.MODEL: "gpt2",
        Keys.Tokenizer.PRE: "qwen2",
        Keys.Tokenizer.LIST: tokens,
        Keys.Tokenizer.TOKEN_TYPE: types,
        Keys.Tokenizer.MERGES: merges,
        Keys.Tokenizer.EOS_ID: _special_id("eos_token", settings, tokens, folder),
        Keys.Tokenizer.ADD_BOS: False,
    }
    if settings.get("pad_token") is not None:
        fields[Keys.Tokenizer.PAD_ID] = _special_id("pad_token", settings, tokens, folder)
    if template := _chat_template(folder, settings):
        fields[Keys.Tokenizer.CHAT_TEMPLATE] = template
    return fields


def _steps(component: Mapping[str, Any] | None, inner: str) -> Iterator[Mapping[str, Any]]:
    """Yield the steps of a pipeline component of tokenizer.json, with its sequences laid flat."""
    if component is None:
        return
    if component["type"] == "Sequence":
        for step in component[inner]:
            yield from _steps(step, inner)
    else:
        yield component


def _require_qwen2_bpe(tokenizer: Mapping[str, Any], where: Path) -> None:
    model = tokenizer["model"]
    pre_steps = list(_steps(tokenizer.get("pre_tokenizer"), "pretokenizers"))
    normalizers = {step["type"] for step in _steps(tokenizer.get("normalizer"), "normalizers")}
    adds_tokens = any(step.get("special_tokens") for step in _steps(tokenizer.get("post_processor"), "processors"))
    problems = {
        f"its model is {model['type']}, not BPE": model["type"] != "BPE",
        "it is not byte-level": [step["type"] for step in pre_steps][-1:] != ["ByteLevel"],
        "it does not split text as Qwen2 does": [
            (step.get("pattern"), step.get("behavior"), step.get("invert")) for step in pre_steps[:-1]
        ]
        != [({"Regex": QWEN2_SPLIT}, "Isolated", False)],
        "its byte-level step splits again or puts a space first": any(
            step.get("use_regex", True) or step.get("add_prefix_space", True) for step in pre_steps[-1:]
        ),
        "it ignores merges for whole words": bool(model.get("ignore_merges")),
        f"it normalises text ({', '.join(sorted(normalizers))})": not normalizers <= {"NFC"},
        "it adds special tokens around a text": adds_tokens,
        "it has no merges": not model.get("merges"),
        "some byte has no token": not set(ByteLevel.alphabet()) <= set(model.get("vocab", ())),
    }
    for problem, present in problems.items():
        if present:
            raise LeverlabError(
                f"{where} cannot be exported to GGUF: {problem}; use a byte-level BPE tokenizer with the Qwen2 split"
            )


def _tokens(tokenizer: Mapping[str, Any], vocab_size: int, where: Path) -> tuple[list[str], list[int]]:
    """Return the text and the GGUF type of every token id, `vocab_size` of each."""
    tokens = [f"[PAD{index}]" for index in range(vocab_size)]
    types = [int(TokenType.UNUSED)] * vocab_size
    entries = [(index, token, TokenType.NORMAL) for token, index in tokenizer["model"]["vocab"].items()]
    entries += [
        (added["id"], added["content"], TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED)
        for added in tokenizer["added_tokens"]
    ]
    for index, token, kind in entries:
        if not 0 <= index < vocab_size:
            raise LeverlabError(
                f"{where}: token {token!r} has id {index}, but the model embeds ids 0..{vocab_size - 1} only; "
                "resize the model's embedding or use the tokenizer that it was trained with"
            )
        tokens[index], types[index] = token, int(kind)
    return tokens, types


def _special_id(role: str, settings: Mapping[str, Any], tokens: list[str], folder: Path) -> int:
    token = settings.get(role)
    text = token.get("content") if isinstance(token, dict) else token
    if text not in tokens:
        raise LeverlabError(
            f"{folder / 'tokenizer_config.json'}: {role} is {text!r}, which is no token of tokenizer.json; name one"
        )
    return tokens.index(text)


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """Return the chat template from wherever transformers has kept it over the years, newest place first."""
    if (newest := folder / "chat_template.jinja").exists():
        return read_text(newest)
    if (older := folder / "chat_template.json").exists():
        settings = read_json(older)
    template = settings.get("chat_template")
    if template is not None and not isinstance(template, str):
        raise LeverlabError(
            f"{folder} holds several chat templates and GGUF takes one; save the one to use as chat_template.jinja"
        )
    return template
