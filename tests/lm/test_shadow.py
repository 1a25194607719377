"""The shadow gate against hand-derived values and slow loops, and what it says when something cannot be told."""

import math

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from leverlab.errors import LeverlabError
from leverlab.evaluation.gates import within
from leverlab.lm.records import DialogueRecord
from leverlab.lm.shadow import pick_transcripts, shadow_gate
from tests.lm.scripted import final, question


def drawn(n: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return old scores, new scores and success that go together; the scores have ties."""
    rng = np.random.default_rng(seed)
    success_N = (rng.random(n) < 0.6).astype(float)
    old_N = (0.3 * success_N + 0.3 * rng.normal(size=n)).round(1)
    return old_N, (old_N + 0.2 * success_N + 0.1 * rng.normal(size=n)).round(1), success_N


def test_a_scorer_against_itself() -> None:
    """Nothing is lost or gained, not even in resamples, where a transcript may stand several times."""
    success_N = drawn()[2]
    old_N = 2 * success_N + np.random.default_rng(1).normal(size=60)
    found = shadow_gate(old_N, old_N, success_N, seed=0, resamples=200)
    for name, value in (("spearman", 1), ("overlap", 1), ("gain", 0)):
        estimate = getattr(found, name)
        assert (estimate.value, estimate.low, estimate.high) == pytest.approx((value,) * 3, abs=1e-9)
        assert estimate.reason == ""


def test_gain_by_hand() -> None:
    """8 successes and 8 failures, scores of +-1: correlation = (agreements - disagreements) / 16.

    The old one is wrong on 2 of each (12 - 4 = 8: .5), the new one on 1 of each (14 - 2 = 12: .75); gain .25 / .5.
    """
    success_N = [1] * 8 + [0] * 8
    old_N = [1] * 6 + [-1] * 2 + [-1] * 6 + [1] * 2
    new_N = [1] * 7 + [-1] + [-1] * 7 + [1]
    found = shadow_gate(old_N, new_N, success_N, seed=0, tie_breaks=1, resamples=10)
    assert (found.correlation_old.value, found.correlation_new.value) == pytest.approx((0.5, 0.75))
    assert found.gain.value == pytest.approx(0.5)
    assert found.n == 16


def test_overlap_of_ties_by_hand() -> None:
    """Of 20 the top 2. Old: the first is best, three share the second place; new: the first and one of those three.

    The old top holds that one in a third of the tie-breaks: (1 + 1/3) / 2 = 2/3.
    """
    old_N = [9, 8, 8, 8, *range(6, -10, -1)]
    new_N = [8, 9, 7, 6, *range(5, -11, -1)]
    found = shadow_gate(old_N, new_N, [1, 0] * 10, seed=0, tie_breaks=4000, resamples=1)
    assert found.overlap.value == pytest.approx(2 / 3, abs=0.02)


def test_ties_of_two_scorers_are_broken_apart() -> None:
    """Of 40 the top 4, 20 share the first place in both: 4 of 20 fall to each, and 4 * 4/20 = .8 to both: .2."""
    tied_N = [1] * 20 + [0] * 20
    found = shadow_gate(tied_N, tied_N, [1, 0] * 20, seed=0, tie_breaks=4000, resamples=1)
    assert found.overlap.value == pytest.approx(0.2, abs=0.01)


def test_the_top_is_rounded_up() -> None:
    """Of 11 the top 2: the best ones of both are the same two in another order, so that a top of 1 would share none."""
    found = shadow_gate([3, 2, *[0] * 9], [2, 3, *[0] * 9], [1, 0] * 5 + [1], seed=0, resamples=1)
    assert found.overlap.value == 1


def slow_overlap(old_N: np.ndarray, new_N: np.ndarray, rows: np.ndarray, orders: list[list[np.ndarray]]) -> float:
    """Each transcript as often as it was drawn, sorted by score, then by its place among the ties."""
    top = math.ceil(len(rows) / 10)
    shares = []
    for old_keys, new_keys in orders:
        tops = [
            sorted(rows, key=lambda n, scores=scores, keys=keys: (-scores[n], keys[n]))[:top]
            for scores, keys in ((old_N, old_keys), (new_N, new_keys))
        ]
        shared = sum(min(tops[0].count(n), tops[1].count(n)) for n in set(tops[0]))
        shares.append(shared / top)
    return float(np.mean(shares))


def test_intervals_against_a_slow_loop() -> None:
    old_N, new_N, success_N = drawn()
    found = shadow_gate(old_N, new_N, success_N, seed=3, tie_breaks=5, resamples=40)
    rng = np.random.default_rng(3)
    resamples = [np.arange(60), *rng.integers(60, size=(40, 60))]
    orders = [[rng.random(60) for _ in range(2)] for _ in range(5)]
    spearman = [spearmanr(old_N[rows], new_N[rows]).statistic for rows in resamples]
    overlap = [slow_overlap(old_N, new_N, rows.tolist(), orders) for rows in resamples]
    old = [pearsonr(old_N[rows], success_N[rows]).statistic for rows in resamples]
    new = [pearsonr(new_N[rows], success_N[rows]).statistic for rows in resamples]
    gain = [(b - a) / a for a, b in zip(old, new, strict=True)]
    expected = {"spearman": spearman, "overlap": overlap, "correlation_old": old, "correlation_new": new, "gain": gain}
    for name, values in expected.items():
        estimate = getattr(found, name)
        low, high = np.quantile(values[1:], [0.025, 0.975])
        assert (estimate.value, estimate.low, estimate.high) == pytest.approx((values[0], low, high)), name
        assert estimate.low < estimate.high


def test_the_seed_fixes_everything() -> None:
    runs = [shadow_gate(*drawn(), seed=seed, tie_breaks=3, resamples=50) for seed in (0, 0, 1)]
    assert runs[0] == runs[1]
    assert runs[0].gain.low != runs[2].gain.low


def test_scales_do_not_matter() -> None:
    """Ranks do not see a monotone change of scores, correlations a linear one. Order of transcripts: no value does."""
    old_N, new_N, success_N = drawn()
    plain = shadow_gate(old_N, new_N, success_N, seed=0, resamples=50)
    bent = shadow_gate(np.exp(old_N), new_N**3, success_N, seed=0, resamples=50)
    assert (bent.spearman, bent.overlap) == (plain.spearman, plain.overlap)
    scaled = shadow_gate(3 * old_N - 1, 0.5 * new_N + 7, success_N, seed=0, resamples=50)
    assert scaled.gain.value == pytest.approx(plain.gain.value)
    assert scaled.gain.low == pytest.approx(plain.gain.low)
    turned = shadow_gate(old_N[::-1], new_N[::-1], success_N[::-1], seed=0, resamples=50)
    assert turned.gain.value == pytest.approx(plain.gain.value)
    assert turned.spearman.value == pytest.approx(plain.spearman.value)


def test_scores_that_differ_by_rounding_are_ties() -> None:
    """.1 + .2 is above .3 in floating point: not tied, the first would be the only top one in every tie-break."""
    found = shadow_gate([0.1 + 0.2, 0.3, *[0.0] * 8], [1, 0, *[0] * 8], [1, 0] * 5, 0, tie_breaks=2000, resamples=1)
    assert found.overlap.value == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(("success", "said"), [(1, "every transcript is a success"), (0, "no transcript is a success")])
def test_one_class_of_success_fails(success: int, said: str) -> None:
    old_N, new_N, _ = drawn()
    found = shadow_gate(old_N, new_N, [success] * 60, seed=0, tie_breaks=2, resamples=10)
    for estimate in (found.gain, found.correlation_old, found.correlation_new):
        assert math.isnan(estimate.value)
        assert math.isnan(estimate.low)
        assert said in estimate.reason
        assert not within(estimate.value, 0.0, "at_least")
    assert found.spearman.value > 0


@pytest.mark.parametrize("which", [0, 1])
def test_a_constant_scorer_fails(which: int) -> None:
    given = [*drawn()]
    given[which] = np.full(60, 0.1 + 0.2)
    found = shadow_gate(*given, seed=0, tie_breaks=2, resamples=10)
    for estimate in (found.spearman, found.overlap, found.gain):
        assert math.isnan(estimate.value)
        assert f"the {('old', 'new')[which]} scorer gives every transcript the same score" in estimate.reason


def test_no_gain_on_a_correlation_that_is_not_above_zero() -> None:
    """Both are negative, and the new one less so: (new - old) / old would be a gain below zero all the same."""
    old_N, new_N, success_N = drawn()
    found = shadow_gate(-old_N, new_N, success_N, seed=0, tie_breaks=2, resamples=10)
    assert found.correlation_old.value < 0
    assert math.isnan(found.gain.value)
    assert "only above 0" in found.gain.reason


def test_a_gain_on_next_to_nothing_has_no_interval() -> None:
    """Success is 20 of 40 twice, the old score a shade higher there: half of the resamples turn its sign."""
    success_N = [1] * 20 + [0] * 20
    old_N = np.array([*range(20), *range(20)]) + 0.01 * np.array(success_N)
    found = shadow_gate(old_N, old_N + np.array(success_N), success_N, seed=0, tie_breaks=1, resamples=200)
    assert found.gain.value > 1
    assert math.isnan(found.gain.low)
    assert math.isnan(found.gain.high)
    assert int(found.gain.reason.split("in ")[1].split()[0]) == pytest.approx(100, abs=30)
    assert found.correlation_old.low < 0 < found.correlation_old.high


def test_resamples_of_one_class_are_told() -> None:
    """One success of 12 is in no resample with chance (11/12)^12 = .35; 5 of 50 with .9^50 = .005."""
    old_N = np.linspace(0, 1, 12)
    rare = shadow_gate(old_N, old_N**2, [0] * 11 + [1], seed=0, tie_breaks=2, resamples=400).correlation_old
    assert rare.value > 0
    assert math.isnan(rare.low)
    left_out = int(rare.reason.split()[-4])
    assert left_out / 400 == pytest.approx(0.352, abs=0.07)
    old_N = np.linspace(0, 1, 50)
    some = shadow_gate(old_N, old_N**2, [0] * 45 + [1] * 5, seed=0, tie_breaks=1, resamples=2000).correlation_old
    assert 0 < some.low < some.value < some.high
    assert int(some.reason.split()[0]) / 2000 == pytest.approx(0.005, abs=0.004)


@pytest.mark.parametrize(
    ("old", "new", "success", "said"),
    [
        ([math.nan, *[0.5] * 9], range(10), [1, 0] * 5, "1 of 10 old scores"),
        (range(10), [math.inf, math.nan, *[0.5] * 8], [1, 0] * 5, "2 of 10 new scores"),
        (range(10), range(10), [0.5] * 10, "0 or 1"),
        (range(10), range(10), [math.nan] * 10, "0 or 1"),
        (range(9), range(9), [1] * 9, "10 transcripts"),
        (range(10), range(11), [1] * 10, "shapes"),
    ],
)
def test_refused(old: list[float], new: list[float], success: list[float], said: str) -> None:
    with pytest.raises(LeverlabError, match=said):
        shadow_gate(list(old), list(new), success, seed=0)


def test_at_least_one_draw() -> None:
    for draws in ({"tie_breaks": 0}, {"resamples": 0}):
        with pytest.raises(LeverlabError, match="at least 1"):
            shadow_gate(*drawn(), seed=0, **draws)


def record(name: str, policy: str = "sft", temperature: float = 1.0, step: int = 0) -> DialogueRecord:
    return DialogueRecord(
        question=name,
        policy=policy,
        seed=0,
        step=step,
        temperature=temperature,
        turns=[final("Rome")],
        replies=[],
        end="final",
        confidence=0.5,
        tokens=3,
    )


QUESTIONS = {name: question(id=name, text=f"{name} ?") for name in ("a", "b", "c", "d")}
SPLIT = [
    *(record(name, policy, temperature) for name in "bcd" for policy in ("sft", "rce") for temperature in (0.0, 1.0)),
    *(record("b", "sft", 1.0, step) for step in range(1, 9)),
]


def test_picks_are_even_over_policies_and_temperatures() -> None:
    """Cells of 3, 3, 3 and 11 transcripts: 8 picks are two of each, 16 are all of the small ones and 7 of the other."""
    for count, each in ((8, [2, 2, 2, 2]), (16, [3, 3, 3, 7])):
        picked = pick_transcripts([record("a")], SPLIT, QUESTIONS, count, seed=0)
        cells = [(found.policy, found.temperature) for found in picked]
        assert sorted(cells.count(cell) for cell in set(cells)) == each
        assert len({found.model_dump_json() for found in picked}) == count


def test_picks_are_fixed_by_the_seed_alone() -> None:
    picked = pick_transcripts([record("a")], SPLIT, QUESTIONS, 6, seed=0)
    assert picked == pick_transcripts([record("a")], SPLIT[::-1], QUESTIONS, 6, seed=0)
    assert any(picked != pick_transcripts([record("a")], SPLIT, QUESTIONS, 6, seed=seed) for seed in (1, 2, 3))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"d": question(id="d", text="d ?", twin="a")},  # d is a with a fact left out
        {"a": question(id="a", text="a ?", twin="c")},
        {"d": question(id="d", text="d ?", twin="x"), "a": question(id="a", text="a ?", twin="x")},
        {"d": question(id="d", text="a ?")},
    ],
)
def test_splits_must_be_disjoint(changes: dict[str, object]) -> None:
    calibration = [record("b" if not changes else "a", policy="grpo")]
    with pytest.raises(LeverlabError, match="use disjoint splits"):
        pick_transcripts(calibration, SPLIT, QUESTIONS | changes, 1, seed=0)


def test_picks_that_cannot_be_made() -> None:
    with pytest.raises(LeverlabError, match="the shadow split has 20"):
        pick_transcripts([record("a")], SPLIT, QUESTIONS, 21, seed=0)
    with pytest.raises(LeverlabError, match="question 'e', which is in no split"):
        pick_transcripts([record("e")], SPLIT, QUESTIONS, 1, seed=0)
