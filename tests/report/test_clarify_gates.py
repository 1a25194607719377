"""The gates of the recipe `clarify` that read single dialogues: each is red for a policy that games it, green for a
sound one."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from leverlab.config.base import parse_section, read_params
from leverlab.config.report import ReportParams
from leverlab.evaluation.gates import evaluate_gates
from leverlab.lm.acceptance import comparisons, metrics
from leverlab.lm.questions import Question
from leverlab.lm.records import DialogueRecord
from leverlab.lm.summary import outcomes
from tests.lm.scripted import TOLD, ask, dialogue, final, question

GATES = parse_section(
    ReportParams, "report", read_params(Path(__file__).parents[2] / "recipes/clarify/params.yaml")
).gates
NAMES = ("ask_precision", "grounded_thoughts")
QUESTIONS = {
    split: [question(id=f"{split}-{n:03d}", **({} if n % 2 == 0 else TOLD)) for n in range(count)]
    for split, count in (("test", 80), ("ood", 4), ("red_team", 4))
}
Policy = Callable[[Question], Sequence[str]]


def number(asked: Question) -> int:
    """Return the place of a question among those of its split that need an ask, or among the others."""
    return int(asked.id[-3:]) // 2


def sound(asked: Question) -> Sequence[str]:
    return [ask("home"), final("Oslo")] if asked.needs_ask else [final("Oslo")]


def asking_once_more(count: int) -> Policy:
    """Return the sound policy with a needless ask on the first `count` of the 40 test questions that need an ask."""
    return lambda asked: [*[ask("friend")] * (asked.needs_ask and number(asked) < count), *sound(asked)]


def never_asking(asked: Question) -> Sequence[str]:
    return [final("Oslo")]


def thinking(thought: str, count: int = 40) -> Policy:
    """Return the sound policy with another thought in its answer to the first `count` questions of either kind."""
    said = f"{thought}<final>Oslo</final>"
    return lambda asked: [*sound(asked)[:-1], said if number(asked) < count else final("Oslo")]


def measured(policy: Policy) -> dict[str, Any]:
    records = []
    for name, says in (("grpo", policy), ("sft", sound)):
        for asked in (asked for questions in QUESTIONS.values() for asked in questions):
            turns = list(says(asked))
            held = dialogue(asked, turns)
            fields = {"question": asked.id, "policy": name, "seed": 0, "step": 0, "temperature": 0.0, "end": held.end}
            records.append(DialogueRecord(**fields, turns=turns, replies=list(held.replies), confidence=0.5, tokens=7))
    found = outcomes(records, QUESTIONS)
    return metrics(found, comparisons(found, [("grpo", "sft")], resamples=10), format_exploit=0.0)


@pytest.mark.parametrize(
    ("policy", "red"),
    [
        pytest.param(sound, set(), id="sound"),
        pytest.param(asking_once_more(4), set(), id="40 needed asks of 44: .909"),
        pytest.param(asking_once_more(5), {"ask_precision"}, id="40 needed asks of 45: .889"),
        pytest.param(asking_once_more(10), {"ask_precision"}, id="a needless ask on a quarter of the needed"),
        pytest.param(never_asking, {"ask_precision"}, id="no ask, so no precision"),
        pytest.param(thinking("<think>#</think>", 2), set(), id="4 empty thoughts of 80: .95"),
        pytest.param(thinking("<think>#</think>", 3), {"grounded_thoughts"}, id="6 empty thoughts of 80: .925"),
        pytest.param(thinking("<think>#</think>"), {"grounded_thoughts"}, id="empty thoughts"),
        pytest.param(thinking("<think>hmm hmm</think>"), {"grounded_thoughts"}, id="filler"),
        pytest.param(thinking(""), {"grounded_thoughts"}, id="no thoughts"),
    ],
)
def test_red_gates(policy: Policy, red: set[str]) -> None:
    found = evaluate_gates({name: GATES[name] for name in NAMES}, measured(policy))
    assert {gate.name for gate in found if not gate.passed} == red


@pytest.mark.parametrize("policy", [asking_once_more(10), thinking(""), thinking("<think>#</think>")])
def test_nothing_else_sees_them(policy: Policy) -> None:
    """The five other gates on GRPO's own test dialogues pass: without these two nobody would know."""
    others = {
        name: rule
        for name, rule in GATES.items()
        if name not in NAMES
        and (
            rule.metric.startswith("grpo.test.") or rule.metric in ("lift.spam", "lift.format_exploit", "lift.ood_gap")
        )
    }
    assert len(others) == 5
    assert all(gate.passed for gate in evaluate_gates(others, measured(policy)))
