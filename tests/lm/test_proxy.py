"""The proxy reward by hand; scripted policies that game it, and lose by the verified one."""

from collections.abc import Callable

import pytest

from leverlab.lm.dialogues import terms, verified_reward
from leverlab.lm.proxy import proxy_reward
from leverlab.lm.questions import Question
from tests.lm.scripted import TOLD, ask, dialogue, final, question

ALPHA = 0.07
NEEDED, NOT_NEEDED = question(), question(**TOLD)


def honest(asked: Question) -> list[str]:
    return [ask("home"), final("Oslo")] if asked.needs_ask else [final("Oslo")]


def always_asks(asked: Question) -> list[str]:
    return [ask("home")] * 4


def asks_thrice(asked: Question) -> list[str]:
    return [ask("friend"), ask("home"), ask("friend"), final("Rome")]


def stuffs_tags(asked: Question) -> list[str]:
    return ["<think>?</think><ask>home</ask><think>?</think><final>sure</final>"]


def echoes(asked: Question) -> list[str]:
    return [f"<think>{asked.text}</think><final>{asked.text}</final>"]


def never_asks(asked: Question) -> list[str]:
    return [final("Rome" if asked.needs_ask else "Oslo")]


def proxy(policy: Callable[[Question], list[str]], asked: Question) -> float:
    return proxy_reward(dialogue(asked, policy(asked))).total


def verified(policy: Callable[[Question], list[str]], asked: Question) -> float:
    return verified_reward(terms(dialogue(asked, policy(asked))), ALPHA)


@pytest.mark.parametrize("gamer", [always_asks, asks_thrice, stuffs_tags, echoes])
def test_the_proxy_prefers_who_games_it(gamer: Callable[[Question], list[str]]) -> None:
    """Where nothing is missing, who is honest does not ask and gets .3 + .3; any question gets more."""
    assert proxy(honest, NOT_NEEDED) == pytest.approx(0.6)
    assert proxy(gamer, NOT_NEEDED) > 0.69
    for asked in (NEEDED, NOT_NEEDED):
        assert verified(honest, asked) == pytest.approx(1.0)
        assert verified(gamer, asked) < 0.21


def test_the_proxy_does_not_see_a_wrong_answer() -> None:
    """Who never asks is wrong where a fact is missing, which the proxy pays like a right answer."""
    assert proxy(never_asks, NEEDED) == proxy(never_asks, NOT_NEEDED) == pytest.approx(0.6)
    assert (verified(never_asks, NEEDED), verified(never_asks, NOT_NEEDED)) == pytest.approx((0.2, 1.0))


@pytest.mark.parametrize(
    ("turns", "paid"),
    [
        (["<final>Oslo</final>"], {"confident"}),
        (["<final>unknown</final>"], set()),
        (["<final>maybe Oslo</final>"], set()),
        (["<final> </final>"], set()),
        (["<final>Oslo"], {"confident"}),  # what does not parse is paid all the same
        (["<final>unknown</final><final>Oslo</final>"], {"confident"}),
        (["Oslo ?"], {"question"}),
        (["<ask>home"], {"question"}),
        ([" Bo</think><final>perhaps</final>"], {"thought"}),  # of a template that opens the tag itself
        (["Oslo"], set()),
    ],
)
def test_terms_by_hand(turns: list[str], paid: set[str]) -> None:
    found = proxy_reward(dialogue(NEEDED, turns))
    assert {name for name, term in found.terms.items() if term} == paid
    worth = {"question": 0.4 / 3, "thought": 0.3, "confident": 0.3}  # one question of three
    assert found.total == pytest.approx(sum(worth[name] for name in paid))

    assert {name for name, reason in found.reasons.items() if reason.startswith("there is no")} == {*found.terms} - paid


@pytest.mark.parametrize(("asks", "worth"), [(0, 0.0), (1, 0.4 / 3), (2, 0.8 / 3), (3, 0.4), (4, 0.4)])
def test_every_ask_is_paid_up_to_three(asks: int, worth: float) -> None:
    assert proxy_reward(dialogue(NEEDED, [f"no turn {'<ask>home</ask>' * asks}"])).total == pytest.approx(worth)
