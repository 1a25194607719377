"""The grammar of a turn, case by case."""

import pytest

from leverlab.lm.turns import compose_turn, parse_turn


@pytest.mark.parametrize(
    ("text", "ask", "final", "thought"),
    [
        ("<think>a ?</think><ask>home</ask>", "home", None, True),
        ("<think>a</think>\n<final> yes </final>\n", None, "yes", True),
        ("<think>a\nb</think><final>New  York</final>", None, "New York", True),
        ("<final>yes</final>", None, "yes", False),
        ("<think> </think><final>yes</final>", None, "yes", False),
    ],
)
def test_turns(text: str, ask: str | None, final: str | None, thought: bool) -> None:
    turn = parse_turn(text)
    assert (turn.ask, turn.final, turn.thought, turn.parses) == (ask, final, thought, True)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yes",
        "<think>a</think>",
        "<think>a</think><final></final>",
        "<think>a</think><final>yes</ask>",
        "<think>a</think><final>yes",
        "<think>a</think><ask>home</ask><final>yes</final>",
        "<think>a</think><final>yes</final> or no",
        "<think>a</think><think>b</think><final>yes</final>",
        "<think>a<ask>home</ask></think><final>yes</final>",
        "<think>a</think><final><final>yes</final></final>",
        "a</think><final>yes</final>",
    ],
)
def test_what_is_no_turn(text: str) -> None:
    turn = parse_turn(text)
    assert (turn.ask, turn.final, turn.thought, turn.parses) == (None, None, False, False)


def test_what_is_composed_is_read() -> None:
    turn = parse_turn(compose_turn("because", "ask", "home"))
    assert (turn.ask, turn.thought) == ("home", True)
