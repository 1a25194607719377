"""Gates: named acceptance rules on metrics."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from leverlab.errors import LeverlabError

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


def evaluate_gates(rules: Mapping[str, Mapping[str, Any]], metrics: Mapping[str, Any]) -> list[Gate]:
    """Return one `Gate` per rule, in the order of `rules`.

    rules: name -> {metric: dotted key into `metrics`, and one of at_least / at_most: finite number}.
    metrics: nested mapping with numbers as leaves (metrics.json).
    Raises `LeverlabError` for a rule of another form, for a metric that is not there (with the closest keys) and for
    one that is not a number. A value of NaN does not pass.
    """
    known = _flatten(metrics)
    return [_evaluate(name, rule, known) for name, rule in rules.items()]


def _evaluate(name: str, rule: Mapping[str, Any], known: Mapping[str, Any]) -> Gate:
    metric, direction, threshold = _parse(name, rule)
    if metric not in known:
        close = difflib.get_close_matches(metric, known, n=3)
        known_keys = ", ".join(sorted(known)) or "none"
        hint = f"did you mean {' or '.join(close)}?" if close else f"known metrics: {known_keys}"
        raise LeverlabError(f"gate '{name}' asks for the metric '{metric}', which was not measured; {hint}")
    value = known[metric]
    if not _is_number(value):
        raise LeverlabError(f"gate '{name}': metric '{metric}' is {value!r}, not a number")
    return Gate(name, metric, threshold, direction, float(value), within(float(value), threshold, direction))


def _parse(name: str, rule: Mapping[str, Any]) -> tuple[str, Direction, float]:
    bounds: list[Direction] = [bound for bound in ("at_least", "at_most") if bound in rule]
    if len(bounds) != 1 or set(rule) != {"metric", bounds[0]} or not isinstance(rule["metric"], str):
        raise LeverlabError(f"gate '{name}' must have the key metric and one of at_least and at_most, got {dict(rule)}")
    threshold = rule[bounds[0]]
    if not _is_number(threshold) or not math.isfinite(threshold):
        raise LeverlabError(f"gate '{name}': {bounds[0]} must be a finite number, got {threshold!r}")
    return rule["metric"], bounds[0], float(threshold)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _flatten(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in metrics.items():
        dotted = f"{prefix}{key}"
        flat.update(_flatten(value, f"{dotted}.") if isinstance(value, Mapping) else {dotted: value})
    return flat
