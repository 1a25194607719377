"""The section `report` of params.yaml."""

from typing import Any

import pytest

from leverlab.config.base import parse_section
from leverlab.config.report import ReportParams
from leverlab.errors import LeverlabError
from leverlab.evaluation.gates import evaluate_gates
from leverlab.pipeline.gate_names import unknown_metrics


def parse(gates: Any, headline: Any = None) -> ReportParams:
    return parse_section(ReportParams, "report", {"report": {"gates": gates, "headline": headline or {}}})


@pytest.mark.parametrize(
    ("headline", "message"),
    [
        ({"red": "x.y"}, "red is the number of failed gates; give the metric another name"),
        ({"a name": "x.y"}, "report.headline"),
        ({"a": ""}, "report.headline.a"),
        ({f"m{number}": "x.y" for number in range(13)}, "report.headline"),
    ],
)
def test_a_headline_that_dvc_cannot_show_is_refused(headline: Any, message: str) -> None:
    assert parse({}, {"acc_1": "grpo.shots_1"}).headline == {"acc_1": "grpo.shots_1"}
    with pytest.raises(LeverlabError, match=message):
        parse({}, headline)


def test_gates_are_rules_that_can_be_evaluated_in_their_order() -> None:
    params = parse({"b": {"metric": "x.y", "at_least": 0}, "a": {"metric": "z", "at_most": "5e-2"}})
    found = evaluate_gates(params.rules, {"x": {"y": 0}, "z": 0.06})
    assert [(gate.name, gate.direction, gate.threshold, gate.passed) for gate in found] == [
        ("b", "at_least", 0.0, True),
        ("a", "at_most", 0.05, False),
    ]
    assert parse({}).gates == {}


def test_a_gate_that_is_null_is_off_and_one_that_is_not_fires() -> None:
    red = {"metric": "x", "at_least": 1}
    params = parse({"on": red, "off": None})
    assert [(gate.name, gate.passed) for gate in evaluate_gates(params.rules, {"x": 0})] == [("on", False)]
    assert params.gates_off == ("off",)
    assert parse({"on": red}).gates_off == ()
    assert parse({"off": None}).rules == {}
    assert unknown_metrics(params, [], [], "p") == [
        "p: report.gates.on asks for the metric 'x', which no stage measures; correct its name"
    ]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"metric": "x"}, "exactly one of at_least and at_most"),
        ({"metric": "x", "at_least": 1, "at_most": 2}, "exactly one"),
        ({"metric": "", "at_least": 1}, "report.gates.g.metric"),
        ({"at_least": 1}, "'report.gates.g.metric' is missing"),
        ({"metric": "x", "at_least": "high"}, "report.gates.g.at_least"),
        ({"metric": "x", "at_least": float("nan")}, "report.gates.g.at_least"),
        ({"metric": "x", "at_least": float("inf")}, "report.gates.g.at_least"),
        ({"metric": "x", "at_least": True}, "report.gates.g.at_least"),
        ({"metric": 3, "at_least": 1}, "report.gates.g.metric"),
        ({"metric": "x", "atleast": 1}, "unknown key 'report.gates.g.atleast'"),
        (0.5, "report.gates.g"),
    ],
)
def test_a_rule_of_another_form_is_named(rule: Any, message: str) -> None:
    with pytest.raises(LeverlabError, match=message):
        parse({"g": rule})
