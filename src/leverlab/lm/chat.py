"""How dialogues become tokens: by the chat template of the tokenizer, piece by piece.

A dialogue that grows turn by turn must keep the tokens that it has, or the cache of keys and values, the mask of the
policy's tokens and their log-probabilities belong to another text. Templates do not promise that (those of Qwen3 take
earlier thoughts out again), so a template is asked once for what stands between two turns, and that is put in between.

Questions and replies stay text, whatever control token they spell; so does a turn of the policy, but for its tags.
"""

from typing import Any

from leverlab.errors import LeverlabError
from leverlab.lm.turns import MARKUP
from leverlab.text_tokens import TextTokens

_THINK = "<think>"
_TURN, _REPLY = "the-turn-of-the-policy", "the-reply-of-the-user"


class Chat:
    """The pieces of dialogues for one tokenizer. opened: the template begins each turn with an open think tag."""

    def __init__(self, tokenizer: Any):
        """Ask the template for its pieces. Raises `LeverlabError` when there is none, or when it cannot be cut."""
        name = getattr(tokenizer, "name_or_path", "") or "the tokenizer"
        if not tokenizer.chat_template:
            raise LeverlabError(f"{name} has no chat template; use an instruction-tuned model, or give it one")
        if tokenizer.eos_token_id is None or tokenizer.pad_token_id is None:
            raise LeverlabError(f"{name} has no token for the end of a turn, or none for padding; set both")
        self._text_tokens = TextTokens.of(tokenizer)
        self.tokenizer, self.eos, self.pad = tokenizer, int(tokenizer.eos_token_id), int(tokenizer.pad_token_id)
        messages = [("user", "a"), ("assistant", _TURN), ("user", _REPLY)]
        whole = self._render([{"role": role, "content": content} for role, content in messages])
        _, found, between = whole.partition(_TURN)
        if not found or whole.count(_TURN) > 1 or between.count(_REPLY) != 1:
            raise LeverlabError(f"the chat template of {name} does not show every message once; use another template")
        if not between.startswith(tokenizer.eos_token):
            raise LeverlabError(
                f"the chat template of {name} ends a turn with {between[:20]!r}, its tokenizer with "
                f"{tokenizer.eos_token!r}; set eos_token to what ends a turn"
            )
        self._before, self._after = between.removeprefix(tokenizer.eos_token).split(_REPLY)
        self.opened = self._after.rstrip().endswith(_THINK)

    def prompt(self, text: str) -> list[int]:
        """Return the tokens of a question, up to where the policy's first turn begins."""
        return self._ids(self._render([{"role": "user", "content": self._text_tokens.marked(text)}]))

    def turn(self, text: str) -> list[int]:
        """Return the tokens of a turn of the policy, with the token that ends it.

        Its tags are control tokens where the tokenizer has them; any other control token that it spells is text. A
        think tag at its beginning is left out where the template has opened one.
        """
        said = text.removeprefix(_THINK) if self.opened else text
        return [*self._ids(self._text_tokens.marked(said, keep=MARKUP)), self.eos]

    def reply(self, text: str) -> list[int]:
        """Return the tokens between two turns of the policy: the reply of the user, and all around it."""
        return self._ids(f"{self._before}{self._text_tokens.marked(text)}{self._after}")

    def text(self, ids: list[int]) -> str:
        """Return the text of a turn, whose last token is not the one that ends it, with the think tag before it where
        the template has opened one: what is stored reads the same for every template."""
        text = str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        return f"{_THINK}{text}" if self.opened else text

    def _render(self, messages: list[dict[str, str]]) -> str:
        return str(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))

    def _ids(self, prompt: str) -> list[int]:
        return self._text_tokens.encode(prompt).ids
