"""The tokenizer of an exported text file, from its fields alone: neither torch nor transformers."""

from pathlib import Path

from gguf import Keys, TokenType
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

from leverlab.errors import LeverlabError
from leverlab.export.gguf_file import checked, read_gguf
from leverlab.export.tokenizer_fields import QWEN2_SPLIT
from leverlab.text_tokens import TextTokens


class TokenizerFields(BaseModel):
    """The fields of a text file that say how a text becomes tokens."""

    model_config = ConfigDict(strict=True, extra="ignore")

    model: str = Field(alias=Keys.Tokenizer.MODEL)
    split: str = Field(alias=Keys.Tokenizer.PRE)
    tokens: list[str] = Field(alias=Keys.Tokenizer.LIST)
    types: list[int] = Field(alias=Keys.Tokenizer.TOKEN_TYPE)
    merges: list[str] = Field(alias=Keys.Tokenizer.MERGES)


def read_text_tokens(path: Path) -> TextTokens:
    """Return the tokens of a GGUF file. Raises `LeverlabError` when it is missing or damaged, or has no tokenizer that
    is known here."""
    return text_tokens(checked(TokenizerFields, read_gguf(path)[0], path), path)


def text_tokens(fields: TokenizerFields, path: Path) -> TextTokens:
    """Return the byte-level BPE tokens with the Qwen2 split that the fields describe. Text is not normalised, as in
    llama.cpp. Raises `LeverlabError` when the fields describe another tokenizer, or do not fit each other."""
    ids = {token: index for index, token in enumerate(fields.tokens)}
    problems = {
        f"its tokenizer is {fields.model!r} with the split {fields.split!r}, not 'gpt2' with 'qwen2'": (
            (fields.model, fields.split) != ("gpt2", "qwen2")
        ),
        "it has a token twice": len(ids) != len(fields.tokens),
        f"it has {len(fields.tokens)} tokens and {len(fields.types)} types": len(fields.types) != len(fields.tokens),
        "some byte has no token": not set(pre_tokenizers.ByteLevel.alphabet()) <= ids.keys(),
    }
    for problem, present in problems.items():
        if present:
            raise LeverlabError(f"{path} cannot tokenize text: {problem}; export the checkpoint again")
    try:
        tokenizer = Tokenizer(
            models.BPE(ids, [(left, right) for left, right in (merge.split(" ") for merge in fields.merges)])
        )
    except Exception as error:  # the library knows Exception alone: a merge of what is no token
        raise LeverlabError(f"{path} cannot tokenize text: a merge is not sound ({error}); export again") from None
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    # those that llama.cpp finds in a text before it splits it
    tokenizer.add_tokens(
        [
            AddedToken(token, normalized=False, special=kind == TokenType.CONTROL)
            for token, kind in zip(fields.tokens, fields.types, strict=True)
            if kind in (TokenType.CONTROL, TokenType.USER_DEFINED)
        ]
    )
    return TextTokens(tokenizer)
