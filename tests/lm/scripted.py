"""Dialogues without a model: what scripted policies say."""

from collections.abc import Sequence
from typing import Any

from leverlab.lm.dialogues import Dialogue, End, reply
from leverlab.lm.questions import Question
from leverlab.lm.turns import parse_turn


def question(**changes: Any) -> Question:
    """A question whose home is missing, and is told when asked for."""
    fields: dict[str, Any] = {
        "id": "q",
        "family": "multihop",
        "kind": "asked",
        "text": "friends : Ana Lima Bo . homes : Eva Rome . where does the friend of Ana Lima live ?",
        "answer": "Oslo",
        "needs_ask": True,
        "slot": "home",
        "replies": {"home": "Bo Oslo", "friend": "as I said : Ana Lima Bo"},
        "user": "cooperative",
        "wording": 0,
        "thought": "Ana Lima Bo ?",
        "thought_told": "Ana Lima Bo Oslo",
    }
    return Question(**fields | changes)


TOLD = {"needs_ask": False, "slot": "", "kind": "plain"}


def dialogue(asked: Question, turns: Sequence[str], most: int = 4) -> Dialogue:
    """The dialogue in which a policy says `turns`, until it ends."""
    said, replies, end = [], [], None
    for text in turns:
        said.append(parse_turn(text))
        if said[-1].final is not None:
            end = "final"
        elif said[-1].ask is None:
            end = "unparsed"
        elif len(said) == most:
            end = "turns"
        else:
            replies.append(reply(asked, said[-1].ask or ""))
            continue
        break
    ends: dict[str | None, End] = {"final": "final", "unparsed": "unparsed", "turns": "turns"}
    return Dialogue(asked, tuple(said), tuple(replies), ends[end])


def ask(slot: str) -> str:
    return f"<think>Bo ?</think><ask>{slot}</ask>"


def final(answer: str) -> str:
    return f"<think>Bo</think><final>{answer}</final>"
