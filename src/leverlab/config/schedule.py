"""A number of params.yaml that may move with training."""

import math
import operator
from collections.abc import Mapping
from typing import Any

from pydantic import AfterValidator, model_validator

from leverlab.config.base import Number, Section
from leverlab.errors import LeverlabError
from leverlab.rl.schedules import ScheduleKind, schedule_value

_BOUNDS = {"gt": (operator.gt, "greater than"), "ge": (operator.ge, "at least")}
_BOUNDS |= {"lt": (operator.lt, "less than"), "le": (operator.le, "at most")}


class Schedule(Section):
    """A constant (a plain number), or `{kind: linear | cosine, start, end}`, or `{kind: piecewise, …, points}`.

    Points are [progress, value], progress in 0..1 over the whole training; `schedule_value` tells what each kind gives.
    """

    kind: ScheduleKind
    start: Number
    end: Number
    points: tuple[tuple[Number, Number], ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _of_a_number(cls, data: Any) -> Any:
        if isinstance(data, Mapping | Schedule):
            return data
        try:
            if isinstance(data, bool) or not math.isfinite(number := float(data)):
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            raise ValueError("It should be a number, or a schedule with kind, start and end") from None
        return {"kind": "constant", "start": number, "end": number}

    @model_validator(mode="after")
    def _points_fit(self) -> "Schedule":
        try:
            self.at(0.0)
        except LeverlabError as error:
            raise ValueError(str(error)) from None
        return self

    def at(self, progress: float) -> float:
        """Return the value at `progress`, the share of the training that is over, in [0, 1]."""
        return schedule_value(self.kind, self.start, self.end, progress, self.points)

    def places(self) -> list[tuple[str, float]]:
        """Return the values between which it moves, each with the words for it."""
        if self.kind == "constant":
            return [("It", self.start)]
        return [("Its start", self.start), ("Its end", self.end), *(("Its points", value) for _, value in self.points)]

    def knots(self) -> set[float]:
        """Return the progress at its start, its points and its end; between two of them it is monotone."""
        return {0.0, 1.0, *(progress for progress, _ in self.points)}

    def largest(self) -> float:
        """Return the largest value that it takes."""
        return max(value for _, value in self.places())


def within(**bounds: float) -> AfterValidator:
    """Return the check that all values of a schedule keep to `gt`, `ge`, `lt` and `le`."""

    def check(schedule: Schedule) -> Schedule:
        for name, bound in bounds.items():
            keeps, words = _BOUNDS[name]
            for place, value in schedule.places():
                if not keeps(value, bound):
                    raise ValueError(f"{place} should be {words} {bound:g}")
        return schedule

    return AfterValidator(check)
