"""Schedules at their ends, middles and jumps; warm-up step by step."""

import math
from itertools import pairwise
from typing import Any

import pytest

from leverlab.errors import LeverlabError
from leverlab.rl.schedules import schedule_value, warmup, warmup_cosine


@pytest.mark.parametrize(
    ("kind", "progress", "expected"),
    [
        ("constant", 0.0, 2.0),
        ("constant", 1.0, 2.0),
        ("linear", 0.0, 2.0),
        ("linear", 0.25, 1.625),  # 2 - 1.5 / 4
        ("linear", 1.0, 0.5),
        ("cosine", 0.0, 2.0),
        ("cosine", 0.5, 1.25),
        ("cosine", 1 / 3, 1.625),  # (1 - cos 60 degrees) / 2 = 1/4 of the way
        ("cosine", 1.0, 0.5),
    ],
)
def test_values_from_two_to_a_half(kind: Any, progress: float, expected: float) -> None:
    assert schedule_value(kind, 2.0, 0.5, progress) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_ends_are_exact(kind: Any) -> None:
    assert schedule_value(kind, 0.1, 0.7, 0.0) == 0.1
    assert schedule_value(kind, 0.1, 0.7, 1.0) == 0.7


@pytest.mark.parametrize(
    ("progress", "expected"), [(0.0, 1.0), (0.1, 2.0), (0.2, 3.0), (0.35, 3.0), (0.5, 7.0), (0.75, 6.0), (1.0, 5.0)]
)
def test_piecewise_by_hand(progress: float, expected: float) -> None:
    """From 1 up to 3 at .2, level to .5, a jump to 7 that holds at .5, then down to 5 at 1 (6 half-way)."""
    points = ((0.2, 3.0), (0.5, 3.0), (0.5, 7.0))
    assert schedule_value("piecewise", 1.0, 5.0, progress, points) == pytest.approx(expected)


def test_piecewise_through_one_point_on_the_line_is_linear() -> None:
    for progress in (0.0, 0.3, 0.5, 0.9, 1.0):
        piecewise = schedule_value("piecewise", 2.0, 0.5, progress, [(0.5, 1.25)])
        assert piecewise == pytest.approx(schedule_value("linear", 2.0, 0.5, progress))


@pytest.mark.parametrize("progress", [-0.01, 1.01, math.nan])
@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_progress_out_of_range_is_refused(kind: Any, progress: float) -> None:
    with pytest.raises(LeverlabError, match="progress"):
        schedule_value(kind, 1.0, 0.0, progress)


@pytest.mark.parametrize(
    ("kind", "points", "message"),
    [
        ("exponential", (), "unknown"),
        ("linear", ((0.5, 1.0),), "1 points"),
        ("piecewise", (), "0 points"),
        ("piecewise", ((0.6, 1.0), (0.5, 1.0)), "in order"),
        ("piecewise", ((1.5, 1.0),), "in order"),
        ("piecewise", ((-0.5, 1.0),), "in order"),
    ],
)
def test_bad_schedules_are_refused(kind: Any, points: Any, message: str) -> None:
    with pytest.raises(LeverlabError, match=message):
        schedule_value(kind, 1.0, 0.0, 0.5, points)


def test_warmup_by_hand() -> None:
    """8 steps, a quarter of warm-up: W = 2, so 1/2 and 1; then (step - 2) / 6 of the way down, 0 at step 8."""
    cosine = [1 / 2, 1] + [(1 + math.cos(math.pi * step / 6)) / 2 for step in range(7)]
    assert [warmup_cosine(step, 8, 0.25) for step in range(9)] == pytest.approx(cosine)


def test_warmup_properties() -> None:
    values = [warmup_cosine(step, 30, 0.1) for step in range(31)]
    assert values[:4] == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert values[-1] == pytest.approx(0)
    assert all(later <= earlier for earlier, later in pairwise(values[3:]))
    assert warmup_cosine(0, 30, 0.0) == 1
    assert [warmup_cosine(step, 1, 0.9) for step in (0, 1)] == [1, 0]  # too short to warm up


@pytest.mark.parametrize("arguments", [(-1, 10, 0.1), (11, 10, 0.1), (0, 0, 0.1), (0, 10, 1.0), (0, 10, -0.1)])
def test_warmup_refuses(arguments: tuple[Any, ...]) -> None:
    for multiplier in (warmup, warmup_cosine):
        with pytest.raises(LeverlabError):
            multiplier(*arguments)


def test_warmup_alone_stays_at_one() -> None:
    assert [warmup(step, 8, 0.25) for step in range(9)] == [0.5] + [1.0] * 8
    assert [warmup(step, 4, 0.0) for step in range(5)] == [1.0] * 5
