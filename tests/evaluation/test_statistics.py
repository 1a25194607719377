"""Intervals and paired tests against hand-derived values, plain loops and theory."""

import math

import numpy as np
import pytest
import scipy.stats

from leverlab.errors import LeverlabError
from leverlab.evaluation.statistics import (
    MCNEMAR,
    SIGN_FLIP,
    bootstrap_interval,
    holm,
    paired_difference,
    verdict,
)


def test_bootstrap_interval_has_the_width_of_theory() -> None:
    """480 of 800 right: standard error sqrt(0.6 x 0.4 / 800) = 0.01732, so the interval is 0.6 -+ 1.96 x 0.01732."""
    mean, low, high = bootstrap_interval(np.arange(800) < 480)
    assert mean == pytest.approx(0.6)
    assert low == pytest.approx(0.6 - 0.03395, abs=0.002)
    assert high == pytest.approx(0.6 + 0.03395, abs=0.002)


def test_bootstrap_draws_seeds_too() -> None:
    """Two seeds, one always right and one never: 1/4 of the draws take a seed twice, so the 95 % interval is [0, 1]."""
    assert bootstrap_interval([[1.0] * 20, [0.0] * 20], resamples=400) == (0.5, 0.0, 1.0)
    # The same scores as one seed of halves do not vary at all.
    assert bootstrap_interval([0.5] * 20, resamples=400) == (0.5, 0.5, 0.5)


def test_crossed_bootstrap_variance_equals_a_plain_loop() -> None:
    rng = np.random.default_rng(1)
    scores = (rng.random((3, 40)) < [[0.3], [0.5], [0.9]]).astype(float)
    loop = []
    for _ in range(4000):
        seeds, questions = rng.integers(3, size=3), rng.integers(40, size=40)
        loop.append(np.mean([scores[s][q] for s in seeds for q in questions]))
    _, low, high = bootstrap_interval(scores, resamples=4000)
    assert [low, high] == pytest.approx(np.quantile(loop, [0.025, 0.975]), abs=0.025)


def test_bootstrap_is_fixed_by_the_seed_and_blind_to_the_shape_of_one_seed() -> None:
    scores = np.random.default_rng(0).random(50)
    assert bootstrap_interval(scores, 700, seed=3) == bootstrap_interval(scores[None], 700, seed=3)
    assert bootstrap_interval(scores, 700, seed=3) != bootstrap_interval(scores, 700, seed=4)
    narrow, wide = bootstrap_interval(scores, 700, level=0.5), bootstrap_interval(scores, 700, level=0.99)
    assert wide[1] < narrow[1] < narrow[2] < wide[2]


def binary_pair(both: int, a_only: int, b_only: int, neither: int) -> tuple[list[int], list[int]]:
    a = [1] * (both + a_only) + [0] * (b_only + neither)
    b = [1] * both + [0] * a_only + [1] * b_only + [0] * neither
    return a, b


def test_mcnemar_by_hand() -> None:
    """8 discordant questions, 7 for A: p = 2 (C(8,0) + C(8,1)) / 2^8 = 18/256. Difference (7 - 1) / 20."""
    found = paired_difference(*binary_pair(both=6, a_only=7, b_only=1, neither=6))
    assert found.test == MCNEMAR
    assert (found.n, found.b, found.c) == (20, 7, 1)
    assert found.p_value == pytest.approx(18 / 256)
    assert found.difference == pytest.approx(0.3)


def test_least_detectable_difference_by_hand() -> None:
    """40 + 40 of 800 differ, mean 0: sd = sqrt(80/799), times (1.95996 + 0.84162) / sqrt(800) = 0.031342."""
    found = paired_difference(*binary_pair(300, 40, 40, 420), resamples=200)
    assert found.least_detectable_difference == pytest.approx(2.801585 * math.sqrt(80 / 799 / 800), rel=1e-6)
    assert found.least_detectable_difference == pytest.approx(0.031342, abs=1e-6)


def test_least_detectable_difference_is_found_with_80_percent_power() -> None:
    """Draws of the same pair shifted by the stated difference: a z-test sees about 80 % of them."""
    rng = np.random.default_rng(5)
    a, b = np.array(binary_pair(150, 30, 30, 90), dtype=float)
    shift = paired_difference(a, b, resamples=10).least_detectable_difference
    draws = rng.choice(a - b, size=(4000, 300)) + shift
    z = draws.mean(axis=1) / (draws.std(axis=1, ddof=1) / math.sqrt(300))
    assert (np.abs(z) > 1.96).mean() == pytest.approx(0.8, abs=0.03)


def test_sign_flip_by_hand() -> None:
    """Differences .5, .5, .5, 0: of the 8 sign patterns only +++ and --- reach the observed sum, p = 2/8."""
    found = paired_difference([1.0, 0.8, 0.6, 0.3], [0.5, 0.3, 0.1, 0.3])
    assert found.test == SIGN_FLIP
    assert found.p_value == pytest.approx(0.25)
    assert (found.b, found.c, found.n) == (3, 0, 4)


def test_sign_flip_of_many_questions_agrees_with_the_t_test() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.random((2, 400)) * 0.9
    a = a + 0.04
    expected = scipy.stats.ttest_rel(a, b).pvalue
    assert 0.01 < expected < 0.6
    assert paired_difference(a, b, resamples=4000).p_value == pytest.approx(expected, abs=0.03)


def test_seeds_are_averaged_and_may_differ_in_number() -> None:
    """A's two seeds average 1, .5, 0; B has 0, .5, 1 in each of three seeds: differences 1, 0, -1."""
    found = paired_difference([[1, 1, 0], [1, 0, 0]], [[0, 0.5, 1]] * 3, resamples=500)
    assert (found.difference, found.b, found.c, found.test) == (0.0, 1, 1, SIGN_FLIP)
    assert found.p_value == 1.0
    # Three times 0.1 averages 0.10000000000000002, which is no difference from 0.1.
    rounding = paired_difference([[0.1, 0]] * 3, [0.1, 0], resamples=50)
    assert (rounding.b, rounding.c, rounding.p_value) == (0, 0, 1.0)


def test_interval_of_a_difference_is_paired() -> None:
    """B is A with 5 % of 400 questions lost: paired, the interval is about 0.05 -+ 0.021; unpaired it would be 3 times
    as wide and hold 0."""
    a, b = binary_pair(180, 20, 0, 200)
    found = paired_difference(a, b)
    assert (found.ci_low, found.ci_high) == pytest.approx((0.05 - 0.0214, 0.05 + 0.0214), abs=0.004)
    assert found.verdict == "A above B"


def test_the_same_seeds_are_drawn_in_pairs() -> None:
    """Seeds 0 and 1 of both methods are right on all questions and on none. The methods answer alike, so their
    difference has no width; drawn apart, seeds alone move it by -1 to 1. B better by .5 in both: .5 wherever drawn."""
    scores = np.repeat([[1.0], [0.0]], 40, axis=1)
    alike = paired_difference(scores, scores, resamples=2000, same_seeds=True)
    assert (alike.ci_low, alike.ci_high, alike.verdict) == (0, 0, "no difference shown")
    apart = paired_difference(scores, scores, resamples=2000)
    assert (apart.ci_low, apart.ci_high) == (-1, 1)
    lower = paired_difference(scores / 2, scores / 2 + 0.5, resamples=2000, same_seeds=True)
    assert (lower.difference, lower.ci_low, lower.ci_high) == (-0.5, -0.5, -0.5)


def test_what_varies_over_seeds_in_pairs_widens_the_interval() -> None:
    """The difference is 1 in one seed and 0 in the other, on every question: 1/4 of the draws take a seed twice."""
    a, b = np.repeat([[1.0], [0.5]], 30, axis=1), np.repeat([[0.0], [0.5]], 30, axis=1)
    found = paired_difference(a, b, resamples=2000, same_seeds=True)
    assert (found.difference, found.ci_low, found.ci_high) == (0.5, 0, 1)


def test_unlike_numbers_of_seeds_cannot_be_the_same() -> None:
    with pytest.raises(LeverlabError, match="A has 2 seeds and B has 3; they cannot be the same seeds"):
        paired_difference([[1, 0]] * 2, [[1, 0]] * 3, same_seeds=True)


def test_swapping_the_methods_mirrors_the_result() -> None:
    rng = np.random.default_rng(7)
    a, b = rng.random((2, 2, 60))
    there, back = paired_difference(a, b, resamples=2000), paired_difference(b, a, resamples=2000)
    assert there.difference == pytest.approx(-back.difference)
    assert (there.ci_low, there.ci_high) == pytest.approx((-back.ci_high, -back.ci_low), abs=0.01)
    assert (there.b, there.c) == (back.c, back.b)
    assert there.least_detectable_difference == pytest.approx(back.least_detectable_difference)
    order = rng.permutation(60)
    assert paired_difference(a[:, order], b[:, order], resamples=10).difference == pytest.approx(there.difference)


def test_equal_methods_show_no_difference() -> None:
    found = paired_difference([1, 0, 1, 1], [1, 0, 1, 1])
    assert (found.difference, found.ci_low, found.ci_high, found.p_value) == (0, 0, 0, 1)
    assert found.verdict == "no difference shown"
    assert math.isnan(found.least_detectable_difference)


@pytest.mark.parametrize(
    ("low", "high", "p", "expected"),
    [
        (0.01, 0.05, 0.01, "A above B"),
        (-0.05, -0.01, 0.01, "A below B"),
        (0.01, 0.05, 0.05, "no difference shown"),
        (0.0, 0.05, 0.01, "no difference shown"),
        (-0.01, 0.05, 0.001, "no difference shown"),
        (0.01, 0.05, math.nan, "no difference shown"),
    ],
)
def test_verdict_needs_interval_and_p(low: float, high: float, p: float, expected: str) -> None:
    assert verdict(low, high, p) == expected


def test_holm_by_hand() -> None:
    """Sorted .01, .02, .03, .5: x4, x3, x2, x1 = .04, .06, .06 (kept rising), .5; back in the given order."""
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([]).size == 0
    for bad in ([0.1, math.nan], [1.2], [-0.1]):
        with pytest.raises(LeverlabError, match="p-values"):
            holm(bad)


def test_bad_scores_are_refused() -> None:
    for bad in ([], [0.5, math.nan], [1.5], [-0.1], [[[0.5]]]):
        with pytest.raises(LeverlabError, match="scores"):
            bootstrap_interval(bad)
    with pytest.raises(LeverlabError, match="3 questions and B has 2"):
        paired_difference([1, 0, 1], [1, 0])
    with pytest.raises(LeverlabError, match="question 1 is 'q2' in A and 'q3' in B"):
        paired_difference([1, 0], [1, 0], ["q1", "q2"], ["q1", "q3"])
    with pytest.raises(LeverlabError, match="one method only"):
        paired_difference([1, 0], [1, 0], ["q1", "q2"])
    with pytest.raises(LeverlabError, match="3 and 3 question ids"):
        paired_difference([1, 0], [1, 0], ["a", "b", "c"], ["a", "b", "c"])
    with pytest.raises(LeverlabError, match="resamples"):
        bootstrap_interval([1.0], resamples=0)
    with pytest.raises(LeverlabError, match="level"):
        bootstrap_interval([1.0], level=1.0)
