"""Scorers: features by hand, calibration against hand-derived weights and a slow loop, the spread of ensembles."""

import numpy as np
import pytest

from leverlab.errors import LeverlabError
from leverlab.lm.questions import UNKNOWN
from leverlab.lm.scorers import (
    FEATURES,
    PRIOR,
    as_vector,
    calibrate,
    ensemble,
    features,
    grounded,
    named,
    score,
    scores,
    spread,
    table,
)
from tests.lm.scripted import TOLD, ask, dialogue, final, question

HONEST = [ask("home"), final("Oslo")]
UNHELPFUL = {"answer": UNKNOWN, "replies": {"home": "I do not know ."}, "user": "unhelpful"}


def below_one(turns: list[str], **changes: object) -> dict[str, float]:
    """Return the features of a dialogue that are not 1."""
    return {name: value for name, value in features(dialogue(question(**changes), turns), 1.0).items() if value != 1}


def test_an_honest_dialogue_has_all_features() -> None:
    found = features(dialogue(question(), HONEST), 0.8)
    assert found == dict.fromkeys(FEATURES, 1.0) | {"confidence": 0.8}
    assert list(found) == list(FEATURES)


@pytest.mark.parametrize(
    ("turns", "lost"),
    [
        ([ask("home"), "<final>Oslo</final>"], {"thought": 0, "settled": 0}),
        ([ask("home"), "<think>Bo ?</think><final>Oslo</final>"], {"settled": 0}),
        ([final("Rome")], {"asked": 0}),
        ([ask("friend"), *HONEST], {"frugal": 2 / 3}),
        ([ask("home"), *HONEST], {"frugal": 2 / 3, "unrepeated": 0}),
        ([ask("home"), final("Paris")], {"grounded": 0}),
        ([ask("home"), final("unknown")], {"candid": 0}),
        (
            [ask(slot) for slot in "abcd"],
            {"answered": 0, "settled": 0, "frugal": 0, "grounded": 0, "candid": 0},
        ),
        (
            ["<ask>home</ask><final>Oslo</final>"],
            dict.fromkeys(("parses", "thought", "answered", "settled", "asked", "grounded", "candid"), 0),
        ),
    ],
)
def test_what_costs_a_feature(turns: list[str], lost: dict[str, float]) -> None:
    assert below_one(turns) == pytest.approx(lost)


def test_unknown_is_candid_only_when_the_user_does_not_know() -> None:
    assert below_one([ask("home"), final("Unknown")], **UNHELPFUL) == {}
    assert below_one([ask("home"), final("Rome")], **UNHELPFUL) == {"candid": 0}
    assert below_one([final("unknown")], **UNHELPFUL) == {"asked": 0, "candid": 0}


@pytest.mark.parametrize("turns", [HONEST, [final("Rome")], [ask("friend"), final("unknown")]])
def test_no_feature_looks_at_the_right_answer(turns: list[str]) -> None:
    secret = question(answer="Rome", needs_ask=False, slot="friend", kind="trap", thought="?", thought_told="?")
    assert features(dialogue(question(), turns), 0.5) == features(dialogue(secret, turns), 0.5)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Rome", True),
        ("rome.", True),
        ("Oslo", True),  # from the reply
        ("Ana Lima", True),
        ("Paris", False),
        ("Rome Paris", False),
        ("yes", True),
        ("yes Rome", False),
        ("seventeen", True),
        ("17", True),
        ("17 apples", False),
        ("?", False),
    ],
)
def test_grounded(answer: str, expected: bool) -> None:
    assert grounded(dialogue(question(), [ask("home"), final(answer)])) is expected


def test_what_was_not_told_grounds_nothing() -> None:
    assert not grounded(dialogue(question(), [final("Oslo")]))
    assert not grounded(dialogue(question(), [ask("home")] * 4))


def test_score_by_hand() -> None:
    """The prior adds up to 1; without thought and settled (.1 each), at confidence .5 (.1), .75 of it is left."""
    found = features(dialogue(question(), [ask("home"), "<final>Oslo</final>"]), 0.5)
    assert score(features(dialogue(question(), HONEST), 1.0), PRIOR) == pytest.approx(1.0)
    assert score(found, PRIOR) == pytest.approx(0.75)


def test_scores_of_a_table_are_those_of_its_rows() -> None:
    dialogues = [dialogue(question(**TOLD), turns) for turns in (HONEST, [final("Rome")], [ask("a")] * 4)]
    sure = [0.9, 0.3, 0.6]
    features_NF = table(dialogues, sure)
    assert features_NF.shape == (3, len(FEATURES))
    expected = [score(features(found, p), PRIOR) for found, p in zip(dialogues, sure, strict=True)]
    assert scores(features_NF, as_vector(PRIOR)).tolist() == expected
    assert table([], []).shape == (0, len(FEATURES))


def test_names_of_weights() -> None:
    assert named(as_vector(PRIOR)) == dict(PRIOR)
    assert as_vector(dict(reversed(PRIOR.items()))).tolist() == list(PRIOR.values())
    with pytest.raises(LeverlabError, match="not for parses"):
        as_vector({"parses": 1.0})
    with pytest.raises(LeverlabError, match="one weight for each"):
        named([1.0])


@pytest.mark.parametrize("sure", [-0.1, 1.1, float("nan")])
def test_confidence_is_a_probability(sure: float) -> None:
    with pytest.raises(LeverlabError, match="question 'q' is"):
        features(dialogue(question(), HONEST), sure)


def test_one_weight_by_hand() -> None:
    """x = (1, 1), y = (1, 0), prior .9, s = 2: w = (x'y + s w0) / (x'x + s) = (1 + 1.8) / (2 + 2) = .7."""
    assert calibrate([[1.0], [1.0]], [1, 0], [0.9], 2.0) == pytest.approx([0.7])


def test_no_weight_below_zero() -> None:
    """X = [[1, 1], [1, 0]], y = (0, 1), no prior, s -> 0: least squares gives (1, -1).

    With the second weight at 0 the first one minimises w² + (w - 1)²: it is 1/2.
    """
    assert calibrate([[1, 1], [1, 0]], [0, 1], [0, 0], 1e-9) == pytest.approx([0.5, 0.0], abs=1e-6)


def data(n: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    features_NF = rng.random((n, 4))
    return features_NF, (features_NF @ [0.9, 0.3, 0.0, -0.5] + 0.2 * rng.normal(size=n) > 0.4).astype(float)


def test_calibration_against_a_slow_descent() -> None:
    """Gradient steps on |X w - y|² + s |w - w0|², cut at zero after each: the problem is convex."""
    features_NF, success_N = data()
    prior_F, strength = np.array([0.4, 0.3, 0.2, 0.1]), 3.0
    w = prior_F.copy()
    for _ in range(5000):
        gradient_F = 2 * features_NF.T @ (features_NF @ w - success_N) + 2 * strength * (w - prior_F)
        w = np.maximum(w - 0.005 * gradient_F, 0)
    found = calibrate(features_NF, success_N, prior_F, strength)
    assert found == pytest.approx(w, abs=1e-8)
    assert found[3] == 0
    assert found[0] > 0.4


def test_a_strong_prior_stays_and_order_does_not_matter() -> None:
    features_NF, success_N = data()
    prior_F = np.array([0.4, 0.3, 0.2, 0.1])
    assert calibrate(features_NF, success_N, prior_F, 1e9) == pytest.approx(prior_F, abs=1e-6)
    turned = calibrate(features_NF[::-1], success_N[::-1], prior_F, 1.0)
    assert turned == pytest.approx(calibrate(features_NF, success_N, prior_F, 1.0))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"success_N": [1]}, "dialogues x features"),
        ({"features_NF": np.empty((0, 2)), "success_N": []}, "dialogues x features"),
        ({"prior_F": [0.1]}, "dialogues x features"),
        ({"features_NF": [[0, np.nan], [1, 1]]}, "finite"),
        ({"success_N": [0.5, 1]}, "0 or 1"),
        ({"success_N": [np.nan, 1]}, "0 or 1"),
        ({"prior_F": [0.1, -0.1]}, "at least 0"),
        ({"strength": 0.0}, "above 0"),
        ({"strength": float("nan")}, "above 0"),
    ],
)
def test_calibration_refuses(changes: dict[str, object], said: str) -> None:
    fine = {"features_NF": [[0, 1], [1, 1]], "success_N": [0, 1], "prior_F": [0.1, 0.2], "strength": 1.0}
    with pytest.raises(LeverlabError, match=said):
        calibrate(**fine | changes)
    with pytest.raises(LeverlabError, match=said):
        ensemble(**fine | changes, members=2, member_features=1, seed=0)


def test_spread_by_hand() -> None:
    """Members (0, 1) and (1, 1): scores of (1, 1) are 1 and 2, deviation .5; of (0, 1) 1 and 1; of (.5, 0) 0 and .5."""
    assert spread([[1, 1], [0, 1], [0.5, 0]], [[0, 1], [1, 1]]) == pytest.approx([0.5, 0.0, 0.25])


def test_ensemble_against_a_slow_loop() -> None:
    features_NF, success_N = data()
    prior_F = np.full(4, 0.25)
    found = ensemble(features_NF, success_N, prior_F, 1.0, members=3, member_features=2, seed=7)
    rng = np.random.default_rng(7)
    for weights_F in found:
        rows = [int(rng.integers(60)) for _ in range(60)]
        seen = rng.choice(4, 2, replace=False).tolist()
        given = [[features_NF[n][name] for name in seen] for n in rows]
        expected = dict(zip(seen, calibrate(given, [success_N[n] for n in rows], prior_F[seen], 1.0), strict=True))
        assert weights_F == pytest.approx([expected.get(name, 0.0) for name in range(4)])
    assert np.ptp(found, axis=0).max() > 0.01
    assert (found == ensemble(features_NF, success_N, prior_F, 1.0, 3, 2, seed=7)).all()
    assert (found != ensemble(features_NF, success_N, prior_F, 1.0, 3, 2, seed=8)).any()


def test_more_dialogues_spread_less() -> None:
    """The deviation of a bootstrap mean falls as 1 / sqrt(N): 16 times as many, about a quarter."""
    asked_NF = data(50, seed=1)[0]
    few, many = (spread(asked_NF, ensemble(*data(n), np.full(4, 0.25), 1.0, 40, 4, 0)).mean() for n in (60, 960))
    assert 0.15 < many / few < 0.4


def test_an_ensemble_has_members() -> None:
    with pytest.raises(LeverlabError, match="two members"):
        ensemble([[1.0]], [1], [1.0], 1.0, members=1, member_features=1, seed=0)
    for count in (0, 2):
        with pytest.raises(LeverlabError, match=rf"see {count} of 1 features; set shadow\.member_features"):
            ensemble([[1.0]], [1], [1.0], 1.0, members=2, member_features=count, seed=0)


def test_members_that_see_other_features_disagree_where_features_part() -> None:
    """Two features that were the same in every dialogue: members that see one of them score alike what has both, and
    apart what has the first alone; resamples alone give every member the same weights, whatever is scored.
    """
    both = [[0.0, 0.0], [1.0, 1.0]] * 20
    success = [0, 1] * 20
    apart, alike = (ensemble(both, success, [0.5, 0.5], 0.01, 8, seen, seed=0) for seen in (1, 2))
    assert spread([[1, 1]], apart)[0] < 0.01
    assert spread([[1, 0]], apart)[0] > 0.3
    assert spread([[1, 1], [1, 0]], alike).max() < 0.01
