"""The shadow gate: may the new scorer take the place of the old one? A gate on the reward, not on the policy.

Both score the same frozen transcripts, whose success is verified and on whose questions neither was calibrated. The new
one must rank them much as the old one does, choose much the same best ones, and tell success better.

Axes: N transcripts, R resamples of them; the first row of R is no resample but the transcripts themselves.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from leverlab.errors import LeverlabError
from leverlab.lm.questions import Question
from leverlab.lm.records import DialogueRecord

Array = NDArray[np.float64]

TOP = 0.1  # the share of the transcripts whose overlap is measured, rounded up to a whole number
FEWEST = 10  # transcripts
_DIGITS = 12  # scores that differ by rounding are ties
_TAIL = 0.025  # of a 95 % interval, on each side


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; `reason` says why one of them is NaN, or which resamples were left out."""

    value: float
    low: float
    high: float
    reason: str = ""


@dataclass(frozen=True)
class ShadowResult:
    """How the new scorer stands to the old one on `n` transcripts.

    spearman: rank correlation of old and new scores. overlap: the share of the old top 10 percent that is in the new
    one. correlation_old, correlation_new: of the scores with success. gain: how far the second is above the first, as a
    share of the first.
    """

    n: int
    spearman: Estimate
    overlap: Estimate
    correlation_old: Estimate
    correlation_new: Estimate
    gain: Estimate


def shadow_gate(
    old_scores_N: ArrayLike,
    new_scores_N: ArrayLike,
    success_N: ArrayLike,
    seed: int,
    tie_breaks: int = 100,
    resamples: int = 2000,
) -> ShadowResult:
    """Return how the new scorer stands to the old one, with percentile bootstrap intervals over transcripts.

    success_N: 0 or 1; the correlation with it is Pearson's, which is then the point-biserial one. spearman: ties have
    their mean rank. overlap: the mean over `tie_breaks` orders of the ties, drawn for each scorer by itself, so that
    ties of one scorer cannot agree with those of the other; copies of a transcript in a resample stand together.
    gain: (correlation_new - correlation_old) / correlation_old. Everything is fixed by `seed`, and one draw of
    transcripts serves all five. Scores that differ by less than 1e-12 are ties.

    What cannot be told is NaN with a reason, and no gate lets NaN pass: all of it for a scorer that gives every
    transcript the same score, correlations when success has one class, the gain when the old correlation is not above
    0. A resample in which that happens is left out, and the interval is NaN when those are more than its tails hold.
    Raises `LeverlabError` for fewer than `FEWEST` transcripts, unequal numbers, scores that are not finite, and success
    other than 0 and 1.
    """
    old_N, new_N, success_N = _checked(old_scores_N, new_scores_N, success_N)
    if tie_breaks < 1 or resamples < 1:
        raise LeverlabError(
            f"the shadow gate needs tie_breaks and resamples of at least 1, got {tie_breaks} and {resamples}"
        )
    rng, n = np.random.default_rng(seed), len(success_N)
    drawn_RN = np.vstack([np.arange(n), rng.integers(n, size=(resamples, n))])
    old_RN, new_RN, success_RN = old_N[drawn_RN], new_N[drawn_RN], success_N[drawn_RN]
    correlation_old_R, correlation_new_R = _pearson(old_RN, success_RN), _pearson(new_RN, success_RN)
    above_R = np.where(correlation_old_R > 0, correlation_old_R, np.nan)
    same = _same_scores(old_N, new_N)
    one_class = same or _one_class(success_N)
    return ShadowResult(
        n=n,
        spearman=_estimate(_pearson(rankdata(old_RN, axis=1), rankdata(new_RN, axis=1)), same),
        overlap=_estimate(_overlaps(old_N, new_N, drawn_RN, rng, tie_breaks), same),
        correlation_old=_estimate(correlation_old_R, one_class),
        correlation_new=_estimate(correlation_new_R, one_class),
        gain=_estimate((correlation_new_R - above_R) / above_R, one_class or _no_gain(float(correlation_old_R[0]))),
    )


def pick_transcripts(
    calibration: Sequence[DialogueRecord],
    shadow: Sequence[DialogueRecord],
    questions: Mapping[str, Question],
    count: int,
    seed: int,
) -> list[DialogueRecord]:
    """Return `count` transcripts of `shadow`, as evenly over its policies and temperatures as there are enough.

    calibration: what the new scorer was calibrated on. questions: id → question, of both. The pick is fixed by `seed`
    and does not depend on the order of `shadow`.
    Raises `LeverlabError` when a question, its text or its twin stands in both, when a question is not known, and when
    there are fewer than `count` transcripts.
    """
    _check_disjoint(calibration, shadow, questions)
    if not 1 <= count <= len(shadow):
        raise LeverlabError(
            f"{count} transcripts were asked for, and the shadow split has {len(shadow)}; sample more dialogues there"
        )
    cells: dict[tuple[str, float], list[DialogueRecord]] = {}
    for record in sorted(shadow, key=lambda record: record.model_dump_json()):
        cells.setdefault((record.policy, record.temperature), []).append(record)
    rng = np.random.default_rng(seed)
    shuffled = [[cell[n] for n in rng.permutation(len(cell))] for _, cell in sorted(cells.items())]
    in_turn = [record for row in zip_longest(*shuffled) for record in row if record is not None]
    first: dict[str, DialogueRecord] = {}
    again = [record for record in in_turn if first.setdefault(record.question, record) is not record]
    return [*first.values(), *again][:count]


def _check_disjoint(
    calibration: Sequence[DialogueRecord], shadow: Sequence[DialogueRecord], questions: Mapping[str, Question]
) -> None:
    for record in (*calibration, *shadow):
        if record.question not in questions:
            raise LeverlabError(f"a dialogue is on question '{record.question}', which is in no split that was given")
    seen = {mark: record.question for record in calibration for mark in _marks(questions[record.question])}
    for record in shadow:
        for mark in _marks(questions[record.question]):
            if mark in seen:
                raise LeverlabError(
                    f"question '{record.question}' of the shadow split is question '{seen[mark]}' of the calibration, "
                    "or its twin; the gate would judge the scorer on what it was fitted to: use disjoint splits"
                )


def _marks(question: Question) -> tuple[str, str]:
    return question.twin or question.id, question.text


def _checked(old_N: ArrayLike, new_N: ArrayLike, success_N: ArrayLike) -> tuple[Array, Array, Array]:
    old, new, success = (np.asarray(values, dtype=np.float64) for values in (old_N, new_N, success_N))
    if old.ndim != 1 or not old.shape == new.shape == success.shape or len(old) < FEWEST:
        raise LeverlabError(
            f"the shadow gate needs an old score, a new score and a success for each of {FEWEST} transcripts or more; "
            f"got shapes {old.shape}, {new.shape} and {success.shape}"
        )
    for name, values in (("old", old), ("new", new)):
        if not np.isfinite(values).all():
            raise LeverlabError(
                f"{int((~np.isfinite(values)).sum())} of {len(values)} {name} scores are not finite; mend the scorer"
            )
    if not np.isin(success, (0, 1)).all():
        raise LeverlabError("the success of each transcript must be 0 or 1; verify every transcript first")
    return old.round(_DIGITS), new.round(_DIGITS), success


def _same_scores(old_N: Array, new_N: Array) -> str:
    same = [name for name, values in (("old", old_N), ("new", new_N)) if np.ptp(values) == 0]
    return f"the {' and the '.join(same)} scorer gives every transcript the same score" if same else ""


def _one_class(success_N: Array) -> str:
    if np.ptp(success_N) > 0:
        return ""
    return f"{'every' if success_N[0] else 'no'} transcript is a success, so that no score can correlate with it"


def _no_gain(correlation_old: float) -> str:
    if correlation_old > 0:
        return ""
    return f"the old scorer's correlation with success is {correlation_old:.3g}; only above 0 can another gain on it"


def _pearson(x_RN: Array, y_RN: Array) -> Array:
    """Return the correlation of each row, shape (R,); NaN where one of the two does not vary."""
    x_RN, y_RN = (values - values.mean(axis=1, keepdims=True) for values in (x_RN, y_RN))
    scale_R = np.sqrt((x_RN**2).sum(axis=1) * (y_RN**2).sum(axis=1))
    varies_R = (np.ptp(x_RN, axis=1) > 0) & (np.ptp(y_RN, axis=1) > 0)
    found: Array = (x_RN * y_RN).sum(axis=1) / np.where(varies_R, scale_R, np.nan)
    return found


def _overlaps(
    old_N: Array, new_N: Array, drawn_RN: NDArray[np.int64], rng: np.random.Generator, tie_breaks: int
) -> Array:
    """Return for each row the share of the old scorer's top transcripts that are in the new one's, shape (R,)."""
    n = len(old_N)
    counts_RN = np.stack([np.bincount(drawn_N, minlength=n) for drawn_N in drawn_RN])
    top = math.ceil(TOP * n)
    shared_R = np.zeros(len(drawn_RN))
    for _ in range(tie_breaks):
        orders = [np.lexsort((rng.random(n), -scores_N)) for scores_N in (old_N, new_N)]
        shared_R += np.minimum(*(_chosen(counts_RN, order_N, top) for order_N in orders)).sum(axis=1)
    return shared_R / (tie_breaks * top)


def _chosen(counts_RN: NDArray[np.int64], order_N: NDArray[np.int64], top: int) -> NDArray[np.int64]:
    """Return how many copies of each transcript are among the first `top` of its row."""
    ordered_RN = counts_RN[:, order_N]
    before_RN = ordered_RN.cumsum(axis=1) - ordered_RN
    chosen_RN = np.empty_like(counts_RN)
    chosen_RN[:, order_N] = np.clip(top - before_RN, 0, ordered_RN)
    return chosen_RN


def _estimate(values_R: Array, reason: str) -> Estimate:
    nan = float("nan")
    if reason:
        return Estimate(nan, nan, nan, reason)
    value, resampled_R = float(values_R[0]), values_R[1:]
    left_out = int(np.isnan(resampled_R).sum())
    if left_out > _TAIL * len(resampled_R):
        return Estimate(value, nan, nan, f"it cannot be told in {left_out} of {len(resampled_R)} resamples")
    # Rounded so that a bound which is 0 but for rounding holds 0.
    low, high = np.nanquantile(resampled_R, [_TAIL, 1 - _TAIL]).round(_DIGITS)
    left = f"{left_out} of {len(resampled_R)} resamples, in which it cannot be told, are left out" if left_out else ""
    return Estimate(value, float(low), float(high), left)
