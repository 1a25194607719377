"""A number that may move: constants, schedules, bounds at every value, and one sentence for what is wrong."""

from typing import Annotated, Any

import pytest

from leverlab.config.base import Section, parse_section
from leverlab.config.schedule import Schedule, within
from leverlab.errors import LeverlabError


class Training(Section):
    lr: Annotated[Schedule, within(gt=0, le=10)]
    beta: Annotated[Schedule, within(ge=0)] = Schedule(kind="constant", start=0.0, end=0.0)
    epsilon: Annotated[Schedule, within(gt=0, lt=1)] | None = None


def read(**values: Any) -> Training:
    return parse_section(Training, "training", {"training": {"lr": 0.1} | values})


@pytest.mark.parametrize("number", [0.01, 1, "1e-2"])
def test_a_plain_number_stays(number: Any) -> None:
    lr = read(lr=number).lr
    assert [lr.at(progress) for progress in (0.0, 0.5, 1.0)] == [float(number)] * 3
    assert lr.kind == "constant"


def test_schedules_by_hand() -> None:
    """Halfway a cosine is in the middle; a quarter of the way from 4 to 2 is 3.5; at .25 the jump has happened."""
    assert read(lr={"kind": "linear", "start": 4, "end": 2}).lr.at(0.25) == 3.5
    assert read(lr={"kind": "cosine", "start": 4, "end": 2}).lr.at(0.5) == pytest.approx(3)
    jump = read(lr={"kind": "piecewise", "start": 4, "end": 2, "points": [[0.25, 4], [0.25, 2]]}).lr
    assert [jump.at(progress) for progress in (0.0, 0.2, 0.25, 1.0)] == [4, 4, 2, 2]
    assert jump.largest() == 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": "fast"}, "'training.lr' = 'fast' is not allowed: it should be a number, or a schedule"),
        ({"lr": True}, "'training.lr' = True is not allowed"),
        ({"lr": None}, "'training.lr' = None is not allowed"),
        ({"lr": float("nan")}, "'training.lr' = nan is not allowed"),
        ({"lr": [1]}, "'training.lr' = .1. is not allowed"),
        ({"lr": 10**400}, "'training.lr' = "),
        ({"lr": 0}, "'training.lr' = .* it should be greater than 0"),
        ({"lr": 11}, "it should be at most 10"),
        ({"epsilon": 1.0}, "'training.epsilon' = .* it should be less than 1"),
        ({"beta": -0.1}, "'training.beta' = .* it should be at least 0"),
        ({"lr": {"kind": "linear", "start": 1, "end": 0}}, "'training.lr' = .* its end should be greater than 0"),
        (
            {"lr": {"kind": "piecewise", "start": 1, "end": 1, "points": [[0.5, 0]]}},
            "its points should be greater than 0",
        ),
        ({"lr": {"kind": "linear", "start": 1}}, "key 'training.lr.end' is missing"),
        ({"lr": {"kind": "linear", "start": 1, "end": 1, "ende": 2}}, "unknown key 'training.lr.ende'; did you mean"),
        ({"lr": {"kind": "square", "start": 1, "end": 1}}, "'training.lr.kind' = 'square'"),
        ({"lr": {"kind": "linear", "start": 1, "end": "x"}}, "'training.lr.end' = 'x'"),
        ({"lr": {"kind": "piecewise", "start": 1, "end": 1}}, "only 'piecewise' takes any, and needs some"),
        ({"lr": {"kind": "linear", "start": 1, "end": 1, "points": [[0.5, 1]]}}, "only 'piecewise' takes any"),
        ({"lr": {"kind": "piecewise", "start": 1, "end": 1, "points": [[0.5, 1], [0.2, 1]]}}, "must be in order"),
        ({"lr": {"kind": "piecewise", "start": 1, "end": 1, "points": [[1.5, 1]]}}, "must be in order inside"),
    ],
)
def test_what_is_wrong_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(LeverlabError, match=message):
        read(**values)
