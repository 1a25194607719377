"""The strength of the prior: cross-validation against a slow loop, and the choice by hand."""

import math

import numpy as np
import pytest

from leverlab.errors import LeverlabError
from leverlab.lm.calibration import Held, choose_strength, cross_validate
from leverlab.lm.scorers import calibrate, scores
from leverlab.lm.shadow import shadow_gate

PRIOR = np.array([0.5, 0.3, 0.2])


def data(count: int = 90) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Dialogues, three on each question: right when the second feature is high, which the prior undervalues."""
    rng = np.random.default_rng(0)
    features_NF = rng.random((count, 3))
    return features_NF, (features_NF[:, 1] > 0.4).astype(float), [f"q{n // 3:02}" for n in range(count)]


def test_every_fold_is_judged_by_a_scorer_that_did_not_see_it() -> None:
    features_NF, success_N, groups = data()
    found = cross_validate(features_NF, success_N, groups, PRIOR, (1.0, 50.0), 3, 7, 5)
    for row, strength in zip(found, (1.0, 50.0), strict=True):
        results = []
        for fold in range(3):
            out = [n for n, name in enumerate(groups) if int(name[1:]) % 3 == fold]
            others = [n for n in range(90) if n not in out]
            new_F = calibrate(features_NF[others], success_N[others], PRIOR, strength)
            old, new = scores(features_NF[out], PRIOR), scores(features_NF[out], new_F)
            results.append(shadow_gate(old, new, success_N[out], 7, 5, 1))
        assert row.gain == pytest.approx(sum(one.gain.value for one in results) / 3)
        assert row.spearman == min(one.spearman.value for one in results)
        assert row.overlap == min(one.overlap.value for one in results)
    assert found[0].gain > found[1].gain > 0
    assert found[0].spearman < found[1].spearman


def test_dialogues_on_a_question_stay_together() -> None:
    """Whatever order they come in; were they apart, the order would change the folds."""
    features_NF, success_N, groups = data()
    order = np.random.default_rng(1).permutation(90)
    mixed = cross_validate(features_NF[order], success_N[order], [groups[n] for n in order], PRIOR, (3.0,), 3, 7, 5)
    (row,) = cross_validate(features_NF, success_N, groups, PRIOR, (3.0,), 3, 7, 5)
    assert mixed[0][:3] == pytest.approx(row[:3])


def test_the_choice_by_hand() -> None:
    rows = [Held(5, 0.18, 0.5, 1.0), Held(10, 0.17, 0.9, 0.4), Held(20, 0.16, 0.8, 0.8), Held(40, 0.14, 0.97, 1.0)]
    assert choose_strength(rows, 0.78, 0.72) == (20, True)
    assert choose_strength(rows, 0.8, 0.8) == (20, True)
    assert choose_strength(rows, 0.81, 0.72) == (40, True)
    assert choose_strength(rows, 0.4, 0.3) == (5, True)
    assert choose_strength(rows[:3], 0.95, 0.72) == (20, False)
    assert choose_strength([Held(5, math.nan, 0.9, 0.9), Held(10, 0.1, 0.9, 0.9)], 0.78, 0.72) == (10, True)
    assert choose_strength([Held(5, math.nan, 0.9, 0.9), Held(10, math.nan, 0.9, 0.9)], 0.78, 0.72) == (10, True)


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        (1, r"30 calibration questions .* cannot be cut into 1 folds; lower shadow\.folds"),
        (31, r"30 calibration questions .* cannot be cut into 31 folds; lower shadow\.folds"),
        (10, r"a fold of 9 calibration dialogues is too small, 10 are needed; lower shadow\.folds"),
    ],
)
def test_folds_that_cannot_be(folds: int, message: str) -> None:
    with pytest.raises(LeverlabError, match=message):
        cross_validate(*data(), PRIOR, (3.0,), folds, 7, 5)
