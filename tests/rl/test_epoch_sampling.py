"""Epoch orders as pure functions, batches, and the choice of trajectories that keeps a group's spread."""

import math

import numpy as np
import pytest

from leverlab.errors import LeverlabError
from leverlab.rl.advantages import FLAT_TOLERANCE
from leverlab.rl.sampling import batches, epoch_order, keep_best_and_worst, practice_weights, prioritised_batches


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


def test_practice_weights_by_hand() -> None:
    """Unknown 0; 1 - .75; all wrong 1 times 2; all right 0."""
    assert practice_weights([None, 0.75, 0.0, 1.0], 2.0).tolist() == [0.0, 0.25, 2.0, 0.0]
    for success, factor in (([1.5], 2.0), ([math.nan], 2.0), ([0.5], 0.5), ([0.5], math.nan)):
        with pytest.raises(LeverlabError):
            practice_weights(success, factor)


def test_without_share_or_weights_the_batches_are_those_of_the_order() -> None:
    order = epoch_order(8, 0, 1)
    plain = [batch.tolist() for batch in batches(order, 4)]
    for weights, share in ((np.ones(8), 0.0), (np.zeros(8), 0.3), (np.eye(1, 8)[0], 0.5)):  # the last: one for two
        found = prioritised_batches(order, weights, 4, share, 0, 1)
        assert [batch.tolist() for batch in found] == plain


def test_a_share_of_every_batch_is_drawn_by_weight() -> None:
    """Of 100 queries 10 have weight; 3 places of each of 10 batches are theirs, where the order did not put them."""
    order, weights = epoch_order(100, 0, 1), np.zeros(100)
    weights[:10] = 1
    found = prioritised_batches(order, weights, 10, 0.3, seed=0, epoch=1)
    assert [len(batch) for batch in found] == [10] * 10
    start = 0
    for batch in found:
        assert len(set(batch.tolist())) == 10
        assert batch[:7].tolist() == order[start : start + 7].tolist()
        assert set(batch[7:].tolist()) <= set(range(10))
        start += 7
    again = prioritised_batches(order, weights, 10, 0.3, seed=0, epoch=1)
    assert [batch.tolist() for batch in again] == [batch.tolist() for batch in found]
    other = prioritised_batches(order, weights, 10, 0.3, seed=0, epoch=2)
    assert [batch[7:].tolist() for batch in other] != [batch[7:].tolist() for batch in found]


def test_queries_come_in_proportion_to_their_weight() -> None:
    """One place of each batch of four: query 0 weighs 3, queries 1 to 3 weigh 1 each; the other 96 weigh nothing."""
    weights, counts = np.zeros(100), np.zeros(4)
    weights[:4] = (3, 1, 1, 1)
    for epoch in range(200):
        order = np.concatenate([np.arange(4, 100), np.arange(4)])
        for batch in prioritised_batches(order, weights, 4, 0.25, 0, epoch)[:20]:  # the first 60 of the order
            counts[batch[3]] += 1
    shares = counts / counts.sum()
    assert counts.sum() == 4000
    assert shares.tolist() == pytest.approx([3 / 6, 1 / 6, 1 / 6, 1 / 6], abs=0.03)


def test_the_last_batch_stays_short_and_a_share_outside_is_refused() -> None:
    assert [len(batch) for batch in prioritised_batches(epoch_order(10, 0, 1), np.ones(10), 4, 0.25, 0, 1)] == [4, 4, 2]
    with pytest.raises(LeverlabError, match="share"):
        prioritised_batches(epoch_order(10, 0, 1), np.ones(10), 4, 1.0, 0, 1)
