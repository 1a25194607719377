"""Scorers of finished dialogues that know no right answer: features, weights, calibration on verified success.

A scorer is a weighted sum of features in [0, 1], each of which is better when it is higher, so that no weight is below
zero. The old scorer has the weights of `PRIOR`; the new one is calibrated towards them. An ensemble of calibrations
tells by its spread where the scorer is not sure.

Axes: N dialogues, F features in the order of `FEATURES`, M members of an ensemble.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import nnls

from leverlab.errors import LeverlabError
from leverlab.lm.answers import plain_answer
from leverlab.lm.dialogues import COSTLY_ASKS, Dialogue
from leverlab.lm.grounding import grounded
from leverlab.lm.questions import UNKNOWN
from leverlab.lm.thoughts import nobody_knows

Array = NDArray[np.float64]

# What somebody would pay who has seen no outcome yet: form first, then the footing of the answer. They add up to 1.
PRIOR: Mapping[str, float] = {
    "parses": 0.15,  # every turn parses
    "thought": 0.10,  # every turn thinks first
    "answered": 0.20,  # there is a final answer
    "settled": 0.10,  # the thought before the final answer holds no question mark
    "asked": 0.05,  # anything was asked
    "frugal": 0.10,  # 1 - asks beyond the first / 3, at least 0
    "unrepeated": 0.05,  # nothing was asked twice
    "grounded": 0.10,  # the final answer stands in what the policy was told (`grounded`)
    "candid": 0.05,  # the final answer is "unknown" just when the user's last reply is that nobody knows
    "confidence": 0.10,  # of the policy in its own tokens: without a continuous feature most scores are ties
}
FEATURES = tuple(PRIOR)


def features(dialogue: Dialogue, confidence: float) -> dict[str, float]:
    """Return the features of a finished dialogue, in the order of `FEATURES`, each in [0, 1]; `PRIOR` explains them.

    confidence: the geometric mean of the probabilities of the policy's tokens. No feature looks at the answer of the
    question, nor at whether it needs an ask. Raises `LeverlabError` for a confidence outside [0, 1].
    """
    if not 0 <= confidence <= 1:
        raise LeverlabError(
            f"the confidence of a dialogue on question '{dialogue.question.id}' is {confidence}; it must be a mean "
            "probability in [0, 1]"
        )
    turns, asks, final = dialogue.turns, dialogue.asks, dialogue.final
    thought = turns[-1].think if turns and turns[-1].thought else "?"
    untold = bool(dialogue.replies) and nobody_knows(dialogue.replies[-1])
    found = {
        "parses": bool(turns) and all(turn.parses for turn in turns),
        "thought": bool(turns) and all(turn.thought for turn in turns),
        "answered": final is not None,
        "settled": final is not None and "?" not in thought,
        "asked": bool(asks),
        "frugal": 1 - min(max(len(asks) - 1, 0), COSTLY_ASKS) / COSTLY_ASKS,
        "unrepeated": len(set(asks)) == len(asks),
        "grounded": grounded(dialogue),
        "candid": final is not None and (plain_answer(final) == UNKNOWN) == untold,
        "confidence": confidence,
    }
    return {name: float(found[name]) for name in FEATURES}


def table(dialogues: Iterable[Dialogue], confidence_N: Iterable[float]) -> Array:
    """Return `features_NF` of dialogues. Raises `LeverlabError` as `features`."""
    rows = [list(features(found, sure).values()) for found, sure in zip(dialogues, confidence_N, strict=True)]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(FEATURES))


def named(weights_F: ArrayLike) -> dict[str, float]:
    """Return feature → weight, for files and people. Raises `LeverlabError` unless there is one weight a feature."""
    values = np.asarray(weights_F, dtype=np.float64)
    if values.shape != (len(FEATURES),):
        raise LeverlabError(f"a scorer has one weight for each of its {len(FEATURES)} features, not {values.shape}")
    return dict(zip(FEATURES, values.tolist(), strict=True))


def as_vector(weights: Mapping[str, float]) -> Array:
    """Return `weights_F` of feature → weight. Raises `LeverlabError` unless it names just the features."""
    if set(weights) != set(FEATURES):
        raise LeverlabError(f"a scorer has a weight for each of {', '.join(FEATURES)}, not for {', '.join(weights)}")
    return np.array([weights[name] for name in FEATURES], dtype=np.float64)


def score(found: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Return the weighted sum of the features of one dialogue. Raises `LeverlabError` unless both name the features."""
    return float(scores(as_vector(found)[None], as_vector(weights))[0])


def scores(features_NF: ArrayLike, weights_F: ArrayLike) -> Array:
    """Return the weighted sum of the features of each dialogue, shape (N,)."""
    # A plain sum, not a BLAS product: the same bytes on every machine, and equal rows stay equal.
    weighted: Array = (np.asarray(features_NF, dtype=np.float64) * np.asarray(weights_F, dtype=np.float64)).sum(-1)
    return weighted


def calibrate(features_NF: ArrayLike, success_N: ArrayLike, prior_F: ArrayLike, strength: float) -> Array:
    """Return the weights that fit verified success, not below zero and held towards the prior:

        w = argmin_{w >= 0} |X w - y|² + s |w - w0|²,

    with X the features, y the success (0 or 1), w0 the prior and s the strength: as if s dialogues with each feature
    alone had been worth its prior weight. It is solved as non-negative least squares on the stacked system
    [X; sqrt(s) I] w = [y; sqrt(s) w0] (Lawson and Hanson 1974, chapter 23; ridge: Hoerl and Kennard 1970).

    Raises `LeverlabError` for no dialogue, unequal numbers, features that are not finite, success other than 0 and 1, a
    prior below zero, or a strength that is not above zero.
    """
    X, y, w0 = _checked(features_NF, success_N, prior_F, strength)
    root = np.sqrt(strength)
    found: Array = nnls(np.vstack([X, root * np.eye(len(w0))]), np.concatenate([y, root * w0]))[0]
    return found


def ensemble(
    features_NF: ArrayLike,
    success_N: ArrayLike,
    prior_F: ArrayLike,
    strength: float,
    members: int,
    member_features: int,
    seed: int,
) -> Array:
    """Return `weights_MF`: the calibrations of `members`, each on a bootstrap resample of the dialogues and on
    `member_features` of the features, drawn for it; its other weights are 0.

    Features that tell the same of the dialogues seen so far are traded for one another from member to member (the
    random subspace method, Ho 1998), so that they disagree on a dialogue in which those features part. Resamples alone
    leave thousands of dialogues with much the same weights, and nothing to disagree on.

    Raises `LeverlabError` as `calibrate`, for fewer than two members, and for more features than there are, or none.
    """
    X, y, w0 = _checked(features_NF, success_N, prior_F, strength)
    if members < 2:
        raise LeverlabError(f"an ensemble of {members} has no spread; give it two members or more")
    if not 1 <= member_features <= len(w0):
        raise LeverlabError(
            f"a member of the ensemble cannot see {member_features} of {len(w0)} features; set shadow.member_features"
        )
    rng = np.random.default_rng(seed)
    weights_MF = np.zeros((members, len(w0)))
    for weights_F in weights_MF:
        drawn_N, seen = rng.integers(len(y), size=len(y)), rng.choice(len(w0), member_features, replace=False)
        weights_F[seen] = calibrate(X[drawn_N][:, seen], y[drawn_N], w0[seen], strength)
    return weights_MF


def spread(features_NF: ArrayLike, weights_MF: ArrayLike) -> Array:
    """Return the standard deviation of the members' scores of each dialogue (of the population), shape (N,)."""
    found: Array = scores(np.asarray(features_NF)[:, None], weights_MF).std(axis=1)
    return found


def _checked(
    features_NF: ArrayLike, success_N: ArrayLike, prior_F: ArrayLike, strength: float
) -> tuple[Array, Array, Array]:
    X, y, w0 = (np.asarray(value, dtype=np.float64) for value in (features_NF, success_N, prior_F))
    if X.ndim != 2 or not len(X) or y.shape != X.shape[:1] or w0.shape != X.shape[1:]:
        raise LeverlabError(
            f"a calibration needs dialogues x features, a success each and a prior weight each; got shapes {X.shape}, "
            f"{y.shape} and {w0.shape}"
        )
    if not np.isfinite(X).all() or not np.isin(y, (0, 1)).all():
        raise LeverlabError("a calibration needs features that are finite and success that is 0 or 1; mend the records")
    if not (np.isfinite(w0) & (w0 >= 0)).all() or not (np.isfinite(strength) and strength > 0):
        raise LeverlabError(
            f"a calibration needs prior weights of at least 0 and a strength above 0; got {w0.tolist()} and {strength}"
        )
    return X, y, w0
