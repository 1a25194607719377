"""How answers are compared: numbers by value, the rest as text."""

import time

import pytest

from leverlab.lm.answers import plain_answer
from tests.lm.scripted import TOLD, dialogue, final, question

LONG = "9" * 5000  # more digits than Python reads as a number


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("12.0", "12"),
        ("12.", "12"),
        ("12 .", "12"),
        ("$12.50", "12.5"),
        ("€12", "12"),
        ("12 €", "12"),
        ("the $5", "5"),
        ("$ 5", "5"),
        ("07", "7"),
        (".5", "0.50"),
        ("1,234", "1234"),
        ("$1,234.50", "1234.5"),
        ("1,234,567", "1234567"),
        ("\u22125", "-5"),
        ("\u20135", "-5"),
        ("-$5", "-5.00"),
        ("$-5", "-5"),
        ("+5", "5"),
        ("-0", "0"),
        ("1/2", "0.5"),
        ("1e3", "1000"),
        ("1.5e-1", "0.15"),
        ("\u0663", "3"),
        ("12.0 apples", "12 apples"),
        ("about 1,000 people", "about 1000 people"),
        ("50.0%", "50%"),
        (LONG, LONG),
        ("1/0", "1/0"),
        ("-3/4", "-0.75"),
        ("'12.0'", "'12'"),
    ],
)
def test_equal_numbers(said: str, right: str) -> None:
    assert plain_answer(said) == plain_answer(right)
    assert dialogue(question(answer=right, **TOLD), [final(said)]).success
    assert dialogue(question(answer=said, **TOLD), [final(right)]).success


@pytest.mark.parametrize(
    ("said", "right"),
    [
        (".5", "5"),
        ("$.5", "5"),
        (".5 apples", "5 apples"),
        ("1.25", "125"),
        ("1.234", "1234"),
        ("1,25", "125"),
        ("0,125", "125"),
        ("12,5", "12.5"),
        ("-3", "3"),
        ("\u22123", "3"),
        ("1/3", "0.333"),
        ("0.30000000000000004", "0.3"),
        ("9007199254740993", "9007199254740992"),
        ("50%", "50"),
        ("3 4", "34"),
        ("1e9999999", "1"),
        (LONG, "9"),
        ("1.2.3", "1.2.30"),
        ("48/2", "24"),
        ("2/4", "0.5"),
        ("4.5/3", "1.5"),
        ("1.5/2", "0.75"),
        ("7/1", "7"),
        ("10 000", "10 0"),
        ("07 000", "7 000"),
        ("10\u202f000", "10 0"),
        ("1'000", "1'0"),
        ("1\u2019000", "1\u20190"),
    ],
)
def test_other_numbers(said: str, right: str) -> None:
    assert plain_answer(said) != plain_answer(right)
    assert not dialogue(question(answer=right, **TOLD), [final(said)]).success


@pytest.mark.parametrize(
    ("said", "right", "same"),
    [
        ("the Oslo .", "oslo", True),
        ("An  apple", "apple", True),
        ("twelve", "12", False),
        ("os lo", "oslo", False),
        ("Oslo city", "oslo", False),
        ("cafe\u0301", "caf\u00e9", True),
        ("1990-1995", "1990-1995", True),
        ("1990-1995", "1990 1995", False),
        ("1999-01-01", "1999-01-02", False),
        ("7/8/1999", "7/9/1999", False),
        ("B-52", "B 52", False),
    ],
)
def test_texts(said: str, right: str, same: bool) -> None:
    assert (plain_answer(said) == plain_answer(right)) is same


@pytest.mark.parametrize(
    "text", ["oslo", "yes", "ana lima", "don't", "u.s. dollar", "b-52", "no. 12", "catch-22", "12"]
)
def test_an_ordinary_answer_is_kept_as_it_is(text: str) -> None:
    assert plain_answer(text) == text


def test_no_answer_takes_long() -> None:
    started = time.process_time()
    for text in (
        LONG * 20,
        "1" + ",234" * 20_000 + "x",
        "x" + " ." * 50_000 + "x",
        "$" * 100_000,
        "1e999",
        "-" * 99_999,
    ):
        plain_answer(text)
    assert time.process_time() - started < 5
