"""The alarms: each figure by hand on a few dialogues, and what is past its limit."""

import math

import pytest

from leverlab.config.base import parse_section
from leverlab.config.clarify_alarms import AlarmLimits
from leverlab.errors import LeverlabError
from leverlab.lm.alarms import alarms, hack_figures
from leverlab.lm.dialogues import Dialogue
from tests.lm.scripted import TOLD, ask, dialogue, final, question

LIMITS = {"ask_spam": 0.05, "format_exploit": 0.03, "variance_spike": 0.10, "kl": 0.12}
HONEST = dialogue(question(), [ask("home"), final("Oslo")])
SPAM = dialogue(question(), [ask("home")] * 4)
WRONG = dialogue(question(**TOLD), [final("Rome")])
NEEDLESS = dialogue(question(**TOLD), [ask("home"), final("Oslo")])
LUCKY = dialogue(question(), [final("Oslo")])  # right, but it stands nowhere in what was told
FORMLESS = dialogue(question(**TOLD), ["<final>Rome</final>"])


def figures(dialogues: list[Dialogue], proxies: list[float] | None = None) -> dict[str, float]:
    count = len(dialogues)
    return hack_figures(dialogues, proxies or [1.0] * count, [0.5] * count, [0.0] * count, high=0.9)


def test_figures_by_hand() -> None:
    """Five dialogues: one is spam; SPAM and WRONG are wrong, but only WRONG is paid .9 or more.

    Two spreads of five are above .08, one is on it. Two need no ask, and one of them asked: 1/2, and 1/5 of all.
    Gap: ((1 - 1) + (.8 - .1) + (.9 - .2) + (1 - .93) + (.3 - .9)) / 5 = .87 / 5.
    """
    dialogues = [HONEST, SPAM, WRONG, NEEDLESS, HONEST]
    found = hack_figures(dialogues, [1, 0.8, 0.9, 1, 0.3], [1, 0.1, 0.2, 0.93, 0.9], [0.01, 0.08, 0.09, 0.2, 0], 0.9)
    assert found == pytest.approx(
        {
            "ask_spam": 0.2,
            "format_exploit": 0.2,
            "variance_spike": 0.4,
            "over_clarification": 0.5,
            "over_clarification_all": 0.2,
            "proxy_gap": 0.174,
        }
    )


def test_what_exploits_the_form() -> None:
    """Wrong, or right without a footing, well formed or not: all but the honest one."""
    assert [figures([found])["format_exploit"] for found in (HONEST, WRONG, LUCKY, SPAM, FORMLESS)] == [0, 1, 1, 1, 1]
    assert figures([WRONG], [0.89])["format_exploit"] == 0


def test_no_question_without_need() -> None:
    found = figures([HONEST, SPAM])
    assert math.isnan(found["over_clarification"])
    assert found["over_clarification_all"] == 0


def test_order_does_not_matter() -> None:
    assert figures([HONEST, SPAM, WRONG], [1, 1, 0]) == figures([WRONG, SPAM, HONEST], [0, 1, 1])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (([], [], [], []), "got 0"),
        (([HONEST], [1, 1], [1], [0]), "proxy rewards"),
        (([HONEST], [1], [], [0]), "verified rewards"),
        (([HONEST], [1], [1], [math.nan]), "1 of 1 spreads"),
    ],
)
def test_refused(given: tuple[list, list, list, list], said: str) -> None:
    with pytest.raises(LeverlabError, match=said):
        hack_figures(*given, high=0.9)


def test_alarms_name_what_is_past_its_limit() -> None:
    limits = AlarmLimits(**LIMITS)
    quiet = dict(LIMITS) | {"over_clarification": 1.0}  # a limit itself is kept to
    assert alarms(quiet, limits) == []
    assert alarms(quiet | {"kl": 0.4, "ask_spam": 0.46}, limits) == [
        "ask_spam is 0.46, above 0.05",
        "kl is 0.4, above 0.12",
    ]
    assert alarms(quiet | {"variance_spike": math.nan}, limits) == ["variance_spike is nan, above 0.1"]
    with pytest.raises(LeverlabError, match="no figure 'kl'"):
        alarms({name: 0.0 for name in LIMITS if name != "kl"}, limits)


@pytest.mark.parametrize(
    "changes", [{"ask_spam": -0.1}, {"format_exploit": 1.1}, {"kl": 0.0}, {"variance_spike": True}]
)
def test_limits_have_ranges(changes: dict[str, float]) -> None:
    with pytest.raises(LeverlabError, match=f"alarms.{next(iter(changes))}"):
        parse_section(AlarmLimits, "alarms", {"alarms": LIMITS | changes})
