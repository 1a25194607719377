"""The guard by hand: what breaks a limit, what follows, and how far back a run goes."""

from typing import Any

import pytest

from leverlab.config.guard import GuardParams
from leverlab.rl.guard import Decision, falls, intervene, last_sound, rollbacks, violation, windowed_kl

OFF: dict[str, Any] = {
    "window": 2,
    "min_kl": None,
    "max_kl": None,
    "min_entropy": None,
    "min_distinct": None,
    "max_identical": None,
    "max_falls": None,
    "max_rollbacks": 2,
    "lr_factor": 0.5,
}


def limits(**changes: Any) -> GuardParams:
    return GuardParams(**OFF | changes)


def row(kl: float = 1.0, accuracy: float = 0.5, action: str = "none", **measured: Any) -> dict[str, Any]:
    found = {"kl": kl, "val_accuracy": accuracy, "entropy": 1.0, "distinct_share": 0.8, "identical": 0.01}
    return found | {"action": action, "guard": "", "sound": action != "back"} | measured


START = row(kl=0.0)


def test_the_kl_is_a_mean_over_the_window() -> None:
    rows = [START, row(1.0), row(2.0), row(6.0)]
    assert windowed_kl(rows, 1) == 6
    assert windowed_kl(rows, 2) == 4
    assert windowed_kl(rows, 9) == 3  # the start does not count
    back = [START, row(1.0), row(9.0, action="back"), row(3.0)]
    assert windowed_kl(back, 3) == 3  # nothing from before the way back


def test_an_epoch_whose_own_kl_is_beyond_is_not_sound_though_the_window_keeps_to_it() -> None:
    decision = intervene([START, row(1.0), row(2.5)], limits(max_kl=2.0))
    assert (decision.action, decision.sound) == ("none", False)
    assert intervene([START, row(1.0), row(1.9)], limits(max_kl=2.0)) == Decision()


@pytest.mark.parametrize("name", ["kl", "entropy", "distinct_share", "identical"])
def test_what_is_not_a_number_is_beyond_every_limit(name: str) -> None:
    bounds = limits(max_kl=2.0, min_entropy=0.1, min_distinct=0.1, max_identical=0.5)
    assert violation([START, row()], bounds) is None
    assert violation([START, row(**{name: float("nan")})], bounds) is not None


@pytest.mark.parametrize(
    ("limit", "measured", "problem"),
    [
        ({"max_kl": 1.4}, {"kl": 2.0}, "KL 1.5 nats per pick is above 1.4"),  # the mean of 1 and 2
        ({"min_entropy": 0.5}, {"entropy": 0.25}, "pick entropy 0.25 nats is below 0.5"),
        (
            {"min_distinct": 0.1},
            {"distinct_share": 0.05},
            "picks show 5.0% of the demos that random ones would, below 10.0%",
        ),
        ({"max_identical": 0.2}, {"identical": 0.5}, "50% of the questions get the same list, more than 20%"),
    ],
)
def test_every_limit_is_told_by_its_figure(limit: dict[str, Any], measured: dict[str, Any], problem: str) -> None:
    bad = row(**measured)
    assert violation([START, row(), bad], limits(**limit)) == problem
    assert violation([START, row(), row()], limits(**limit)) is None
    assert violation([START, row(), bad], limits()) is None
    assert violation([bad], limits(**limit)) is None  # where training starts


def test_the_limits_themselves_are_kept() -> None:
    exact = limits(max_kl=1.0, min_entropy=1.0, min_distinct=0.8, max_identical=0.01)
    assert violation([START, row(), row()], exact) is None


def test_back_to_the_last_sound_epoch_and_at_most_so_many_times() -> None:
    strict, bad = limits(max_kl=2.0, window=1, max_rollbacks=2), row(9.0)
    rows = [START, row(), row(), bad]
    assert intervene(rows, strict) == Decision("back", "back to epoch 2: KL 9 nats per pick is above 2.0", False)
    went = [START, row(), row(9.0, action="back"), bad]
    assert intervene(went, strict).guard.startswith("back to epoch 1: ")
    twice = [START, row(9.0, action="back"), row(), row(9.0, action="back"), bad]
    assert rollbacks(twice) == 2
    assert last_sound(twice[:-1]) == 2
    found = intervene(twice, strict)
    assert (found.action, found.sound) == ("stop", False)
    assert found.guard == "stopped: KL 9 nats per pick is above 2.0 (went back 2 times before)"
    assert intervene(rows, limits(max_kl=2.0, max_rollbacks=0)).action == "stop"


def test_an_epoch_that_could_not_be_finished_is_a_problem_of_its_own() -> None:
    found = intervene([START, row()], limits(), "the loss is nan")
    assert found == Decision("back", "back to epoch 0: the loss is nan", False)


def test_falls_in_a_row() -> None:
    rows = [row(accuracy=value) for value in (0.5, 0.6, 0.55, 0.55, 0.5, 0.4)]
    assert [falls(rows[:count]) for count in range(1, 7)] == [0, 0, 1, 0, 1, 2]
    assert intervene(rows, limits(max_falls=2)).guard == "stopped: the validation accuracy fell 2 times in a row"
    assert intervene(rows, limits(max_falls=2)).sound
    assert intervene(rows[:5], limits(max_falls=2)) == Decision()
    unsound = [row(accuracy=0.5), row(accuracy=0.1, action="back"), row(accuracy=0.05)]
    assert falls(unsound) == 1  # .5 to .05: what was undone does not count


def test_a_policy_that_does_not_move_gives_an_alarm_alone() -> None:
    found = intervene([START, row(0.001), row(0.003)], limits(min_kl=0.01))
    assert found == Decision("alarm", "alarm: KL 0.002 nats per pick is below 0.01, the policy hardly moves")
    assert intervene([START, row(0.02)], limits(min_kl=0.01)) == Decision()
    assert intervene([START], limits(min_kl=0.01)) == Decision()


def test_a_window_that_is_shut_is_refused() -> None:
    with pytest.raises(ValueError, match=r"min_kl = 0\.1 must be below max_kl = 0\.1"):
        limits(min_kl=0.1, max_kl=0.1)
