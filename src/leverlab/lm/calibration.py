"""How firmly the new scorer is held to the old one: chosen by cross-validation on the calibration dialogues alone."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from leverlab.errors import LeverlabError
from leverlab.lm.scorers import calibrate, scores
from leverlab.lm.shadow import FEWEST, shadow_gate


class Held(NamedTuple):
    """What a strength of the prior came to on dialogues that were held out.

    gain: mean over folds, NaN where one cannot tell. spearman, overlap: of the worst fold. See `shadow.ShadowResult`.
    """

    strength: float
    gain: float
    spearman: float
    overlap: float


def cross_validate(
    features_NF: ArrayLike,
    success_N: ArrayLike,
    groups: Sequence[str],
    prior_F: ArrayLike,
    strengths: Sequence[float],
    folds: int,
    seed: int,
    tie_breaks: int,
) -> list[Held]:
    """Return a row for each strength, in their order.

    groups: of each dialogue, what must stay in one fold: dialogues on a question, and on its twin. The folds take the
    groups in turn, by name. Raises `LeverlabError` for folds that are too small, and as `calibrate` and `shadow_gate`.
    """
    X, y, w0 = (np.asarray(value, dtype=np.float64) for value in (features_NF, success_N, prior_F))
    names = sorted(set(groups))
    if not 2 <= folds <= len(names):
        raise LeverlabError(
            f"{len(names)} calibration questions (twins count as one) cannot be cut into {folds} folds; lower "
            "shadow.folds"
        )
    fold_of = {name: place % folds for place, name in enumerate(names)}
    fold_N = np.array([fold_of[name] for name in groups])
    if (smallest := int(np.bincount(fold_N).min())) < FEWEST:
        raise LeverlabError(
            f"a fold of {smallest} calibration dialogues is too small, {FEWEST} are needed; lower shadow.folds, or "
            "raise data.calib"
        )
    rows = []
    for strength in strengths:
        found = []
        for fold in range(folds):
            out_N = fold_N == fold
            new_F = calibrate(X[~out_N], y[~out_N], w0, strength)
            old_scores_N, new_scores_N = scores(X[out_N], w0), scores(X[out_N], new_F)
            found.append(shadow_gate(old_scores_N, new_scores_N, y[out_N], seed, tie_breaks, resamples=1))
        rows.append(
            Held(
                strength=float(strength),
                gain=float(np.mean([one.gain.value for one in found])),
                spearman=float(np.min([one.spearman.value for one in found])),
                overlap=float(np.min([one.overlap.value for one in found])),
            )
        )
    return rows


def choose_strength(rows: Sequence[Held], least_spearman: float, least_overlap: float) -> tuple[float, bool]:
    """Return the strength with the highest gain among the faithful ones, which rank and choose as the old scorer does
    in every fold, and whether it is one; the first of equals.

    Where none is faithful it is the greatest of all, the one that differs least, and where no gain can be told the
    greatest of the faithful.
    """
    faithful = [row for row in rows if row.spearman >= least_spearman and row.overlap >= least_overlap]
    telling = [row for row in faithful if not np.isnan(row.gain)]
    if telling:
        return max(telling, key=lambda row: row.gain).strength, True
    return max(row.strength for row in faithful or rows), bool(faithful)
