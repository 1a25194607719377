"""Intervals, paired tests and corrections on per-question scores in [0, 1].

Scores are `scores_N` (one answer per question) or `scores_SN` (S seeds of one method on the same N questions).
Everything is paired by question and fixed by `seed`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest, norm, permutation_test
from statsmodels.stats.multitest import multipletests

from leverlab.errors import LeverlabError

Array = NDArray[np.float64]

ALPHA = 0.05
POWER = 0.8
NO_DIFFERENCE = "no difference shown"
MCNEMAR = "McNemar exact"
SIGN_FLIP = "paired sign-flip permutation"

_CHUNK = 500  # resamples held in memory at once


@dataclass(frozen=True)
class PairedDifference:
    """Method A minus method B on the same questions; all but `p_value` and the counts are in units of accuracy.

    `b` counts the questions on which A is above B, `c` those on which B is above A (the discordant cells of McNemar's
    table when scores are 0/1). `test` names the test behind `p_value`, which is not corrected for other comparisons.
    `least_detectable_difference` is NaN when the differences do not vary: there is nothing to estimate it from.
    """

    difference: float
    ci_low: float
    ci_high: float
    p_value: float
    test: str
    n: int
    b: int
    c: int
    least_detectable_difference: float
    verdict: str


def bootstrap_interval(
    scores_SN: ArrayLike, resamples: int = 10_000, level: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """Return the mean of `scores_SN` with its percentile bootstrap interval: (mean, low, high).

    Questions are drawn with replacement, and seeds too when there are several, crossed (Owen 2007's pigeonhole
    bootstrap), so that the interval covers other questions and other seeds. With two or three seeds it says little
    about the spread over seeds. When all scores are equal the interval has no width.
    Raises `LeverlabError` for scores that are empty, NaN or outside [0, 1], and for impossible `resamples` or `level`.
    """
    scores = _checked(scores_SN, "scores")
    low, high = _percentile_interval([scores], resamples, level, seed)
    return float(scores.mean()), low, high


def paired_difference(
    a_SN: ArrayLike,
    b_SN: ArrayLike,
    ids_a: Sequence[str] | None = None,
    ids_b: Sequence[str] | None = None,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
    same_seeds: bool = False,
) -> PairedDifference:
    """Return how far A stands above B, question by question, with interval, test and verdict.

    a_SN, b_SN: scores on the same questions in the same order; the numbers of seeds may differ.
    ids_a, ids_b: question ids of the columns; when given (both), they must be equal in order.
    same_seeds: row s of A and row s of B come from the same seed: the same start, order of data and random numbers.
    The interval is a percentile bootstrap: one draw of questions serves both methods, and one draw of seeds if they are
    the same; other seeds are drawn apart for A and B. So two methods that answer alike have an interval without width.
    The test is McNemar's exact test when both have one seed and 0/1 scores, else a sign-flip permutation test on the
    seed-averaged differences of the questions (exact when 2^(questions that differ) <= `resamples`): it speaks of other
    questions, for these seeds.
    The least detectable difference is (z_0.975 + z_0.8) sd / sqrt(N), sd that of the seed-averaged differences: what a
    two-sided test at 0.05 finds with 80 % power. `verdict` takes `p_value` as the only one; in a family of comparisons
    call `verdict` with the corrected one.
    Raises `LeverlabError` for unequal numbers of questions (of seeds, if they are the same), unequal ids, NaN or scores
    outside [0, 1].
    """
    a, b = _checked(a_SN, "scores of A"), _checked(b_SN, "scores of B")
    _check_paired(a, b, ids_a, ids_b)
    if same_seeds and len(a) != len(b):
        raise LeverlabError(f"A has {len(a)} seeds and B has {len(b)}; they cannot be the same seeds")
    difference_N = a.mean(axis=0) - b.mean(axis=0)
    # Averages over different numbers of seeds differ by rounding where they are equal.
    difference_N[np.abs(difference_N) < 1e-12] = 0.0
    low, high = _percentile_interval([a - b] if same_seeds else [a, -b], resamples, level, seed)
    above, below = int((difference_N > 0).sum()), int((difference_N < 0).sum())
    binary = len(a) == len(b) == 1 and bool(np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all())
    p_value = _mcnemar(above, below) if binary else _sign_flip(difference_N, resamples, seed)
    return PairedDifference(
        difference=float(difference_N.mean()),
        ci_low=low,
        ci_high=high,
        p_value=p_value,
        test=MCNEMAR if binary else SIGN_FLIP,
        n=len(difference_N),
        b=above,
        c=below,
        least_detectable_difference=_least_detectable(difference_N),
        verdict=verdict(low, high, p_value),
    )


def verdict(ci_low: float, ci_high: float, p_value: float) -> str:
    """Return "A above B" or "A below B" when the interval leaves out 0 *and* `p_value`, corrected for its family, is
    below 0.05, else "no difference shown"."""
    if ci_low <= 0 <= ci_high or not p_value < ALPHA:
        return NO_DIFFERENCE
    return "A above B" if ci_low > 0 else "A below B"


def holm(p_values: ArrayLike) -> Array:
    """Return the Holm-adjusted p-values, in the given order: the family-wise error stays below alpha (Holm 1979).

    Raises `LeverlabError` for a value that is NaN or outside [0, 1]. An empty family stays empty.
    """
    values = np.asarray(p_values, dtype=np.float64)
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        raise LeverlabError(f"Holm's correction needs a list of p-values in [0, 1], got {values.tolist()}")
    if values.size == 0:
        return values
    adjusted: Array = multipletests(values, alpha=ALPHA, method="holm")[1]
    return adjusted


def _checked(scores: ArrayLike, name: str) -> Array:
    """Return `scores` as (seeds, questions)."""
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim == 1:
        values = values[None]
    if values.ndim != 2 or values.size == 0:
        raise LeverlabError(f"{name} must be questions or seeds x questions, and not empty; got shape {values.shape}")
    bad = int((~((values >= 0) & (values <= 1))).sum())
    if bad:
        raise LeverlabError(f"{name}: {bad} of {values.size} are NaN or outside [0, 1]; every question needs a score")
    return values


def _check_paired(a: Array, b: Array, ids_a: Sequence[str] | None, ids_b: Sequence[str] | None) -> None:
    if a.shape[1] != b.shape[1]:
        raise LeverlabError(f"A has {a.shape[1]} questions and B has {b.shape[1]}; compare them on the same questions")
    if (ids_a is None) != (ids_b is None):
        raise LeverlabError("question ids were given for one method only; give them for both, or for neither")
    if ids_a is None or ids_b is None:
        return
    if len(ids_a) != a.shape[1] or len(ids_b) != b.shape[1]:
        raise LeverlabError(f"{len(ids_a)} and {len(ids_b)} question ids were given for {a.shape[1]} scores")
    for place, (left, right) in enumerate(zip(ids_a, ids_b, strict=True)):
        if left != right:
            raise LeverlabError(f"A and B are not paired: question {place} is '{left}' in A and '{right}' in B")


def _percentile_interval(terms_SN: Sequence[Array], resamples: int, level: float, seed: int) -> tuple[float, float]:
    """Return the interval of the sum of the means of `terms_SN`: questions are drawn jointly, seeds term by term."""
    if resamples < 1 or not 0 < level < 1:
        raise LeverlabError(f"a bootstrap needs resamples >= 1 and 0 < level < 1, got {resamples} and {level}")
    rng = np.random.default_rng(seed)
    n = terms_SN[0].shape[1]
    means_R = np.empty(resamples)
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        per_question_RN = np.zeros((size, n))
        for term in terms_SN:
            seeds = len(term)
            drawn_RS = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=size) / seeds
            # A plain sum, not a BLAS product: the same bytes on every machine.
            for s in range(seeds):
                per_question_RN += drawn_RS[:, s, None] * term[s]
        questions_RN = rng.integers(n, size=(size, n))
        means_R[start : start + size] = np.take_along_axis(per_question_RN, questions_RN, axis=1).mean(axis=1)
    tail = (1 - level) / 2
    # Rounded so that a bound which is 0 but for rounding holds 0.
    low, high = np.round(np.quantile(means_R, [tail, 1 - tail]), 12)
    return float(low), float(high)


def _mcnemar(b: int, c: int) -> float:
    return float(binomtest(b, b + c, 0.5).pvalue) if b + c else 1.0


def _sign_flip(difference_N: Array, resamples: int, seed: int) -> float:
    """Return the two-sided p-value of the mean under random signs; questions without difference carry none."""
    moving = difference_N[difference_N != 0]
    if len(moving) < 2:
        return 1.0  # both signs of a single difference are equally likely
    result = permutation_test(
        (moving,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=_CHUNK,
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def _least_detectable(difference_N: Array) -> float:
    if np.ptp(difference_N) < 1e-12:
        return float("nan")
    standard_error = difference_N.std(ddof=1) / np.sqrt(len(difference_N))
    return float((norm.ppf(1 - ALPHA / 2) + norm.ppf(POWER)) * standard_error)
