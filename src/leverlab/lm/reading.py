"""How well a model reads: whether what follows from a dialogue is its most probable continuation, token by token.

What to do next (ask or answer, and for which slot) is a habit, and does not count here.
"""

from collections.abc import Sequence
from typing import Any

import torch

from leverlab.errors import LeverlabError
from leverlab.lm.chat import Chat
from leverlab.lm.pretraining import collate
from leverlab.lm.tokens import Tokens

_BATCH = 100


def without_acts(chat: Chat, row: Tokens) -> Tokens:
    """Return `row` with only the thoughts and the final answers of the policy left to predict."""
    think, answer, act = chat.tokenizer.convert_tokens_to_ids(["</think>", "<final>", "<ask>"])
    ids, wanted = row
    kept, counts = [], True
    for token, own in zip(ids, wanted, strict=True):
        counts = counts and token != act and token != answer
        kept.append(own and counts)
        if not own or token == answer:
            counts = True
        elif token in (think, act):
            counts = False
    return ids, kept


@torch.no_grad()
def read_shares(model: Any, chat: Chat, rows: Sequence[Tokens], families: Sequence[str]) -> dict[str, float]:
    """Return family → share of its dialogues that a model reads without a slip. Raises `LeverlabError` for none."""
    if not rows:
        raise LeverlabError("the reading test has no dialogue; raise the number of its questions")
    right: dict[str, list[bool]] = {}
    for start in range(0, len(rows), _BATCH):
        part = [without_acts(chat, row) for row in rows[start : start + _BATCH]]
        ids_BP, labels_BP = collate(part, chat.pad)
        said_BP = model(input_ids=ids_BP).logits[:, :-1].argmax(-1)
        same_BP = (said_BP == labels_BP[:, 1:]) | (labels_BP[:, 1:] < 0)
        for family, same in zip(families[start : start + _BATCH], same_BP.all(1).tolist(), strict=True):
            right.setdefault(family, []).append(same)
    return {family: sum(found) / len(found) for family, found in sorted(right.items())}
