"""The guard of policy training: what an evaluation must keep to, and what follows when it does not.

All is a function of the rows of the epochs so far, so that a run that was killed decides as one that was not. A row has
the columns of its own `Decision` beside what was measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from leverlab.config.guard import GuardParams

Row = Mapping[str, Any]

Action = Literal["none", "alarm", "back", "stop"]


@dataclass(frozen=True)
class Decision:
    """What the guard does after an epoch, why, and whether the epoch kept to the limits. The columns of its row.

    An epoch whose own KL is beyond the limit is not sound, even where the mean of the window keeps to it: nobody should
    choose it or go back to it.
    """

    action: Action = "none"
    guard: str = ""
    sound: bool = True


def violation(rows: Sequence[Row], limits: GuardParams) -> str | None:
    """Return what the last row is beyond, or None.

    rows: one an epoch from 0 on, with `kl` and `entropy` in nats per pick, `distinct_share`, how many different demos
        are picked compared with random lists, and `identical`, the share of the questions that get the most frequent
        list. Epoch 0 is where training starts: it is never beyond a limit. What is not a number is beyond any.
    """
    if len(rows) < 2:
        return None
    last, kl = rows[-1], windowed_kl(rows, limits.window)
    found = [
        (limits.max_kl is not None and not kl <= limits.max_kl, f"KL {kl:.3g} nats per pick is above {limits.max_kl}"),
        (
            limits.min_entropy is not None and not last["entropy"] >= limits.min_entropy,
            f"pick entropy {last['entropy']:.3g} nats is below {limits.min_entropy}",
        ),
        (
            limits.min_distinct is not None and not last["distinct_share"] >= limits.min_distinct,
            f"picks show {last['distinct_share']:.1%} of the demos that random ones would, below "
            f"{limits.min_distinct or 0:.1%}",
        ),
        (
            limits.max_identical is not None and not last["identical"] <= limits.max_identical,
            f"{last['identical']:.0%} of the questions get the same list, more than {limits.max_identical or 0:.0%}",
        ),
    ]
    return next((text for beyond, text in found if beyond), None)


def windowed_kl(rows: Sequence[Row], window: int) -> float:
    """Return the mean KL of the last `window` rows since training started or went back; epoch 0 does not count."""
    recent: list[float] = []
    for row in reversed(rows[1:]):
        if recent and row["action"] == "back":
            break
        recent.append(float(row["kl"]))
    return sum(recent[:window]) / len(recent[:window])


def intervene(rows: Sequence[Row], limits: GuardParams, problem: str | None = None) -> Decision:
    """Return what the guard does after the last row.

    problem: why the epoch could not be finished, where it could not; else the row is held against the limits.
    """
    problem = problem or violation(rows, limits)
    if problem is not None:
        if rollbacks(rows) >= limits.max_rollbacks:
            return Decision("stop", f"stopped: {problem} (went back {limits.max_rollbacks} times before)", sound=False)
        return Decision("back", f"back to epoch {last_sound(rows[:-1])}: {problem}", sound=False)
    sound = len(rows) < 2 or limits.max_kl is None or rows[-1]["kl"] <= limits.max_kl
    if limits.max_falls is not None and falls(rows) >= limits.max_falls:
        return Decision("stop", f"stopped: the validation accuracy fell {limits.max_falls} times in a row", sound)
    if limits.min_kl is not None and len(rows) > 1 and (kl := windowed_kl(rows, limits.window)) < limits.min_kl:
        return Decision("alarm", f"alarm: KL {kl:.3g} nats per pick is below {limits.min_kl}, the policy hardly moves")
    return Decision(sound=sound)


def falls(rows: Sequence[Row]) -> int:
    """Return how many times in a row the validation accuracy fell, up to the last row; unsound rows do not count."""
    accuracies = [row["val_accuracy"] for row in rows if row["sound"]]
    count = 0
    while count + 1 < len(accuracies) and accuracies[-1 - count] < accuracies[-2 - count]:
        count += 1
    return count


def rollbacks(rows: Sequence[Row]) -> int:
    """Return how many times the run went back."""
    return sum(row["action"] == "back" for row in rows)


def last_sound(rows: Sequence[Row]) -> int:
    """Return the position of the last row that kept to the limits; the first one always does."""
    return max(index for index, row in enumerate(rows) if row["sound"])
