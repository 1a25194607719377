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


def practice_weights(success_N: Sequence[float | None], failure_factor: float) -> NDArray[np.float64]:
    """Return how much each query weighs in prioritised sampling: 1 - success, times `failure_factor` where it is 0.

    A query of unknown success (None), never drawn before, weighs 0: it comes with the order of the epoch.
    Raises `LeverlabError` for a success outside [0, 1] and for a factor below 1.
    """
    if bad := [value for value in success_N if value is not None and not 0 <= value <= 1]:
        raise LeverlabError(f"a success must lie in [0, 1], got {bad[0]}")
    if not failure_factor >= 1:
        raise LeverlabError(f"the factor of failures must be at least 1, got {failure_factor}")
    weights = [0.0 if value is None else (1 - value) * (failure_factor if value == 0 else 1) for value in success_N]
    return np.asarray(weights, dtype=np.float64)


def prioritised_batches(
    order: NDArray[np.int64], weights_N: NDArray[np.float64], size: int, share: float, seed: int, epoch: int
) -> list[NDArray[np.int64]]:
    """Return as many batches as `batches` would, in which at most `share` of the places are drawn by weight.

    order: a permutation of 0..N-1; its queries fill the other places one after the other, so an epoch leaves some out.
    weights_N: >= 0; a query of weight 0 comes by the order alone, and so does a batch for which too few have weight.
    No query stands twice in a batch, and the last batch is as short as it would be. With a share of 0, or weights of 0,
    these are `batches(order, size)`.
    Random in (seed, epoch) alone. Raises `LeverlabError` for a share outside [0, 1).
    """
    if not 0 <= share < 1:
        raise LeverlabError(f"the share of prioritised places must lie in [0, 1), got {share}")
    plain = batches(order, size)
    generator = np.random.default_rng(np.random.SeedSequence([seed, epoch, 1]))
    chosen, start = [], 0
    for batch in plain:
        wanted = int(share * len(batch))
        fixed = order[start : start + len(batch) - wanted]
        weights = weights_N.copy()
        weights[fixed] = 0
        if not 0 < wanted <= (weights > 0).sum():
            fixed, extra = order[start : start + len(batch)], np.empty(0, dtype=np.int64)
        else:
            extra = generator.choice(len(weights), wanted, replace=False, p=weights / weights.sum())
        start += len(fixed)
        chosen.append(np.concatenate([fixed, extra]))
    return chosen


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
