"""Gates, named acceptance rules on metrics, and the metrics of the headline."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from leverlab.config.report import GateParams
from leverlab.errors import LeverlabError
from leverlab.nearest import did_you_mean

Direction = Literal["at_least", "at_most"]


@dataclass(frozen=True)
class Gate:
    """One rule with what was measured: `metric` is a dotted key, `threshold` itself passes."""

    name: str
    metric: str
    threshold: float
    direction: Direction
    value: float
    passed: bool


def within(value: float, limit: float, direction: Direction) -> bool:
    """Return whether `value` keeps to `limit`, the limit itself included. NaN and infinity never do."""
    if not math.isfinite(value):
        return False
    return value >= limit if direction == "at_least" else value <= limit


def evaluate_gates(rules: Mapping[str, GateParams], metrics: Mapping[str, Any]) -> list[Gate]:
    """Return one `Gate` per rule, in the order of `rules`.

    rules: name -> rule, whose `metric` is a dotted key into `metrics`.
    metrics: nested mapping with numbers as leaves (metrics.json).
    Raises `LeverlabError` for a metric that is not there (with the closest keys) and for one that is not a number. A
    value of NaN does not pass.
    """
    known = _flatten(metrics)
    return [_evaluate(name, rule, known) for name, rule in rules.items()]


def headline_metrics(
    names: Mapping[str, str], metrics: Mapping[str, Any], gates: Sequence[Gate]
) -> dict[str, float | int | None]:
    """Return the value of each metric by its short name, with four decimals, and under `red` how many gates failed.

    names: short name -> dotted key into `metrics`. A value is None when it is NaN or infinite, and when it was not
    measured: a run with fewer shots has no accuracy at four. Raises `LeverlabError` for one that is not a number.
    """
    known = _flatten(metrics)
    values = {
        name: _look_up(f"headline '{name}'", metric, known) if metric in known else math.nan
        for name, metric in names.items()
    }
    found = {name: round(value, 4) if math.isfinite(value) else None for name, value in values.items()}
    return found | {"red": sum(not gate.passed for gate in gates)}


def _evaluate(name: str, rule: GateParams, known: Mapping[str, Any]) -> Gate:
    value = _look_up(f"gate '{name}'", rule.metric, known)
    direction, threshold = _bound(rule)
    return Gate(name, rule.metric, threshold, direction, value, within(value, threshold, direction))


def _look_up(asking: str, metric: str, known: Mapping[str, Any]) -> float:
    if metric not in known:
        hint = did_you_mean(metric, known) or f"; known metrics: {', '.join(sorted(known)) or 'none'}"
        raise LeverlabError(f"{asking} asks for the metric '{metric}', which was not measured{hint}")
    value = known[metric]
    if not _is_number(value):
        raise LeverlabError(f"{asking}: metric '{metric}' is {value!r}, not a number")
    return float(value)


def _bound(rule: GateParams) -> tuple[Direction, float]:
    if rule.at_least is not None:
        return "at_least", rule.at_least
    assert rule.at_most is not None  # the rule has exactly one bound
    return "at_most", rule.at_most


def _is_number(value: object) -> bool:
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        return False
    return isinstance(value, int | float) and not isinstance(value, bool)


def _flatten(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in metrics.items():
        dotted = f"{prefix}{key}"
        flat.update(_flatten(value, f"{dotted}.") if isinstance(value, Mapping) else {dotted: value})
    return flat
