"""Gates pass and fail where the rule says, and never by mistake."""

import dataclasses
import math
from typing import Any

import pytest

from leverlab.config.report import GateParams
from leverlab.errors import LeverlabError
from leverlab.evaluation.gates import Gate, evaluate_gates, headline_metrics
from leverlab.evaluation.gates_file import gates_record

METRICS = {"grpo": {"shots_4": 0.62, "shots_1": 0.5}, "lift": {"over_sft": -0.01}, "seeds": 3}


def gate(rule: dict[str, Any], metrics: dict[str, Any] | None = None) -> Gate:
    (found,) = evaluate_gates({"rule": GateParams.model_validate(rule)}, metrics or METRICS)
    return found


def test_gates_keep_the_order_and_carry_what_was_measured() -> None:
    rules = {
        "good": {"metric": "grpo.shots_4", "at_least": 0.6},
        "lift": {"metric": "lift.over_sft", "at_least": 0.02},
        "few": {"metric": "seeds", "at_most": 5},
    }
    found = evaluate_gates({name: GateParams.model_validate(rule) for name, rule in rules.items()}, METRICS)
    assert found == [
        Gate("good", "grpo.shots_4", 0.6, "at_least", 0.62, True),
        Gate("lift", "lift.over_sft", 0.02, "at_least", -0.01, False),
        Gate("few", "seeds", 5.0, "at_most", 3.0, True),
    ]


@pytest.mark.parametrize(
    ("direction", "threshold", "passed"),
    [
        ("at_least", 0.61, True),
        ("at_least", 0.62, True),
        ("at_least", 0.63, False),
        ("at_most", 0.61, False),
        ("at_most", 0.62, True),
        ("at_most", 0.63, True),
    ],
)
def test_the_threshold_itself_passes(direction: str, threshold: float, passed: bool) -> None:
    assert gate({"metric": "grpo.shots_4", direction: threshold}).passed is passed


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("direction", ["at_least", "at_most"])
def test_a_value_that_is_not_finite_never_passes(value: float, direction: str) -> None:
    assert gate({"metric": "m", direction: 0}, {"m": value}).passed is False


def test_headline_metrics_have_four_decimals_and_count_failed_gates() -> None:
    rules = {"up": {"metric": "grpo.shots_4", "at_least": 0.7}, "low": {"metric": "grpo.shots_4", "at_least": 0.6}}
    gates = evaluate_gates({name: GateParams.model_validate(rule) for name, rule in rules.items()}, METRICS)
    metrics = {"a": {"b": 0.123456, "c": math.nan}, "n": 7}
    found = headline_metrics({"first": "a.b", "none": "a.c", "n": "n"}, metrics, gates)
    assert found == {"first": 0.1235, "none": None, "n": 7, "red": 1}
    assert headline_metrics({"x": "a.d"}, metrics, []) == {"x": None, "red": 0}
    with pytest.raises(LeverlabError, match="headline 'x': metric 'n' is True, not a number"):
        headline_metrics({"x": "n"}, {"n": True}, [])


def test_the_record_of_gates_has_null_for_what_is_not_finite_and_the_gates_that_are_off() -> None:
    infinite = Gate("up", "m", 1.0, "at_least", math.inf, False)
    assert gates_record([infinite], ["down"]) == [
        {"name": "up", "metric": "m", "threshold": 1.0, "direction": "at_least", "value": None, "passed": False},
        {"name": "down", "off": True},
    ]
    assert gates_record([dataclasses.replace(infinite, value=2.0)], [])[0]["value"] == 2.0


def test_an_unknown_metric_names_the_closest() -> None:
    with pytest.raises(LeverlabError, match=r"gate 'rule'.*'grpo.shot_4'.*did you mean 'grpo\.shots_4'"):
        gate({"metric": "grpo.shot_4", "at_least": 0})
    with pytest.raises(LeverlabError, match=r"known metrics: grpo\.shots_1, grpo\.shots_4"):
        gate({"metric": "zzz", "at_least": 0})
    with pytest.raises(LeverlabError, match="not measured"):
        gate({"metric": "grpo", "at_least": 0})


@pytest.mark.parametrize("value", ["high", True, None, [0.5]])
def test_a_metric_must_be_a_number(value: object) -> None:
    with pytest.raises(LeverlabError, match="not a number"):
        gate({"metric": "m", "at_least": 0}, {"m": value})
