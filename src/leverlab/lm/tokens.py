"""Dialogues as tokens, each marked as said by the policy or not: what every trainer of policies learns from."""

from collections.abc import Sequence

from leverlab.lm.chat import Chat

IGNORED = -100  # the label of a token that is not to be predicted, for torch and transformers

Tokens = tuple[list[int], list[bool]]  # ids, and for each whether it is to be predicted


def dialogue_tokens(
    chat: Chat, question_text: str, turns: Sequence[str], replies: Sequence[str], cut: bool = False
) -> Tokens:
    """Return the tokens of a dialogue from its prompt on, and which of them the policy says.

    The token that ends a turn belongs to the policy. replies: one after each turn but the last, which may have one too.
    cut: the last turn was too long and did not end; the policy must not learn that it ends there.
    """
    ids = chat.prompt(question_text)
    own = [False] * len(ids)
    for n, text in enumerate(turns):
        turn, answer = chat.turn(text), chat.reply(replies[n]) if n < len(replies) else []
        ids += turn + answer
        own += [True] * len(turn) + [False] * len(answer)
    return (ids[:-1], own[:-1]) if cut else (ids, own)


def labels(tokens: Tokens) -> list[int]:
    """Return the ids, with `IGNORED` in place of those that are not to be predicted."""
    return [token if own else IGNORED for token, own in zip(*tokens, strict=True)]
