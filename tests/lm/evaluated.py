"""Stored dialogues of two policies, few enough to work every figure out by hand."""

from collections.abc import Mapping, Sequence
from typing import Any

from leverlab.lm.questions import Question
from leverlab.lm.records import DialogueRecord
from tests.lm.scripted import TOLD, ask, dialogue, final, question

ASK = [ask("home"), final("Oslo")]
DIRECT = [final("Oslo")]
WRONG = [final("Rome")]
BARE_WRONG = ["<final>Rome</final>"]
EMPTY_THOUGHT = ["<think>#</think><final>Rome</final>"]
OTHER_FIRST = [ask("friend"), ask("home"), final("Oslo")]
OTHER_FIRST_WRONG = [ask("friend"), ask("home"), final("Rome")]
NEEDLESS = [ask("friend"), final("Oslo")]
SPAM = [ask("friend"), ask("friend"), final("Rome")]
UNPARSED = ["Oslo"]


def made(name: str, family: str, needs: bool, **changes: Any) -> Question:
    return question(id=name, family=family, **({} if needs else TOLD) | changes)


QUESTIONS = {
    "test": [
        made("q1", "multihop", True),
        made("q2", "math", True),
        made("q3", "multihop", False),
        made("q4", "math", False),
    ],
    "ood": [made("o1", "multihop", True), made("o2", "multihop", False)],
    "red_team": [made("r1", "math", False, kind="bait"), made("r2", "math", True, kind="forbidden")],
}
BY_ID = {asked.id: asked for questions in QUESTIONS.values() for asked in questions}

Scripts = dict[tuple[str, int, float], dict[str, Sequence[str]]]


def scripts() -> Scripts:
    """(policy, seed, temperature) → question → what the policy says."""
    ood = {"o1": ASK, "o2": DIRECT}
    red_team = {"r1": NEEDLESS, "r2": WRONG}
    return {
        ("sft", 0, 0.0): {"q1": SPAM, "q2": ASK, "q3": NEEDLESS, "q4": NEEDLESS, **ood, **red_team},
        ("sft", 1, 0.0): {"q1": OTHER_FIRST, "q2": BARE_WRONG, "q3": NEEDLESS, "q4": DIRECT, **ood, **red_team},
        ("grpo", 0, 0.0): {"q1": ASK, "q2": ASK, "q3": DIRECT, "q4": DIRECT, **ood, **red_team},
        ("grpo", 1, 0.0): {"q1": ASK, "q2": WRONG, "q3": DIRECT, "q4": NEEDLESS, **ood, **red_team, "o1": WRONG},
        ("sft", 0, 1.0): {"q1": WRONG, "q2": WRONG, "q3": UNPARSED, "q4": NEEDLESS},
        ("sft", 1, 1.0): {"q1": WRONG, "q2": ASK, "q3": NEEDLESS, "q4": NEEDLESS},
        ("grpo", 0, 1.0): {"q1": ASK, "q2": WRONG, "q3": DIRECT, "q4": NEEDLESS},
        ("grpo", 1, 1.0): {"q1": ASK, "q2": ASK, "q3": DIRECT, "q4": UNPARSED},
    }


def record(name: str, turns: Sequence[str], policy: str, seed: int, temperature: float, **changes: Any) -> Any:
    said = dialogue(BY_ID[name], turns)
    fields: dict[str, Any] = {
        "question": name,
        "policy": policy,
        "seed": seed,
        "step": 0,
        "temperature": temperature,
        "turns": list(turns),
        "replies": list(said.replies),
        "end": said.end,
        "confidence": 0.5,
        "tokens": 7,
    }
    return DialogueRecord(**fields | changes)


def records(said: Mapping[tuple[str, int, float], Mapping[str, Sequence[str]]] | None = None) -> list[DialogueRecord]:
    return [record(name, turns, *run) for run, of in (said or scripts()).items() for name, turns in of.items()]
