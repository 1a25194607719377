"""A library's message inside a sentence: one line, not too long, never empty."""

import pytest

from leverlab.library_errors import LONGEST, reason_of


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("a\n  b\tc "), "a b c"),
        (OSError("x" * 1000), "x" * LONGEST),
        (RecursionError(), "RecursionError"),
        (KeyError("name"), "'name'"),
    ],
)
def test_the_reason_is_one_line(error: Exception, reason: str) -> None:
    assert reason_of(error) == reason
