"""The reward expression: hand-worked modes, shot weights, and terms that are missing, NaN or out of range."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from leverlab.errors import LeverlabError
from leverlab.rl.rewards import (
    REWARD_MODES,
    REWARD_TERMS,
    WEIGHTED_MODES,
    mode_rewards,
    prefix_rewards,
    required_terms,
    trajectory_reward,
)

# One trajectory of three prefixes: wrong, right, right.
TERMS = {
    "correct": np.array([0.0, 1.0, 1.0]),
    "vqa_accuracy": np.array([0.3, 0.6, 1.0]),
    "answer_prob": np.array([0.1, 0.5, 0.9]),
    "beam_score": np.array([-0.2, 0.4, 0.1]),
    "relevance": np.array([0.5, 0.25, 1.0]),
}
GTPROB = {"correct": 1.0, "answer_prob": 0.5, "relevance": 0.2}


def test_weighted_sum_and_mean_by_hand() -> None:
    """3 h + 1 s = .3, 3.6, 4; the mean divides by 4: .075, .9, 1."""
    weights = {"correct": 3.0, "vqa_accuracy": 1.0}
    np.testing.assert_allclose(prefix_rewards(TERMS, weights, normalise=False), [0.3, 3.6, 4.0])
    np.testing.assert_allclose(prefix_rewards(TERMS, weights), [0.075, 0.9, 1.0])


@pytest.mark.parametrize(
    ("mode", "weights", "expected"),
    [
        ("weighted", {"correct": 3.0, "vqa_accuracy": 1.0}, [0.075, 0.9, 1.0]),
        ("hard_plus_soft", None, [0.3, 1.6, 2.0]),
        ("separated", None, [0.3, 2.6, 3.0]),
        ("hard_only", None, [0.0, 1.0, 1.0]),
        ("soft_only", None, [0.3, 0.6, 1.0]),
        # h + .5 g + .2 (1 - h) rel: 0 + .05 + .1; 1 + .25 + 0; 1 + .45 + 0
        ("hard_plus_gtprob_plus_rel", GTPROB, [0.15, 1.25, 1.45]),
        ("hard_plus_gtprob_plus_rel", {"relevance": 0.2}, [0.1, 0.0, 0.0]),
        ("hard_plus_gtprob_plus_rel", {"answer_prob": 2.0}, [0.2, 1.0, 1.8]),
        # .2 beam + 1 h
        ("legacy", {"beam_score": 0.2, "correct": 1.0}, [-0.04, 1.08, 1.02]),
    ],
)
def test_modes_by_hand(mode: Any, weights: dict[str, float] | None, expected: list[float]) -> None:
    np.testing.assert_allclose(mode_rewards(mode, TERMS, weights), expected, atol=1e-15)
    tensors = {name: torch.from_numpy(values) for name, values in TERMS.items()}
    torch.testing.assert_close(mode_rewards(mode, tensors, weights), torch.tensor(expected, dtype=torch.float64))


def test_separated_is_its_written_case_distinction() -> None:
    h, s = TERMS["correct"], TERMS["vqa_accuracy"]
    written = [2 * hard + soft if hard else soft for hard, soft in zip(h, s, strict=True)]
    np.testing.assert_allclose(mode_rewards("separated", TERMS), written)


def test_correct_may_be_boolean() -> None:
    boolean = {**TERMS, "correct": TERMS["correct"].astype(bool)}
    np.testing.assert_allclose(mode_rewards("hard_plus_gtprob_plus_rel", boolean, GTPROB), [0.15, 1.25, 1.45])
    tensors = {name: torch.from_numpy(values) for name, values in boolean.items()}
    expected = torch.tensor([0.15, 1.25, 1.45], dtype=torch.float64)
    torch.testing.assert_close(mode_rewards("hard_plus_gtprob_plus_rel", tensors, GTPROB), expected)


def test_the_order_of_weights_does_not_matter_to_the_last_bit() -> None:
    weights = {"correct": 0.1, "vqa_accuracy": 0.7, "answer_prob": 0.3}
    backwards = dict(reversed(weights.items()))
    assert prefix_rewards(TERMS, weights).tolist() == prefix_rewards(TERMS, backwards).tolist()


def test_leading_axes_pass_through() -> None:
    stacked = {name: np.stack([values, values[::-1]]) for name, values in TERMS.items()}
    rewards = mode_rewards("hard_plus_soft", stacked)
    np.testing.assert_allclose(rewards, [[0.3, 1.6, 2.0], [2.0, 1.6, 0.3]])


@pytest.mark.parametrize(
    ("mode", "weights", "expected"),
    [
        ("weighted", {"relevance": 1.0, "correct": 2.0, "beam_score": 0.0}, ("correct", "relevance")),
        ("hard_plus_soft", None, ("correct", "vqa_accuracy")),
        ("separated", None, ("correct", "vqa_accuracy")),
        ("hard_only", None, ("correct",)),
        ("soft_only", None, ("vqa_accuracy",)),
        ("hard_plus_gtprob_plus_rel", GTPROB, ("correct", "answer_prob", "relevance")),
        ("hard_plus_gtprob_plus_rel", {"answer_prob": 1.0, "relevance": 0.0}, ("answer_prob",)),
        ("hard_plus_gtprob_plus_rel", {"relevance": 1.0}, ("correct", "relevance")),  # 1 - h reads h
        ("legacy", {"beam_score": 0.2, "correct": 0.0, "relevance": 0.0}, ("beam_score",)),
    ],
)
def test_required_terms_are_just_enough(mode: Any, weights: dict[str, float] | None, expected: tuple[str, ...]) -> None:
    """The named terms suffice, and the loss of any one of them is an error that names it."""
    assert required_terms(mode, weights) == expected
    enough = {name: TERMS[name] for name in expected}
    np.testing.assert_array_equal(mode_rewards(mode, enough, weights), mode_rewards(mode, TERMS, weights))
    for name in expected:
        with pytest.raises(LeverlabError, match=f"'{name}', which is missing"):
            mode_rewards(mode, {other: TERMS[other] for other in expected if other != name}, weights)


@pytest.mark.parametrize("name", REWARD_TERMS)
def test_bad_values_name_their_term(name: str) -> None:
    weights = dict.fromkeys(REWARD_TERMS, 1.0)
    for value, message in ((math.nan, "holds NaN"), (1.5, "outside its range"), (-7.0, "outside its range")):
        broken = {**TERMS, name: np.array([0.0, value, 0.0])}
        with pytest.raises(LeverlabError, match=f"'{name}'.*{message}"):
            prefix_rewards(broken, weights)
        prefix_rewards(broken, {**weights, name: 0.0})  # a weight of zero: nobody looks at it
    with pytest.raises(LeverlabError, match="one shape"):
        prefix_rewards({**TERMS, name: np.array([0.0, 0.5])}, weights)


def test_a_negative_beam_score_is_no_error_but_a_log_probability_is() -> None:
    assert prefix_rewards(TERMS, {"beam_score": 1.0})[0] == -0.2
    with pytest.raises(LeverlabError, match="answer_prob"):
        prefix_rewards({"answer_prob": np.array([-0.1])}, {"answer_prob": 1.0})


@pytest.mark.parametrize(
    ("mode", "weights", "message"),
    [
        ("weighted", None, "needs weights"),
        ("weighted", {}, "every weight is zero"),
        ("weighted", {"correct": 0.0}, "every weight is zero"),
        ("weighted", {"correct": -1.0}, ">= 0"),
        ("weighted", {"correct": math.nan}, ">= 0"),
        ("weighted", {"corect": 0.0}, "'corect'"),
        ("legacy", {"correct": 1.0, "vqa_accuracy": 0.5}, "'vqa_accuracy'.*is not read"),
        ("hard_only", {"correct": 1.0}, "fixed weights"),
        ("hardonly", None, "unknown"),
    ],
)
def test_weights_that_nobody_would_read_are_refused(mode: Any, weights: dict[str, float] | None, message: str) -> None:
    with pytest.raises(LeverlabError, match=message):
        required_terms(mode, weights)
    with pytest.raises(LeverlabError, match=message):
        mode_rewards(mode, TERMS, weights)


def test_the_lists_of_modes_agree() -> None:
    for mode in REWARD_MODES:
        weights = {"correct": 1.0} if mode in WEIGHTED_MODES else None
        assert "correct" in required_terms(mode, weights) or mode == "soft_only"  # type: ignore[arg-type]


def test_trajectory_reward_by_hand() -> None:
    """Weights .2, .3, .2, .3 sum to 1: .2 * 1 + .3 * 0 + .2 * .5 + .3 * 1 = .6; doubled weights change nothing."""
    rewards = np.array([1.0, 0.0, 0.5, 1.0])
    assert trajectory_reward(rewards, (0.2, 0.3, 0.2, 0.3)) == pytest.approx(0.6)
    assert trajectory_reward(rewards, (0.4, 0.6, 0.4, 0.6)) == pytest.approx(0.6)
    assert trajectory_reward(torch.from_numpy(rewards), (0, 0, 0, 2)).item() == 1.0


def test_trajectory_reward_keeps_the_leading_axes() -> None:
    rewards = np.arange(12.0).reshape(2, 3, 2)
    np.testing.assert_allclose(trajectory_reward(rewards, (1, 3)), rewards[..., 0] / 4 + rewards[..., 1] * 3 / 4)


def test_trajectory_reward_refuses() -> None:
    rewards = np.array([0.5, math.nan])
    assert trajectory_reward(rewards, (1, 0)) == 0.5
    with pytest.raises(LeverlabError, match="2-shot reward holds NaN"):
        trajectory_reward(rewards, (1, 1))
    with pytest.raises(LeverlabError, match="3 shot weights do not fit"):
        trajectory_reward(rewards, (1, 1, 1))
    with pytest.raises(LeverlabError, match="every weight is zero"):
        trajectory_reward(rewards, (0, 0))
    with pytest.raises(LeverlabError, match=">= 0"):
        trajectory_reward(rewards, (1, -1))
