"""Users' text as tokens: text stays text, whatever it spells.

A tokenizer looks for its control tokens (`<|im_end|>`, `<|image_pad|>`, `<think>`) everywhere, in users' text too,
where they end a turn or ask for an image. Here only those that the chat template writes become control tokens: a copy
of the tokenizer knows each of them by a secret name, and what a user wrote is left to the ordinary vocabulary.
Everything else is the tokenizer's own (normalisation, split, merges across the border of template and text), so
ordinary text has the same tokens as without this module.
"""

import json
import re
import secrets
from bisect import bisect_right
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Tokenizer

from leverlab.errors import LeverlabError


@dataclass(frozen=True)
class Encoded:
    """Tokens of a prompt, and for each of them where it begins and ends in the prompt, in characters."""

    ids: list[int]
    spans: list[tuple[int, int]]


@dataclass(frozen=True)
class _Piece:
    """A part of a prompt: where it begins there and in what is tokenised, and its length there if it was rewritten."""

    begin: int
    written: int
    rewritten: int | None


class TextTokens:
    """Tokenises users' texts, and prompts that a chat template wrote around them.

    controls: text → id of the control tokens: all special tokens, and the added tokens that are neither a word nor
    white space. An added word is vocabulary, and is found in users' text.
    """

    def __init__(self, tokenizer: Tokenizer):
        """Copy `tokenizer`, which must not add tokens later."""
        added = tokenizer.get_added_tokens_decoder()
        self.controls = {token.content: id_ for id_, token in added.items() if token.special or not _is_word(token)}
        secret = secrets.token_hex(16)  # no text can spell what is drawn when the program runs
        self._names = {content: f"<{secret}:{id_}>" for content, id_ in self.controls.items()}
        self._mark = f"\ufdd0{secret};{{}};"
        self._control = re.compile(_any_of(self.controls))
        self._rewritten = re.compile(f"{self._mark.format('([0-9]+)')}|{_any_of(self.controls)}")
        settings = json.loads(tokenizer.to_str())
        self._copy, self._ids = _renamed(settings, added, self._names)
        unknown = tokenizer.token_to_id(settings["model"].get("unk_token") or "")  # any text may give it
        self._control_ids = frozenset(self.controls.values()) - {unknown, settings["model"].get("unk_id")}

    @classmethod
    def of(cls, tokenizer: Any) -> "TextTokens":
        """Return those of a tokenizer of transformers. Raises `LeverlabError` when it is a slow one."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
            raise LeverlabError(
                f"{name} has no fast tokenizer, so control tokens cannot be kept out of texts; use a checkpoint with a "
                "tokenizer.json"
            )
        return cls(backend)

    def control_in(self, text: str, keep: Collection[str] = ()) -> str | None:
        """Return the first control token that `text` spells, other than those of `keep`; None if there is none."""
        return next((found[0] for found in self._control.finditer(text) if found[0] not in keep), None)

    def marked(self, text: str, keep: Collection[str] = ()) -> str:
        """Return a user's `text` as a chat template must be given it, so that `encode` reads it as text.

        It differs from `text` only where that spells a control token. keep: those that stay control tokens.
        """
        if self.control_in(text, keep) is None:
            return text
        others = [control for control in self.controls if control not in keep]
        # the first character of each, of overlapping ones too
        return re.sub(f"(?={_any_of(others)}).", lambda found: self._mark.format(ord(found[0])), text, flags=re.DOTALL)

    def unmarked(self, prompt: str) -> str:
        """Return a prompt for people to read: `marked` texts in it as their users wrote them."""
        return self._rewritten.sub(lambda found: chr(int(found[1])) if found[1] else found[0], prompt)

    def ids(self, text: str) -> list[int]:
        """Return the tokens of a user's text on its own."""
        return self.encode(self.marked(text)).ids

    def encode(self, prompt: str) -> Encoded:
        """Return the tokens of a prompt that a chat template wrote around `marked` texts.

        Raises `LeverlabError` when the tokenizer does not tell the template's control tokens from texts.
        """
        written, pieces, end, controls = "", [], 0, 0
        for found in self._rewritten.finditer(prompt):
            pieces.append(_Piece(end, len(written), None))
            written += prompt[end : found.start()]
            pieces.append(_Piece(found.start(), len(written), len(found[0])))
            written += chr(int(found[1])) if found[1] else self._names[found[0]]
            controls += not found[1] and self.controls[found[0]] in self._control_ids
            end = found.end()
        pieces.append(_Piece(end, len(written), None))
        encoding = self._copy.encode(written + prompt[end:], add_special_tokens=False)
        ids = [self._ids.get(token, token) for token in encoding.ids]
        if sum(token in self._control_ids for token in ids) != controls:
            raise LeverlabError(
                f"the tokenizer reads other control tokens than the {controls} of the template in "
                f"{self.unmarked(prompt)!r:.200}; its vocabulary has control tokens that texts can spell: use another "
                "checkpoint, or change the text"
            )
        return Encoded(ids, [_in_prompt(pieces, *span) for span in encoding.offsets])


def _in_prompt(pieces: list[_Piece], begin: int, end: int) -> tuple[int, int]:
    """Return a span of the prompt from one of what was tokenised."""
    first = pieces[bisect_right(pieces, begin, key=lambda piece: piece.written) - 1]
    start = first.begin if first.rewritten else first.begin + begin - first.written
    if end <= begin:
        return start, start
    last = pieces[bisect_right(pieces, end - 1, key=lambda piece: piece.written) - 1]
    return start, last.begin + (last.rewritten or end - last.written)


def _renamed(
    settings: dict[str, Any], added: dict[int, AddedToken], names: dict[str, str]
) -> tuple[Tokenizer, dict[int, int]]:
    """Return the tokenizer of tokenizer.json's `settings` with other names for its added tokens, and a map from the
    ids that these have in it to their own."""
    model = settings["model"]
    if model["type"] == "Unigram":  # which finds any piece of its vocabulary in a text
        model = model | {"vocab": [[names.get(piece, piece), score] for piece, score in model["vocab"]]}
    settings = settings | {"model": model, "added_tokens": [], "padding": None, "truncation": None}
    copy = Tokenizer.from_str(json.dumps(settings))
    tokens = {id_: _named(token, names.get(token.content, token.content)) for id_, token in added.items()}
    copy.add_tokens(list(tokens.values()))
    ids = {copy.token_to_id(token.content): id_ for id_, token in tokens.items()}
    return copy, {own: id_ for own, id_ in ids.items() if own is not None}


def _named(token: AddedToken, content: str) -> AddedToken:
    return AddedToken(
        content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=token.special,
    )


def _is_word(token: AddedToken) -> bool:
    """Whether an added token is a word, or white space."""
    content = token.content
    return content.isspace() or (content[0].isalnum() and content[-1].isalnum())


def _any_of(texts: Iterable[str]) -> str:
    """Return a pattern for any of `texts`, the longest first, as tokenizers search for them."""
    found = sorted(texts, key=len, reverse=True)
    return f"(?:{'|'.join(map(re.escape, found))})" if found else "(?!)"
