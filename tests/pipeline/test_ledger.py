"""The ledger of plans: numbers derived by hand on small tables."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from leverlab.errors import LeverlabError
from leverlab.evaluation.summary import metrics
from leverlab.pipeline.ledger import PlanLedger, PlanRow, plan_ledger
from leverlab.pipeline.ledger_inputs import CURVES, Outcome, PlanRuns
from leverlab.pipeline.ledger_report import remarks, tables, to_markdown
from leverlab.pipeline.plans import Experiment, Plan
from stages.report import RUNS
from tests.pipeline.test_compare_runs import Scores, run

NONE, SEVEN, TEN = [0] * 10, [1] * 7 + [0] * 3, [1] * 10


def both(scores: Sequence[int]) -> Scores:
    """The same answers of one seed at one and two shots."""
    return {1: {0: scores}, 2: {0: scores}}


def outcome(
    name: str, scores: Scores, params: Mapping[str, Any], validation: float = 0.5, seconds: float | None = None
) -> Outcome:
    answered = run(name, scores, params)
    return Outcome(answered, {0: validation}, "same", metrics(answered.answers), seconds)


def experiment(
    name: str, key: str, value: Any, accept: Mapping[str, Any] | None = None, parent: str | None = None, base: str = ""
) -> Experiment:
    own = Plan(
        title="A", hypothesis=f"Why {name}.", parent=parent, overrides={key: value}, accept=accept and dict(accept)
    )
    on = f"{base}-" if base else ""
    return Experiment(f"{on}{name}", own, f"{on}{parent}" if parent else base or None, {key: value}, [key])


def rule(metric: str, **bound: float) -> dict[str, Any]:
    return {"metric": metric, **bound}


START = {"grpo": {"lr": 0.001, "group": 16}}


def faster(lr: float) -> dict[str, Any]:
    return {"grpo": {"lr": lr, "group": 16}}


@pytest.fixture(scope="module")
def found() -> PlanRuns:
    """HEAD is always wrong; `up` always right, `seven` in 7 of 10, `same` never, and `down`, whose parent is `up`."""
    outcomes = [
        outcome("HEAD", both(NONE), START),
        outcome("up", both(TEN), faster(0.01), 0.5, 1234.5),
        outcome("seven", both(SEVEN), faster(0.02), 0.6),
        outcome("same", both(NONE), faster(0.03), 0.6),
        outcome("down", both(NONE), {"grpo": {"lr": 0.01, "group": 8}}, 0.4),
    ]
    plans = [
        experiment("up", "grpo.lr", 0.01, rule("over_parent.shots_2.ci_low", at_least=0.0)),
        experiment("seven", "grpo.lr", 0.02, rule("over_parent.shots_1.p_holm", at_most=0.05)),
        experiment("same", "grpo.lr", 0.03, rule("over_parent.shots_2.difference", at_least=0.0)),
        experiment("down", "grpo.group", 8, rule("grpo.shots_2", at_least=0.1), parent="up"),
        experiment("later", "grpo.lr", 0.04),
    ]
    return PlanRuns(
        None,
        {plan.name: plan for plan in plans},
        {it.run.name: it for it in outcomes},
        {"broken": "plan 'broken' changes nothing"},
    )


def judged(found: PlanRuns) -> PlanLedger:
    """The ledger with few resamples: tests of one seed are exact, and answers that are all equal have no spread."""
    return plan_ledger(found, resamples=100)


@pytest.fixture(scope="module")
def ledger(found: PlanRuns) -> PlanLedger:
    return judged(found)


def by_name(ledger: PlanLedger) -> dict[str, PlanRow]:
    return {row.name: row for row in ledger.rows}


def test_plans_stand_by_validation_accuracy(ledger: PlanLedger) -> None:
    """.6, .6 (by name), .5, .4; by test accuracy `up` would be first."""
    assert [(row.name, row.validation) for row in ledger.rows] == [
        ("same", 0.6),
        ("seven", 0.6),
        ("up", 0.5),
        ("down", 0.4),
    ]
    assert by_name(ledger)["seven"].test == {1: 0.7, 2: 0.7}
    assert list(ledger.not_run) == ["later"]
    assert list(ledger.unfit) == ["broken"]
    assert ledger.warnings == []


def test_holm_is_over_all_rows_of_the_ledger(found: PlanRuns, ledger: PlanLedger) -> None:
    """Eight rows: `up` and `down` 2 / 2^10 at both shot counts, `seven` 2 / 2^7, `same` 1.

    Sorted: 8 x 2 / 1024, and no smaller for the next three; 4 x 2 / 128 twice; 1. By itself `seven` would have 2 x 2 /
    128 = .031 and stand above.
    """
    assert ledger.family == 8
    rows = by_name(ledger)
    p_holm = {name: row.paired["p_holm"].tolist() for name, row in rows.items()}
    assert p_holm == {
        "up": pytest.approx([16 / 1024] * 2),
        "down": pytest.approx([16 / 1024] * 2),
        "seven": pytest.approx([8 / 128] * 2),
        "same": [1, 1],
    }
    assert {name: row.paired["verdict"].tolist()[1] for name, row in rows.items()} == {
        "up": "A above B",
        "down": "A below B",
        "seven": "no difference shown",
        "same": "no difference shown",
    }
    assert rows["down"].paired["difference"].tolist() == [-1, -1]
    alone = replace(found, plans={"seven": found.plans["seven"]})
    assert judged(alone).rows[0].paired["verdict"].tolist() == ["A above B"] * 2


def test_accept_rules(ledger: PlanLedger) -> None:
    """`up`: lower end 1, met; `seven`: p .0625, not met; `same`: 0, the bound itself is met; `down`: 0 < .1."""
    rows = by_name(ledger)
    measured = {name: (row.gate.value, row.gate.passed) for name, row in rows.items() if row.gate}
    assert measured == {"up": (1, True), "seven": (0.0625, False), "same": (0, True), "down": (0, False)}


def test_columns_that_rules_may_ask_for(found: PlanRuns) -> None:
    """1 at both ends of the interval; 2 / 2^10, and 2 x that over the two rows."""
    values = {"difference": 1, "ci_low": 1, "ci_high": 1, "p_value": 2 / 1024, "p_holm": 4 / 1024}
    for column, value in values.items():
        plan = experiment("up", "grpo.lr", 0.01, rule(f"over_parent.shots_1.{column}", at_least=0.0))
        (row,) = judged(replace(found, plans={"up": plan})).rows
        assert row.gate is not None
        assert row.gate.value == pytest.approx(value)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (
            "over_parent.shots_4.ci_low",
            "plan 'up': .*'over_parent.shots_4.ci_low', which was not measured; did you mean",
        ),
        ("grpo.shot_2", "plan 'up': .*did you mean .*grpo.shots_2"),
        ("comparisons.sft.shots_2.ci_low", "plan 'up': .*'comparisons.sft.shots_2.ci_low', which was not measured"),
    ],
)
def test_a_metric_that_was_not_measured(found: PlanRuns, metric: str, message: str) -> None:
    plan = experiment("up", "grpo.lr", 0.01, rule(metric, at_least=0.0))
    with pytest.raises(LeverlabError, match=message):
        judged(replace(found, plans={"up": plan}))


def test_comparisons_with_other_methods_are_made_from_the_answers(found: PlanRuns) -> None:
    """GRPO always right, SFT never: the interval of the difference is [1, 1]."""
    up = found.outcomes["up"]
    sft = run("sft", both(NONE), method="sft").answers
    answers = pd.concat([up.run.answers, sft])
    plan = experiment("up", "grpo.lr", 0.01, rule("comparisons.sft.shots_2.ci_low", at_least=0.9))
    outcomes = {**found.outcomes, "up": replace(up, run=replace(up.run, answers=answers))}
    gate = by_name(judged(replace(found, plans={"up": plan}, outcomes=outcomes)))["up"].gate
    assert gate is not None
    assert (gate.value, gate.passed) == (1, True)


def test_what_a_plan_changes_is_read_from_the_runs(ledger: PlanLedger) -> None:
    rows = by_name(ledger)
    assert rows["up"].changes == {"grpo.lr": ("0.001", "0.01")}
    assert rows["down"].changes == {"grpo.group": ("16", "8")}


def test_a_run_that_is_not_what_its_plan_says_is_told(found: PlanRuns) -> None:
    plans = {**found.plans, "up": experiment("up", "grpo.lr", 0.5), "down": found.plans["down"]}
    other = replace(found.outcomes["seven"], run=run("seven", both(SEVEN), {"grpo": {"lr": 0.02, "group": 4}}))
    ledger = judged(replace(found, plans=plans, outcomes={**found.outcomes, "seven": other}))
    assert ledger.warnings == [
        "'up' ran with another grpo.lr than plan 'up' says now: run it again with `leverlab plan run up`",
        "'seven' and its parent's run differ in grpo.group, too: the plan does not say so",
    ]


def test_other_validation_questions_are_told(found: PlanRuns) -> None:
    other = replace(found.outcomes["up"], validation_set="others")
    (warning,) = judged(replace(found, outcomes={**found.outcomes, "up": other})).warnings
    assert warning == "up have other validation questions than 'HEAD': their rank says nothing"


def test_on_a_base_plans_are_judged_against_its_run(found: PlanRuns) -> None:
    """The base itself is judged by nothing, so Holm's family has the two rows of `up` alone: 2 x 2 / 1024."""
    plans = {
        "small": experiment("small", "data.train", 600, rule("grpo.shots_1", at_least=0.0)),
        "up": experiment("up", "grpo.lr", 0.01, base="small"),
    }
    outcomes = {
        "small": outcome("small", both(NONE), {"data": {"train": 600}, "grpo": {"lr": 0.001}}),
        "small-up": outcome("small-up", both(TEN), {"data": {"train": 600}, "grpo": {"lr": 0.01}}, 0.7),
    }
    ledger = judged(PlanRuns("small", plans, outcomes, {}))
    up, small = ledger.rows
    assert (up.against, up.changes, up.gate) == ("small", {"grpo.lr": ("0.001", "0.01")}, None)
    assert up.paired["p_holm"].tolist() == pytest.approx([4 / 1024] * 2)
    assert (small.against, small.paired.empty) == (None, True)
    assert small.changes == {"data.train": (None, "600")}
    assert small.gate is not None
    assert small.gate.passed
    text = to_markdown(ledger)
    assert "`leverlab plan ledger --base small --write`" in text
    assert "one without parent with the base's" in text
    assert "not judged" not in text


def test_a_parent_that_has_not_run(found: PlanRuns) -> None:
    outcomes = {name: it for name, it in found.outcomes.items() if name != "up"}
    child = experiment("down", "grpo.group", 8, rule("over_parent.shots_2.ci_low", at_least=0.0), parent="up")
    ledger = judged(replace(found, plans={**found.plans, "down": child}, outcomes=outcomes))
    row = by_name(ledger)["down"]
    assert row.unjudged == "its parent 'up' has not run: run it with `leverlab plan run up`"
    assert (row.gate, row.paired.empty, ledger.family) == (None, True, 4)
    assert row.changes == {"grpo.group": (None, "8")}
    assert remarks(ledger) == [
        f"`down` is not judged: {row.unjudged}.",
        "`broken` cannot run here: plan 'broken' changes nothing.",
    ]
    assert "not judged" in to_markdown(ledger)


def test_other_test_questions_are_not_judged(found: PlanRuns) -> None:
    other = replace(found.outcomes["up"], run=replace(found.outcomes["up"].run, test_set="others"))
    plans = {**found.plans, "up": experiment("up", "grpo.lr", 0.01)}
    ledger = judged(replace(found, plans=plans, outcomes={**found.outcomes, "up": other}))
    assert "'up' and 'HEAD' have equal question ids, but other test questions" in by_name(ledger)["up"].unjudged
    assert by_name(ledger)["seven"].unjudged == ""


def test_plans_md(found: PlanRuns, ledger: PlanLedger) -> None:
    """The least detectable difference of `seven`: variance .7 x .3 x 10 / 9, 2.801585 sqrt(.2333 / 10) = .428."""
    text = to_markdown(ledger)
    assert text == to_markdown(judged(found))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for line in (
        "| up | Why up. | grpo.lr 0.001 → 0.01 | above | over_parent.shots_2.ci_low ≥ 0 | yes (1) |",
        "| down | Why down. | grpo.group 16 → 8 | below | grpo.shots_2 ≥ 0.1 | no (0) |",
        "| seven | Why seven. | grpo.lr 0.001 → 0.02 | no difference shown (least detectable 42.8) "
        "| over_parent.shots_1.p_holm ≤ 0.05 | no (0.0625) |",
        "| plan | validation | 1 shot | 2 shots | against | difference | 95 % interval | p (Holm) | least detectable "
        "| seconds |",
        "| up | 50.0 | 100.0 | 100.0 | HEAD | +100.0 | [+100.0, +100.0] | 0.016 | – | 1,234 |",
        "| later | Why later. | leverlab plan run later |",
        "- `broken` cannot run here: plan 'broken' changes nothing.",
    ):
        assert line in lines
    assert "over all 8 rows of the ledger" in text
    assert "never by test accuracy" in text
    assert "nan" not in text


def test_tables_on_a_terminal(ledger: PlanLedger) -> None:
    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        for table in tables(ledger):
            console.print(table)
    titles = ("Verdicts", "Figures", "Not run")
    assert [line.strip() for line in capture.get().splitlines() if line.startswith(titles)] == list(titles)


def test_more_rows_draw_more_signs() -> None:
    """Two seeds against one, so that the test is the permutation: with 2 resamples no p is below 2/3."""
    up = outcome("up", {1: {0: [1] * 20, 1: [1] * 20}}, faster(0.01))
    head = outcome("HEAD", {1: {0: [0] * 20}}, START)
    plans = {"up": experiment("up", "grpo.lr", 0.01)}
    (row,) = plan_ledger(PlanRuns(None, plans, {"up": up, "HEAD": head}, {}), resamples=2).rows
    assert row.paired["verdict"].tolist() == ["A above B"]
    assert math.isnan(row.paired["least_detectable_difference"][0])


def test_curves_lie_where_the_report_reads_them() -> None:
    assert {name: f"models/{path}/metrics.csv" for name, path in RUNS.items()} == CURVES
