"""The reward: one expression over named terms, for every prefix of a trajectory, and its mean over the shot counts.

A term is an array `..L` whose last axis runs over the prefixes of 1 to L demos: a numpy array or a torch tensor.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from leverlab.errors import LeverlabError

if TYPE_CHECKING:
    from torch import Tensor  # params are checked with these functions, and torch takes seconds to import

ArrayT = TypeVar("ArrayT", NDArray[np.floating[Any]], "Tensor")

RewardMode = Literal[
    "weighted", "hard_plus_soft", "separated", "hard_only", "soft_only", "hard_plus_gtprob_plus_rel", "legacy"
]
REWARD_MODES: tuple[str, ...] = get_args(RewardMode)

# What each term means, and its range. `beam_score` is a gain in answer probability, hence a difference.
_RANGES = {
    "correct": (0.0, 1.0),  # h: 1 if the answer counts as right
    "vqa_accuracy": (0.0, 1.0),  # s: soft agreement with the annotators
    "answer_prob": (0.0, 1.0),  # g: probability of the annotated answer, exp(mean log-probability of its tokens)
    "beam_score": (-1.0, 1.0),  # InfoScore of the picks
    "relevance": (0.0, 1.0),  # similarity of the demos to the query
}
REWARD_TERMS: tuple[str, ...] = tuple(_RANGES)

# Modes whose coefficients are part of their name. `separated` is "2h + s if h else s", which is 2h + s for any h.
_FIXED_WEIGHTS: dict[str, dict[str, float]] = {
    "hard_plus_soft": {"correct": 1.0, "vqa_accuracy": 1.0},
    "separated": {"correct": 2.0, "vqa_accuracy": 1.0},
    "hard_only": {"correct": 1.0},
    "soft_only": {"vqa_accuracy": 1.0},
}
# Modes that read weights, and the terms that may be weighted there.
_WEIGHTABLE: dict[str, tuple[str, ...]] = {
    "weighted": REWARD_TERMS,
    "hard_plus_gtprob_plus_rel": ("correct", "answer_prob", "relevance"),
    "legacy": ("beam_score", "correct"),
}
WEIGHTED_MODES: tuple[str, ...] = tuple(_WEIGHTABLE)


def prefix_rewards(terms: Mapping[str, ArrayT], weights: Mapping[str, float], normalise: bool = True) -> ArrayT:
    """Return the weighted sum of the terms for every prefix, shape `..L`; divided by the sum of weights if `normalise`.

    `weights` maps names of `REWARD_TERMS` to finite numbers >= 0; a term of weight zero is not looked at.
    Raises `LeverlabError` for unknown or bad weights, and names a needed term that is missing, of another shape, NaN or
    out of its range.
    """
    used = _checked_weights(weights, REWARD_TERMS, "prefix_rewards")
    total = _weighted_sum(_checked_terms(terms, tuple(used)), used)
    return total / math.fsum(used.values()) if normalise else total


def mode_rewards(mode: RewardMode, terms: Mapping[str, ArrayT], weights: Mapping[str, float] | None = None) -> ArrayT:
    """Return the reward of every prefix, shape `..L`, under a named mode.

    With h = correct, s = vqa_accuracy, g = answer_prob, w the weight of the term:
    - `weighted`: the weighted mean of any terms (`prefix_rewards` with `normalise`);
    - `hard_plus_soft` h + s; `separated` 2h + s; `hard_only` h; `soft_only` s;
    - `hard_plus_gtprob_plus_rel`: h w_correct + g w_answer_prob + w_relevance (1 - h) relevance;
    - `legacy`: beam_score w_beam_score + h w_correct.

    All but `weighted` are sums on their own scale. The modes of `WEIGHTED_MODES` need weights; the others have fixed
    ones and refuse any, so that no weight is set and never read. Raises `LeverlabError` as `prefix_rewards` does.
    """
    used = _mode_weights(mode, weights)
    if mode != "hard_plus_gtprob_plus_rel":
        return prefix_rewards(terms, used, normalise=mode == "weighted")
    arrays = _checked_terms(terms, required_terms(mode, weights))
    linear = {name: weight for name, weight in used.items() if name != "relevance"}
    if "relevance" not in used:
        return prefix_rewards(terms, linear, normalise=False)
    # Relevance speaks only where the answer is wrong: it grades the failures, and cannot outbid a right answer.
    shaped = (1.0 - arrays["correct"] * 1.0) * arrays["relevance"] * used["relevance"]
    return shaped + prefix_rewards(terms, linear, normalise=False) if linear else shaped


def required_terms(mode: RewardMode, weights: Mapping[str, float] | None = None) -> tuple[str, ...]:
    """Return the names of the terms that a mode reads, in the order of `REWARD_TERMS`; zero weight means not needed.

    Raises `LeverlabError` for an unknown mode, and for weights that the mode lacks, does not know or would not read.
    """
    needed = set(_mode_weights(mode, weights))
    if mode == "hard_plus_gtprob_plus_rel" and "relevance" in needed:
        needed.add("correct")  # for 1 - h, even when h itself weighs nothing
    return tuple(name for name in REWARD_TERMS if name in needed)


def trajectory_reward(prefix_rewards_L: ArrayT, shot_weights: Sequence[float]) -> ArrayT:
    """Return the weighted mean over the prefixes, shape `..`: sum_k w_k R_k / sum_k w_k.

    `prefix_rewards_L` is `..L`; `shot_weights` has one finite weight >= 0 for each shot count 1..L, not all zero. A
    prefix of weight zero is not looked at. Raises `LeverlabError` for weights that do not fit, or a NaN in a weighted
    prefix.
    """
    count = prefix_rewards_L.shape[-1]
    if len(shot_weights) != count:
        raise LeverlabError(
            f"{len(shot_weights)} shot weights do not fit rewards of {count} prefixes; give one for each shot count"
        )
    used = weighted_shots(shot_weights)
    arrays = {f"{shots + 1}-shot": prefix_rewards_L[..., shots] for shots in range(count)}
    for name in used:
        if bool((arrays[name] != arrays[name]).any()):
            raise LeverlabError(f"the {name} reward holds NaN; score it, or set its shot weight to 0")
    return _weighted_sum(arrays, used) / math.fsum(used.values())


def weighted_shots(shot_weights: Sequence[float]) -> dict[str, float]:
    """Return the weights above zero by name, from "1-shot" on.

    Raises `LeverlabError` when one is negative or not finite, or all are zero.
    """
    names = tuple(f"{shots}-shot" for shots in range(1, len(shot_weights) + 1))
    return _checked_weights(dict(zip(names, shot_weights, strict=True)), names, "the shot weights")


def _weighted_sum(arrays: Mapping[str, ArrayT], weights: Mapping[str, float]) -> ArrayT:
    (first, weight), *rest = weights.items()
    total = arrays[first] * weight
    for name, weight in rest:
        total = total + arrays[name] * weight
    return total


def _mode_weights(mode: RewardMode, weights: Mapping[str, float] | None) -> dict[str, float]:
    if mode not in REWARD_MODES:
        raise LeverlabError(f"reward mode {mode!r} is unknown; use one of {', '.join(REWARD_MODES)}")
    if mode in _FIXED_WEIGHTS:
        if weights is not None:
            raise LeverlabError(
                f"reward mode '{mode}' has fixed weights and would not read {dict(weights)}; set weights to null"
            )
        return _FIXED_WEIGHTS[mode]
    if weights is None:
        raise LeverlabError(f"reward mode '{mode}' needs weights for its terms: {', '.join(_WEIGHTABLE[mode])}")
    return _checked_weights(weights, _WEIGHTABLE[mode], f"reward mode '{mode}'")


def _checked_weights(weights: Mapping[str, float], known: Sequence[str], where: str) -> dict[str, float]:
    """Return the weights above zero, in the order of `known`; a zero weight for a term that is not read is allowed."""
    for name, weight in weights.items():
        if not 0 <= weight < math.inf:
            raise LeverlabError(f"{where}: the weight of '{name}' must be a finite number >= 0, got {weight}")
        if name not in known and (weight > 0 or name not in REWARD_TERMS):
            raise LeverlabError(f"{where}: '{name}' has weight {weight} but is not read; known: {', '.join(known)}")
    used = {name: float(weights[name]) for name in known if weights.get(name, 0) > 0}
    if not used:
        raise LeverlabError(f"{where}: every weight is zero; weight at least one of {', '.join(known)}")
    return used


def _checked_terms(terms: Mapping[str, ArrayT], needed: Sequence[str]) -> dict[str, ArrayT]:
    arrays: dict[str, ArrayT] = {}
    for name in needed:
        if name not in terms:
            raise LeverlabError(f"the reward needs the term '{name}', which is missing; present: {', '.join(terms)}")
        values = terms[name]
        if bool((values != values).any()):
            raise LeverlabError(f"reward term '{name}' holds NaN; score it for every prefix or set its weight to 0")
        low, high = _RANGES[name]
        if bool(((values < low) | (values > high)).any()):
            raise LeverlabError(f"reward term '{name}' has values outside its range [{low:g}, {high:g}]")
        if values.shape != terms[needed[0]].shape:
            raise LeverlabError(
                f"reward term '{name}' has shape {tuple(values.shape)}, but '{needed[0]}' has "
                f"{tuple(terms[needed[0]].shape)}; all terms need one shape"
            )
        arrays[name] = values
    return arrays
