"""Messages on unknown names end with the nearest known ones."""

import pytest

from leverlab.nearest import did_you_mean, nearest


@pytest.mark.parametrize(
    ("name", "listing", "message"),
    [
        ("grop", None, "; did you mean 'grpo'?"),
        ("grop", "/help", "; did you mean 'grpo'? /help shows all"),
        ("zzz", None, ""),
        ("zzz", "/help", "; /help shows all"),
    ],
)
def test_the_end_of_a_message(name: str, listing: str | None, message: str) -> None:
    assert did_you_mean(name, ["sft", "rce", "grpo"], listing) == message


def test_three_at_most() -> None:
    assert nearest("plan-0", [f"plan-{number}" for number in range(1, 9)] * 2) == ["plan-8", "plan-7", "plan-6"]
