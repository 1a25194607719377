"""The order of training: epoch permutations, batches, and which trajectories of a group are kept."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from leverlab.errors import LeverlabError


def epoch_order(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return a permutation of 0..n-1 that depends on (n, seed, epoch) alone.

    No generator lives on between epochs, so a resumed run sees the order that an unbroken run sees.
    Raises `LeverlabError` when an argument is negative.
    """
    if min(n, seed, epoch) < 0:
        raise LeverlabError(f"epoch_order needs n, seed and epoch >= 0, got n={n}, seed={seed}, epoch={epoch}")
    generator = np.random.default_rng(np.random.SeedSequence([seed, epoch]))
    return generator.permutation(n).astype(np.int64)


def batches(order: Sequence[int] | NDArray[np.integer[Any]], size: int) -> list[NDArray[np.int64]]:
    """Return `order` cut into consecutive batches of `size`; the last one keeps what is left and may be shorter.

    Raises `LeverlabError` when `size` is below 1.
    """
    if size < 1:
        raise LeverlabError(f"the batch size must be at least 1, got {size}")
    indices = np.asarray(order, dtype=np.int64)
    return [indices[begin : begin + size] for begin in range(0, len(indices), size)]


def keep_best_and_worst(rewards_G: ArrayLike, keep: int) -> NDArray[np.int64]:
    """Return the sorted indices of the ceil(keep / 2) best and floor(keep / 2) worst trajectories of one group.

    Ties go to the lower index. A group of `keep` or fewer is kept whole. Losers stay in on purpose: winners alone have
    hardly any spread, and a group without spread teaches nothing.
    Raises `LeverlabError` for keep < 2, rewards that are not one-dimensional, or a reward that is NaN.
    """
    rewards = np.asarray(rewards_G, dtype=np.float64)
    if rewards.ndim != 1 or np.isnan(rewards).any():
        raise LeverlabError(f"keep_best_and_worst needs one group of rewards without NaN, got {rewards.tolist()}")
    if keep < 2:
        raise LeverlabError(f"keep must be at least 2 (one winner and one loser), got {keep}")
    best = np.argsort(-rewards, kind="stable")[: (keep + 1) // 2]
    rest = np.setdiff1d(np.arange(len(rewards)), best)
    worst = rest[np.argsort(rewards[rest], kind="stable")][: keep // 2]
    return np.sort(np.concatenate([best, worst])).astype(np.int64)
