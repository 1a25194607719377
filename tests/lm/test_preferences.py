"""Pairs of dialogues against what can be counted by hand."""

import math

import pytest

from leverlab.errors import LeverlabError
from leverlab.lm.preferences import Pair, preference_pairs
from leverlab.lm.tokens import Tokens


def said(*ids: int) -> Tokens:
    return list(ids), [False] + [True] * (len(ids) - 1)


def kinds(pairs: list[Pair]) -> set[tuple[str, int, int]]:
    return {(pair.question, pair.chosen[0][-1], pair.rejected[0][-1]) for pair in pairs}


def test_all_pairs_beyond_the_margin() -> None:
    """a: 1.0 beats .8 and .1, .8 beats .1, and 1.0 - .8 is a margin of .2 although it is less in floating point.

    b: .95 and .8 are too close. c: .5 beats .3, whose two rollouts say the same. d: one rollout has no partner.
    """
    questions = ["a", "b", "a", "a", "b", "c", "c", "c", "d"]
    rewards = [1.0, 0.95, 0.8, 0.1, 0.8, 0.3, 0.5, 0.3, 1.0]
    examples = [said(0, n) for n in (1, 2, 3, 4, 5, 6, 7, 6, 8)]
    found = preference_pairs(questions, rewards, examples, margin=0.2, most=3)
    assert 1.0 - 0.8 < 0.2
    assert kinds(found.pairs) == {("a", 1, 3), ("a", 1, 4), ("a", 3, 4), ("c", 7, 6)}
    assert (found.questions, found.without) == (4, 2)
    assert sorted(pair.margin for pair in found.pairs) == [0.2, 0.2, 0.7, 0.9]
    assert found.pairs[-1] == Pair("c", said(0, 7), said(0, 6), 0.2)


def draw(order: list[int], seed: int) -> set[tuple[str, int, int]]:
    """Pairs of two questions, each with rollouts of rewards 0, .2, .4, .6: six pairs that are eligible."""
    questions, rewards = ["a"] * 4 + ["b"] * 4, [0.0, 0.2, 0.4, 0.6] * 2
    examples = [said(0, n) for n in range(8)]
    found = preference_pairs(
        [questions[n] for n in order], [rewards[n] for n in order], [examples[n] for n in order], seed=seed
    )
    assert [sum(pair.question == name for pair in found.pairs) for name in "ab"] == [3, 3]
    return kinds(found.pairs)


def test_at_most_three_of_a_question_by_seed_and_not_by_order() -> None:
    drawn = [draw(list(range(8)), seed) for seed in range(20)]
    assert [draw([7, 2, 0, 5, 1, 6, 3, 4], seed) for seed in range(20)] == drawn
    assert len(set(map(frozenset, drawn))) > 10
    assert len(set().union(*drawn)) == 12  # every eligible pair comes up
    alone = preference_pairs(["a"] * 4, [0.0, 0.2, 0.4, 0.6], [said(0, n) for n in range(4)], seed=3)
    assert kinds(alone.pairs) == {kind for kind in drawn[3] if kind[0] == "a"}


def test_bad_input_is_one_sentence() -> None:
    two = [said(0, 1), said(0, 2)]
    for questions, rewards, message in (
        (["a"], [1.0, 0.0], "1 questions, 2 rewards and 2 examples"),
        (["a", "a"], [1.0, math.nan], "question 'a' is nan"),
        (["a", "a"], [1.0, 0.9], "no question of 1 has two rollouts whose rewards differ by 0.2"),
        (["a", "b"], [1.0, 0.0], "no question of 2"),
    ):
        with pytest.raises(LeverlabError, match=message):
            preference_pairs(questions, rewards, two)
