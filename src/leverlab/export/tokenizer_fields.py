"""GGUF's tokenizer fields from the tokenizer files of a hub checkpoint.

llama.cpp tokenizes with code of its own, chosen by name (`gpt2` with the pre-tokenizer `qwen2`). A tokenizer that
differs from it in any part that changes token ids is refused, because the exported model would read other tokens than
those that it learned.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from gguf import Keys, TokenType
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError
from tokenizers.pre_tokenizers import ByteLevel

from leverlab.errors import LeverlabError

# What llama.cpp does for `tokenizer.ggml.pre` = "qwen2" (src/llama-vocab.cpp).
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

Value = str | bool | int | float | list[str] | list[int] | list[float]
Token = Annotated[str, Field(min_length=1)]


class _Part(BaseModel):
    """A part of tokenizer.json; the keys that are left out change no token id."""

    model_config = ConfigDict(strict=True, extra="ignore")


class _Step(_Part):
    """A step of a normalizer, pre-tokenizer or post-processor, or a sequence of such steps."""

    type: str
    steps: list["_Step"] | None = Field(
        None, validation_alias=AliasChoices("pretokenizers", "normalizers", "processors")
    )
    pattern: Any = None
    behavior: Any = None
    invert: Any = None
    use_regex: bool = True
    add_prefix_space: bool = True
    single: list[dict[str, Any]] = []
    special_tokens: dict[str, Any] = {}


class _Added(_Part):
    """A token that is found in the text before it is split."""

    id: int
    content: Token
    special: bool
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False


class _Bpe(_Part):
    """The model of tokenizer.json."""

    type: str
    vocab: dict[Token, int] = {}
    merges: list[str | list[str]] = []
    ignore_merges: bool = False
    dropout: float | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None


class _Tokenizer(_Part):
    """The parts of tokenizer.json that change token ids."""

    model: _Bpe
    added_tokens: list[_Added]
    normalizer: _Step | None = None
    pre_tokenizer: _Step | None = None
    post_processor: _Step | None = None


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
    except (ValueError, RecursionError) as error:
        raise LeverlabError(f"{path} is not valid JSON ({error}); restore the checkpoint folder") from None
    if not isinstance(data, dict):
        raise LeverlabError(f"{path} must hold a JSON mapping, not {type(data).__name__}; restore the folder")
    return data


def tokenizer_fields(folder: Path, vocab_size: int) -> dict[str, Value]:
    """Return the `tokenizer.*` fields of GGUF for the checkpoint in `folder`.

    `vocab_size` is the number of rows of the token embedding; rows without a token get an unused `[PAD<id>]`. No BOS
    token is ever written. Raises `LeverlabError` when a file is missing or damaged, the tokenizer is not a byte-level
    BPE with the Qwen2 split, or a token, id or merge comes twice, is empty or does not fit the others.
    """
    where, settings = folder / "tokenizer.json", read_json(folder / "tokenizer_config.json")
    try:
        tokenizer = _Tokenizer.model_validate(read_json(where))
    except ValidationError as error:
        problem = error.errors()[0]
        raise LeverlabError(
            f"{where} is not a whole tokenizer (key '{'.'.join(map(str, problem['loc']))}': {problem['msg'].lower()}); "
            "save it again with transformers"
        ) from None
    _require_qwen2_bpe(tokenizer, where)
    ids = _ids(tokenizer, vocab_size, where)
    tokens = [f"[PAD{index}]" for index in range(vocab_size)]
    types = [int(TokenType.UNUSED)] * vocab_size
    for token, (index, kind) in ids.items():
        tokens[index], types[index] = token, int(kind)
    if len(set(tokens)) < vocab_size:
        raise LeverlabError(f"{where}: a token has the name [PAD<id>] of an unused row of the embedding; rename it")
    fields: dict[str, Value] = {
        Keys.Tokenizer.MODEL: "gpt2",
        Keys.Tokenizer.PRE: "qwen2",
        Keys.Tokenizer.LIST: tokens,
        Keys.Tokenizer.TOKEN_TYPE: types,
        Keys.Tokenizer.MERGES: _merges(tokenizer.model, where),
        Keys.Tokenizer.EOS_ID: _special_id("eos_token", settings, ids, folder),
        Keys.Tokenizer.ADD_BOS: False,
    }
    if settings.get("pad_token") is not None:
        fields[Keys.Tokenizer.PAD_ID] = _special_id("pad_token", settings, ids, folder)
    if template := _chat_template(folder, settings):
        fields[Keys.Tokenizer.CHAT_TEMPLATE] = template
    return fields


def _steps(component: _Step | None) -> Iterator[_Step]:
    """Yield the steps of a pipeline component of tokenizer.json, with its sequences laid flat."""
    if component is None:
        return
    if component.type == "Sequence" and component.steps is not None:
        for step in component.steps:
            yield from _steps(step)
    else:
        yield component


def _require_qwen2_bpe(tokenizer: _Tokenizer, where: Path) -> None:
    model = tokenizer.model
    pre_steps = list(_steps(tokenizer.pre_tokenizer))
    normalizers = {step.type for step in _steps(tokenizer.normalizer)}
    problems = {
        f"its model is {model.type}, not BPE": model.type != "BPE",
        "it is not byte-level": [step.type for step in pre_steps][-1:] != ["ByteLevel"],
        "it does not split text as Qwen2 does": [
            (step.type, step.pattern, step.behavior, step.invert) for step in pre_steps[:-1]
        ]
        != [("Split", {"Regex": QWEN2_SPLIT}, "Isolated", False)],
        "its byte-level step splits again or puts a space first": any(
            step.use_regex or step.add_prefix_space for step in pre_steps[-1:]
        ),
        "it ignores merges for whole words": model.ignore_merges,
        "it drops merges by chance": bool(model.dropout),
        "it marks the places of tokens in a word": bool(model.continuing_subword_prefix or model.end_of_word_suffix),
        f"it normalises text ({', '.join(sorted(normalizers))})": not normalizers <= {"NFC"},
        "it adds special tokens around a text": any(map(_adds_tokens, _steps(tokenizer.post_processor))),
        "an added token takes the spaces beside it or stands for whole words only": any(
            token.lstrip or token.rstrip or token.single_word for token in tokenizer.added_tokens
        ),
        "it has no merges": not model.merges,
        "some byte has no token": not set(ByteLevel.alphabet()) <= model.vocab.keys(),
    }
    for problem, present in problems.items():
        if present:
            raise LeverlabError(
                f"{where} cannot be exported to GGUF: {problem}; use a byte-level BPE tokenizer with the Qwen2 split"
            )


def _adds_tokens(step: _Step) -> bool:
    """Return whether a post-processor makes more of a text than its own tokens."""
    if step.type == "TemplateProcessing":
        return bool(step.special_tokens) or [list(piece) for piece in step.single] != [["Sequence"]]
    return step.type != "ByteLevel"


def _ids(tokenizer: _Tokenizer, vocab_size: int, where: Path) -> dict[str, tuple[int, TokenType]]:
    """Return the id and the GGUF type of every token."""
    ids = {token: (index, TokenType.NORMAL) for token, index in tokenizer.model.vocab.items()}
    for added in tokenizer.added_tokens:  # transformers lists them here alone, the tokenizers library in both places
        if ids.get(added.content, (added.id,))[0] != added.id:
            raise LeverlabError(f"{where}: token {added.content!r} has two ids; save it again with transformers")
        ids[added.content] = added.id, TokenType.CONTROL if added.special else TokenType.USER_DEFINED
    taken: dict[int, str] = {}
    for token, (index, _) in ids.items():
        if not 0 <= index < vocab_size:
            raise LeverlabError(
                f"{where}: token {token!r} has id {index}, but the model embeds ids 0..{vocab_size - 1} only; "
                "resize the model's embedding or use the tokenizer that it was trained with"
            )
        if taken.setdefault(index, token) != token:
            raise LeverlabError(
                f"{where}: tokens {taken[index]!r} and {token!r} share id {index}; save it again with transformers"
            )
    return ids


def _merges(model: _Bpe, where: Path) -> list[str]:
    """Return the merges as texts: two tokens with a space between them, which together are a token."""
    pairs = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model.merges]
    for index, pair in enumerate(pairs):
        if len(pair) != 2 or any(token not in model.vocab or " " in token for token in [*pair, "".join(pair)]):
            raise LeverlabError(
                f"{where}: merge {index} is {model.merges[index]!r}, not two tokens that make a third; save it again "
                "with transformers"
            )
    if len(set(pairs)) < len(pairs):
        raise LeverlabError(f"{where} holds a merge twice, so its rank is not clear; save it again with transformers")
    return [" ".join(pair) for pair in pairs]


def _special_id(role: str, settings: Mapping[str, Any], ids: Mapping[str, tuple[int, TokenType]], folder: Path) -> int:
    token = settings.get(role)
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str) or text not in ids:
        raise LeverlabError(
            f"{folder / 'tokenizer_config.json'}: {role} is {text!r}, which is no token of tokenizer.json; name one"
        )
    return ids[text][0]


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """Return the chat template from wherever transformers has kept it over the years, newest place first."""
    if (newest := folder / "chat_template.jinja").exists():
        return read_text(newest)
    where = folder / "tokenizer_config.json"
    if (older := folder / "chat_template.json").exists():
        where, settings = older, read_json(older)
        if settings.get("chat_template") is None:
            raise LeverlabError(f"{where} holds no chat_template; restore it, or move the file away")
    template = settings.get("chat_template")
    if template is None:
        return None
    if not isinstance(template, str):
        raise LeverlabError(
            f"{where}: chat_template is a {type(template).__name__}, and GGUF takes one text; "
            "save the one to use as chat_template.jinja"
        )
    if any("\ud800" <= letter <= "\udfff" for letter in template):
        raise LeverlabError(f"{where}: chat_template holds half a character (a lone surrogate); restore the file")
    return template
