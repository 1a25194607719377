"""Epoch orders as pure functions, batches, and the choice of trajectories that keeps a group's spread."""

import math

import numpy as np
import pytest

from leverlab.errors import LeverlabError
from leverlab.rl.advantages import FLAT_TOLERANCE
from leverlab.rl.sampling import batches, epoch_order, keep_best_and_worst


def test_epoch_order_is_a_pure_function_of_seed_and_epoch() -> None:
    order = epoch_order(50, seed=3, epoch=2)
    np.random.seed(0)  # the global state must not matter
    assert order.tolist() == epoch_order(50, seed=3, epoch=2).tolist()
    assert sorted(order.tolist()) == list(range(50))
    others = [epoch_order(50, 3, 1), epoch_order(50, 2, 2), epoch_order(50, 2, 3)]  # the last: seed and epoch swapped
    assert all(order.tolist() != other.tolist() for other in others)


def test_epoch_order_is_pinned() -> None:
    """A semantics lock: a run resumed under another numpy must see the same order, or say that it does not."""
    assert epoch_order(8, seed=0, epoch=0).tolist() == [2, 4, 3, 6, 5, 0, 1, 7]


def test_epoch_order_at_the_edges() -> None:
    assert epoch_order(0, 0, 0).tolist() == []
    assert epoch_order(1, 0, 0).tolist() == [0]
    for arguments in ((-1, 0, 0), (3, -1, 0), (3, 0, -1)):
        with pytest.raises(LeverlabError, match=">= 0"):
            epoch_order(*arguments)


def test_batches_keep_the_short_one() -> None:
    assert [batch.tolist() for batch in batches([4, 2, 0, 1, 3], 2)] == [[4, 2], [0, 1], [3]]
    assert [batch.tolist() for batch in batches(np.arange(4), 2)] == [[0, 1], [2, 3]]
    assert batches([], 2) == []
    with pytest.raises(LeverlabError, match="batch size"):
        batches([1], 0)


@pytest.mark.parametrize(
    ("rewards", "keep", "expected"),
    [
        ([0.1, 0.9, 0.5, 0.3, 0.7], 2, [0, 1]),
        ([0.1, 0.9, 0.5, 0.3, 0.7], 3, [0, 1, 4]),  # two best, one worst
        ([0.1, 0.9, 0.5, 0.3, 0.7], 4, [0, 1, 3, 4]),
        ([0.1, 0.9, 0.5], 3, [0, 1, 2]),
        ([0.1, 0.9], 5, [0, 1]),
        ([1, 0, 1, 0, 1], 3, [0, 1, 2]),  # ties: the lower indices of the winners and of the losers
        ([0.5, 0.5, 0.5, 0.5], 3, [0, 1, 2]),
        ([1, 1, 1, 1, 0], 2, [0, 4]),
    ],
)
def test_keep_by_hand(rewards: list[float], keep: int, expected: list[int]) -> None:
    assert keep_best_and_worst(rewards, keep).tolist() == expected


def test_keep_never_flattens_a_group_with_spread() -> None:
    """Top-k alone would: with seven winners and one loser the top 3 are all winners."""
    generator = np.random.default_rng(0)
    for _ in range(100):
        rewards = generator.integers(0, 2, size=8).astype(float)
        kept = rewards[keep_best_and_worst(rewards, 3)]
        assert (np.ptp(kept) > FLAT_TOLERANCE) == (np.ptp(rewards) > FLAT_TOLERANCE)
        assert (kept.max(), kept.min()) == (rewards.max(), rewards.min())


def test_keep_is_invariant_to_permutation_and_shift() -> None:
    rewards = np.array([0.4, 0.1, 0.8, 0.3, 0.9, 0.6])
    order = np.array([5, 2, 0, 4, 1, 3])
    kept = sorted(rewards[keep_best_and_worst(rewards, 4)])
    assert sorted(rewards[order][keep_best_and_worst(rewards[order], 4)]) == kept
    assert keep_best_and_worst(rewards + 5, 4).tolist() == keep_best_and_worst(rewards, 4).tolist()


def test_keep_refuses() -> None:
    with pytest.raises(LeverlabError, match="at least 2"):
        keep_best_and_worst([0.1, 0.2], 1)
    with pytest.raises(LeverlabError, match="without NaN"):
        keep_best_and_worst([0.1, math.nan], 2)
    with pytest.raises(LeverlabError, match="one group"):
        keep_best_and_worst([[0.1, 0.2]], 2)
