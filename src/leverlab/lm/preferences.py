"""Pairs of dialogues on one question of which the first was worth more, for DPO."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from leverlab.errors import LeverlabError
from leverlab.lm.tokens import Tokens

_DIGITS = 9  # rewards are sums of tenths: 1.0 - 0.8 is to be 0.2


@dataclass(frozen=True)
class Pair:
    """Two dialogues on the question with this id, and by how much the chosen one was worth more."""

    question: str
    chosen: Tokens
    rejected: Tokens
    margin: float


@dataclass(frozen=True)
class Pairs:
    """The pairs that were found; `without` of the `questions` have none, because all went alike."""

    pairs: list[Pair]
    questions: int
    without: int


def preference_pairs(
    questions: Sequence[str],
    rewards: Sequence[float],
    examples: Sequence[Tokens],
    margin: float = 0.2,
    most: int = 3,
    seed: int = 0,
) -> Pairs:
    """Return pairs of rollouts on the same question whose rewards differ by at least `margin`.

    questions, rewards, examples: id, reward and tokens of each rollout. The usual numbers: margin .2, at most 3 pairs a
    question, and in training beta .1 at a learning rate of 5e-6. `most` pairs of a question are drawn; which ones is up
    to the seed, the question's id and its rollouts, not to their order or to other questions. Rollouts that say the
    same count once. Questions stand in the order in which they come.
    Raises `LeverlabError` for a reward that is no number, lists of different lengths, and when no question has a pair.
    """
    if not len(questions) == len(rewards) == len(examples):
        raise LeverlabError(
            f"{len(questions)} questions, {len(rewards)} rewards and {len(examples)} examples do not belong together; "
            "give one of each to a rollout"
        )
    rollouts: dict[str, dict[tuple[int, ...], tuple[float, Tokens]]] = {}
    for question, reward, example in zip(questions, rewards, examples, strict=True):
        if not math.isfinite(reward):
            raise LeverlabError(f"the reward of a rollout on question '{question}' is {reward}; score it again")
        rollouts.setdefault(question, {}).setdefault(tuple(example[0]), (reward, example))
    found = [
        _pairs_of(question, [said[ids] for ids in sorted(said)], margin, most, seed)
        for question, said in rollouts.items()
    ]
    if not any(found):
        raise LeverlabError(
            f"no question of {len(rollouts)} has two rollouts whose rewards differ by {margin:g}; lower the margin, "
            "draw larger groups, or draw at a higher temperature"
        )
    return Pairs([pair for pairs in found for pair in pairs], len(found), sum(not pairs for pairs in found))


def _pairs_of(
    question: str, rollouts: Sequence[tuple[float, Tokens]], margin: float, most: int, seed: int
) -> list[Pair]:
    eligible = [
        Pair(question, chosen, rejected, round(better - worse, _DIGITS))
        for better, chosen in rollouts
        for worse, rejected in rollouts
        if round(better - worse, _DIGITS) >= margin
    ]
    key = int.from_bytes(hashlib.sha256(question.encode()).digest()[:8], "big")
    drawn = np.random.default_rng([seed, key]).permutation(len(eligible))[:most]
    return [eligible[n] for n in drawn]
