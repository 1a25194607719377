"""Numbers of word problems replaced by "some": only where the sentence stays English."""

import re

import pytest

from leverlab.worlds.clarify_some import with_some


def replaced(marked: str) -> str | None:
    """The text with "some" for the number between square brackets."""
    begin, end = marked.index("["), marked.index("]") - 1
    return with_some(re.sub(r"[\[\]]", "", marked), begin, end)


@pytest.mark.parametrize(
    ("marked", "text"),
    [
        ("She bought [12] eggs.", "She bought some eggs."),
        ("Natalia sold clips to [48] of her friends.", "Natalia sold clips to some of her friends."),
        ("He runs [3] more miles.", "He runs some more miles."),
        ("Each costs [$5].", "Each costs some dollars."),
        ("In May she sold clips for [$5] each.", "In May she sold clips for some dollars each."),
        ("He gives [20%] of them away.", "He gives some percent of them away."),
        ("It takes [1.5] hours.", "It takes some hours."),
        ("[20] birds sat there.", "Some birds sat there."),
        ("Ann left. [20] birds sat there.", "Ann left. Some birds sat there."),
        ("He saved [1,000] coins", "He saved some coins"),
        ("He has 9 apples and [11] plums.", "He has 9 apples and some plums."),
    ],
)
def test_a_count_becomes_some(marked: str, text: str) -> None:
    assert replaced(marked) == text


@pytest.mark.parametrize(
    "marked",
    [
        "They plan a [5]-day trip.",
        "They plan a [5] day trip.",
        "a [20%] discount",
        "The [6] friends share it.",
        "John's [3] brothers came.",
        "the boys' [3] kites",
        "He runs every [2] days.",
        "They ate all [8] slices.",
        "another [5] apples",
        "Ann is [30] years old.",
        "Ann is [30].",
        "She read to page [30] today.",
        "He has [5].",
        "It is [5] times as large.",
        "They left at [5] pm.",
        "between [5] and 10 apples",
        "3 [12] inch nails",
        "[2] inch nails",
        "He has [1] apple.",
        "two [$20] bills",
        "She pays with [$20] bills.",
        "[3]/4 of them",
        "The code is #[5] here.",
        "[5]'s",
        "They are [10]x larger",
    ],
)
def test_a_sentence_that_would_be_no_english_is_not_made(marked: str) -> None:
    assert replaced(marked) is None
