"""Values that move with training: schedules over progress in [0, 1], and learning-rate multipliers with warm-up."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

from leverlab.errors import LeverlabError

ScheduleKind = Literal["constant", "linear", "cosine", "piecewise"]
SCHEDULE_KINDS: tuple[str, ...] = get_args(ScheduleKind)


def schedule_value(
    kind: ScheduleKind, start: float, end: float, progress: float, points: Sequence[tuple[float, float]] = ()
) -> float:
    """Return the value of a schedule at `progress` = step / total, in [0, 1].

    - `constant`: `start`; `end` is not read.
    - `linear` and `cosine` (half a period): exactly `start` at 0 and `end` at 1.
    - `piecewise`: linear between (0, start), the `points` (progress, value) and (1, end). Two points at one progress
      make a jump, and the later one holds there.

    The RCE temperature by default is `schedule_value("linear", 2.0, 0.5, progress)`.
    Raises `LeverlabError` for progress outside [0, 1], an unknown kind, points that are out of order or outside [0, 1],
    and points given to a kind that does not read them.
    """
    if kind not in SCHEDULE_KINDS:
        raise LeverlabError(f"schedule kind {kind!r} is unknown; use one of {', '.join(SCHEDULE_KINDS)}")
    if not 0 <= progress <= 1:
        raise LeverlabError(f"schedule progress must lie in [0, 1], got {progress}")
    if (kind == "piecewise") != bool(points):
        raise LeverlabError(
            f"schedule kind '{kind}' got {len(points)} points; only 'piecewise' takes any, and needs some"
        )
    if kind == "constant":
        return start
    if kind == "piecewise":
        return _piecewise_value([(0.0, start), *points, (1.0, end)], progress)
    share = progress if kind == "linear" else (1 - math.cos(math.pi * progress)) / 2
    return start * (1 - share) + end * share


def warmup(step: int, total_steps: int, fraction: float) -> float:
    """Return the multiplier of update `step` (0-based) while warming up, 1 from then on.

    The first W = round(fraction * total_steps) updates climb in equal parts, 1/W, 2/W, ... 1; none is zero.
    Raises `LeverlabError` for step outside [0, total_steps] or fraction outside [0, 1).
    """
    steps = _warmup_steps(step, total_steps, fraction)
    return (step + 1) / steps if step < steps else 1.0


def warmup_cosine(step: int, total_steps: int, fraction: float) -> float:
    """Return the multiplier of update `step` (0-based): `warmup`, then half a cosine from 1 down.

    It reaches 0 at step = total_steps, which a scheduler asks for after the last update. Cosine: SGDR, arXiv
    1608.03983, without restarts. Raises as `warmup`.
    """
    steps = _warmup_steps(step, total_steps, fraction)
    if step < steps:
        return (step + 1) / steps
    return schedule_value("cosine", 1.0, 0.0, (step - steps) / (total_steps - steps))


def _warmup_steps(step: int, total_steps: int, fraction: float) -> int:
    if not 0 <= step <= total_steps or total_steps < 1:
        raise LeverlabError(f"step {step} must lie in [0, {total_steps}], and there must be at least one step")
    if not 0 <= fraction < 1:
        raise LeverlabError(f"the share of warm-up must lie in [0, 1), got {fraction}")
    # Rounding may swallow the whole run when it is very short; one step is always left to come down in.
    return min(round(fraction * total_steps), total_steps - 1)


def _piecewise_value(points: Sequence[tuple[float, float]], progress: float) -> float:
    positions = [position for position, _ in points]
    if any(later < earlier for earlier, later in pairwise(positions)):
        raise LeverlabError(f"the points of a piecewise schedule must be in order inside [0, 1], got {positions[1:-1]}")
    right = bisect_right(positions, progress)
    if right == len(points):
        return points[-1][1]
    (left_position, left_value), (right_position, right_value) = points[right - 1], points[right]
    share = (progress - left_position) / (right_position - left_position)
    return left_value * (1 - share) + right_value * share
