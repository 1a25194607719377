"""What dialogues are worth, by hand; scripted policies that try to be paid for nothing."""

import pytest

from leverlab.lm.dialogues import NOT_UNDERSTOOD, reply, terms, verified_reward
from leverlab.lm.questions import UNKNOWN
from tests.lm.scripted import TOLD, ask, dialogue, final, question

ALPHA = 0.07


def worth(turns: list[str], **changes: object) -> float:
    return verified_reward(terms(dialogue(question(**changes), turns)), ALPHA)


def test_the_user() -> None:
    asked = question()
    assert [reply(asked, slot) for slot in ("home", "friend", "weather")] == [
        "Bo Oslo",
        "as I said : Ana Lima Bo",
        NOT_UNDERSTOOD,
    ]


def test_ask_and_answer() -> None:
    found = dialogue(question(), [ask("home"), final("Oslo")])
    assert (found.success, found.asks, found.needless_asks, found.spam, found.replies) == (
        True,
        ("home",),
        0,
        False,
        ("Bo Oslo",),
    )
    assert verified_reward(terms(found), ALPHA) == pytest.approx(1.0)


def test_case_does_not_matter() -> None:
    assert dialogue(question(**TOLD), [final("oslo")]).success


def test_a_guess_without_the_ask_is_right_or_wrong_as_it_is() -> None:
    assert worth([final("Oslo")]) == pytest.approx(1.0)
    assert worth([final("Rome")]) == pytest.approx(0.2)


@pytest.mark.parametrize(("asks", "cost"), [(0, 0), (1, 1), (2, 2), (3, 3)])
def test_needless_asks_cost(asks: int, cost: int) -> None:
    turns = [ask(slot) for slot in ("friend", "home", "weather")[:asks]] + [final("Oslo")]
    assert worth(turns, **TOLD) == pytest.approx(1.0 - ALPHA * cost)


def test_the_fourth_needless_ask_costs_nothing_more() -> None:
    found = dialogue(question(**TOLD), [ask(slot) for slot in ("a", "b", "c", "d")])
    assert (found.end, found.needless_asks, found.spam) == ("turns", 4, True)
    assert verified_reward(terms(found), ALPHA) == pytest.approx(0.2 - 3 * ALPHA)


def test_one_ask_of_the_needed_fact_is_free() -> None:
    """All others cost, the same one again included, and are spam when they come twice."""
    assert worth([ask("friend"), ask("home"), final("Oslo")]) == pytest.approx(1.0 - ALPHA)
    found = dialogue(question(), [ask("home"), ask("home"), final("Oslo")])
    assert (found.needless_asks, found.spam) == (1, True)


def test_unknown_is_right_only_after_the_ask() -> None:
    changes = {"answer": UNKNOWN, "replies": {"home": "I do not know ."}, "user": "unhelpful"}
    assert dialogue(question(**changes), [ask("home"), final(UNKNOWN)]).success
    assert not dialogue(question(**changes), [final(UNKNOWN)]).success
    assert not dialogue(question(**changes), [ask("friend"), final(UNKNOWN)]).success


def test_turns_that_do_not_parse() -> None:
    found = dialogue(question(), ["<think>a</think><final>Oslo</final><final>Rome</final>"])
    assert (found.end, found.success) == ("unparsed", False)
    assert verified_reward(terms(found), ALPHA) == 0.0
    assert worth(["<final>Oslo</final>"]) == pytest.approx(0.9)


@pytest.mark.parametrize(
    "turns",
    [
        [ask("home")] * 4,  # always asks
        [ask("home"), ask("friend"), ask("weather"), ask("home")],  # asks thrice and more
        ["<think>a</think>" + "<ask>home</ask>" * 3],  # stuffs tags
        ["<think>" + question().text + "</think><final>" + question().text + "</final>"],  # echoes
    ],
)
def test_who_does_not_answer_gets_a_fifth_at_most(turns: list[str]) -> None:
    assert worth(turns) <= 0.2 + 1e-9
    assert worth(turns, **TOLD) <= 0.2 + 1e-9


def test_a_fact_may_be_asked_for_under_another_name() -> None:
    """Names with the same reply are one fact: asking under either is needed, asking under both is once too often."""
    names = {"replies": {"home": "Bo Oslo", "the home": "Bo Oslo", "friend": "as I said : Ana Lima Bo"}}
    found = dialogue(question(**names), [ask("the home"), final("Oslo")])
    assert (found.asked_needed, found.needless_asks) == (True, 0)
    assert dialogue(question(**names), [ask("home"), ask("the home"), final("Oslo")]).needless_asks == 1
    assert not dialogue(question(**names), [ask("friend"), final("Oslo")]).asked_needed
    unhelpful = {"answer": UNKNOWN, "replies": dict.fromkeys(("home", "the home"), "I do not know .")}
    assert dialogue(question(**unhelpful), [ask("the home"), final(UNKNOWN)]).success


@pytest.mark.parametrize(
    "thought", ["#", "...", "?!", "", "think", "final", "the of it", "hmm hmm hmm", "lorem ipsum dolor", "# Lima #b"]
)
def test_a_thought_that_says_nothing_earns_nothing(thought: str) -> None:
    """In either turn. A word of the question beside other words is no thought about it either."""
    empty = f"<think>{thought}</think><final>Oslo</final>"
    assert worth([empty], **TOLD) == pytest.approx(0.9)
    assert worth([ask("home"), empty]) == pytest.approx(0.9)
    assert worth([empty.replace("<final>Oslo</final>", "<ask>home</ask>"), final("Oslo")]) == pytest.approx(0.9)


@pytest.mark.parametrize("thought", ["Ana Lima Bo ?", "ana lima", "Bo", "a friend of ANA", "Bo Oslo so Oslo"])
def test_a_thought_about_what_was_told_is_paid(thought: str) -> None:
    assert worth([f"<think>{thought}</think><final>Oslo</final>"], **TOLD) == pytest.approx(
        1.0 if "Oslo" not in thought else 0.9
    )
    assert worth([ask("home"), f"<think>{thought}</think><final>Oslo</final>"]) == pytest.approx(1.0)


def test_what_a_thought_may_say() -> None:
    """What was told before the turn, a slot that the user has a reply for (before an ask), and that nobody knows once
    the user said so."""
    unhelpful = {"answer": UNKNOWN, "replies": {"home": "I do not know ."}, "user": "unhelpful"}
    not_known = f"<think>not known</think><final>{UNKNOWN}</final>"
    assert dialogue(question(**unhelpful), [ask("home"), not_known]).grounded_thoughts == (True, True)
    assert dialogue(question(), [ask("home"), not_known]).grounded_thoughts == (True, False)
    named = "<think>{0} ?</think><ask>{0}</ask>"
    assert dialogue(question(), [named.format("home"), final("Oslo")]).grounded_thoughts == (True, True)
    assert dialogue(question(), [named.format("weather"), final("Oslo")]).grounded_thoughts == (False, True)
    slot_in_answer = "<think>home</think><final>Oslo</final>"
    assert dialogue(question(text="Ana Lima ?"), [ask("home"), slot_in_answer]).grounded_thoughts == (False, False)
    told_later = ["<think>Oslo ?</think><ask>home</ask>", "<think>Oslo</think><final>Oslo</final>"]
    assert dialogue(question(), told_later).grounded_thoughts == (False, True)
    decomposed = "<think>cafe\u0301</think><final>x</final>"
    assert dialogue(question(text="caf\u00e9 Ana ?"), [decomposed]).grounded_thoughts == (True,)


@pytest.mark.parametrize(
    ("thought", "text", "grounded"),
    [
        ("12/2=6", "Half of 12 pens are blue.", True),  # computed numbers say nothing against it
        ("12 / 2 = 6, 6 - 1 = 5", "Half of 12 pens are blue.", True),
        ("13/2=6", "Half of 12 pens are blue.", False),
        ("1234 pens", "There are 1,234 pens.", True),  # numbers by their value
        ("1,234 + 1.5", "1234 and 1.50 pens.", True),
        ("234 pens", "There are 1,234 pens and 1 234.", True),
        ("234 birds", "There are 1,234 pens.", False),
        ("小明 有 三", "小明有三个苹果。", True),  # a script without blanks: by its characters
        ("小明的苹果", "小明有三个苹果。", True),
        ("我不是他们的", "我们不是他的。", False),  # function words
        ("天气很好吗", "小明有三个苹果。", False),
        ("question", "- Oslo lies by the sea .\n\nQuestion: is Oslo wet ?", False),  # the label
        ("a question", "Question: is Oslo wet ?", False),
        ("Oslo is missing", "Question: is Oslo wet ?", True),
    ],
)
def test_numbers_scripts_and_labels(thought: str, text: str, grounded: bool) -> None:
    said = dialogue(question(text=text), [f"<think>{thought}</think><final>x</final>"])
    assert said.grounded_thoughts == (grounded,)


@pytest.mark.parametrize(
    ("thought", "asked", "grounded"),
    [
        ("The home is missing.", "home", True),
        ("I need to ask for the home", "home", True),
        ("home ?", "friend", True),  # both are names that the user knows
        ("missing", "home", False),
        ("I need to ask", "home", False),
        ("weather ?", "weather", False),  # nobody has a reply
    ],
)
def test_a_thought_before_an_ask(thought: str, asked: str, grounded: bool) -> None:
    said = dialogue(question(text="Eva Rome ?"), [f"<think>{thought}</think><ask>{asked}</ask>", final("Oslo")])
    assert said.grounded_thoughts[0] is grounded


@pytest.mark.parametrize(
    ("said", "same"),
    [("the Oslo", True), (" OSLO .", True), ("Oslo city", False), ("os lo", False)],
)
def test_how_answers_are_compared(said: str, same: bool) -> None:
    assert dialogue(question(**TOLD), [final(said)]).success == same
