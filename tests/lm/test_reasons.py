"""The reasons for the verified reward: one for each term, and none that contradicts it."""

import dataclasses

import pytest

from leverlab.lm.dialogues import Dialogue, Terms, terms
from leverlab.lm.questions import UNKNOWN
from leverlab.lm.reasons import reasons
from leverlab.lm.turns import Turn
from tests.lm.scripted import TOLD, ask, dialogue, final, question

TRAP = {"needs_ask": False, "kind": "trap"}
UNHELPFUL = {"answer": UNKNOWN, "replies": {"home": "I do not know ."}, "user": "unhelpful"}
GOOD = {"parses": "every turn parses", "thought": "every turn has a grounded thought"}


@pytest.mark.parametrize(
    ("turns", "changes", "expected"),
    [
        (
            [ask("home"), final("Oslo")],
            {},
            {"correct": "the answer is Oslo, as it should be", "needless": "asked for just what is missing"},
        ),
        (
            [final("Rome")],
            {},
            {"correct": "the answer is Rome; it should be Oslo", "needless": "nothing was asked"},
        ),
        (
            [ask("friend"), ask("home"), final("oslo")],
            {},
            {
                "correct": "the answer is oslo, as it should be",
                "needless": "asked for 'friend', which the question tells",
            },
        ),
        (
            [ask("weather"), ask("home"), final("Oslo")],
            TRAP,
            {
                "correct": "the answer is Oslo, as it should be",
                "needless": "asked for 'weather', which the user does not understand; asked for 'home', which is "
                "missing but changes nothing",
            },
        ),
        (
            [final("unknown")],
            UNHELPFUL,
            {
                "correct": "the answer is unknown, as it should be, but 'home' was never asked for",
                "needless": "nothing was asked",
            },
        ),
        (
            [ask("home")] * 4,
            {},
            {
                "correct": "there is no final answer, as it asked in its last turn; it should be Oslo",
                "needless": "; ".join(["asked for 'home' again"] * 3),
            },
        ),
    ],
)
def test_reasons(turns: list[str], changes: dict[str, object], expected: dict[str, str]) -> None:
    assert reasons(dialogue(question(**changes), turns)) == GOOD | expected


def test_turns_that_are_not_well_formed() -> None:
    found = reasons(dialogue(question(), ["<ask>home</ask>", ask("friend"), "Oslo"]))
    assert found["correct"] == "there is no final answer, as the last turn does not parse; it should be Oslo"
    assert found["parses"] == "turn 3 does not parse"
    assert found["thought"] == "turns 1, 3 do not have a grounded thought"


def test_a_thought_that_says_nothing_is_named() -> None:
    found = reasons(dialogue(question(), [ask("home"), "<think>#</think><final>Oslo</final>"]))
    assert (found["parses"], found["thought"]) == (GOOD["parses"], "turn 2 does not have a grounded thought")


def test_unknown_before_any_ask_is_named_however_it_is_written() -> None:
    found = reasons(dialogue(question(**UNHELPFUL), [final("Unknown .")]))
    assert found["correct"] == "the answer is Unknown ., as it should be, but 'home' was never asked for"


def test_a_dialogue_that_was_cut_and_one_without_turns() -> None:
    cut = reasons(Dialogue(question(), (Turn("<think>a"),), (), "cut"))
    assert cut["correct"] == "there is no final answer, as the last turn was cut at its limit; it should be Oslo"
    empty = reasons(Dialogue(question(), (), (), "unparsed"))
    assert (empty["parses"], empty["thought"]) == ("there is no turn", "there is no turn")


@pytest.mark.parametrize("changes", [{}, TOLD, TRAP, UNHELPFUL])
@pytest.mark.parametrize("asked", ["", "h", "hh", "fh", "hf", "wfh", "whw", "hfwh"])
@pytest.mark.parametrize("answer", ["Oslo", "Rome", "unknown"])
def test_reasons_agree_with_the_terms(changes: dict[str, object], asked: str, answer: str) -> None:
    slots = {"h": "home", "f": "friend", "w": "weather"}
    found = dialogue(question(**changes), [*(ask(slots[letter]) for letter in asked), final(answer)])
    said = reasons(found)
    assert set(said) == {field.name for field in dataclasses.fields(Terms)}
    held = terms(found)
    assert said["correct"].endswith(", as it should be") is bool(held.correct)
    assert (said["parses"] == GOOD["parses"], said["thought"] == GOOD["thought"]) == (held.parses, held.thought)
    assert said["needless"].count("asked for '") == found.needless_asks
