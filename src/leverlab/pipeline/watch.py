"""Trainings in progress: what `leverlab watch` shows of the records in the state folders (`leverlab.live`)."""

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.live import Live as Screen
from rich.table import Table

from leverlab.errors import LeverlabError
from leverlab.live import RECORDS, Record, read_record

PERIOD = 1.0  # seconds between two looks
LAST = 10  # units whose median time is shown


@dataclass(frozen=True)
class Progress:
    """How far a training is.

    done: the last epoch or step (`unit`), of `total`. loss, value: the last ones; value is of the validation `metric`,
    and `best` its highest among sound checkpoints, found at the epoch or step `best_at`. seconds: median of the last
    epochs or steps. age: seconds since the last row. None: not measured, or not a number.
    """

    pipeline: str
    stage: str
    arm: str
    unit: str
    done: int
    total: int
    loss: float | None
    metric: str
    value: float | None
    best: float | None
    best_at: int | None
    seconds: float | None
    age: float


def home_of(root: Path, folder: Path) -> str:
    """Return the pipeline in `folder`, relative to `root`. Raises `LeverlabError` when there is none."""
    here = folder.resolve()
    if not here.is_relative_to(root.resolve()) or not (here / "dvc.yaml").is_file():
        raise LeverlabError(f"{folder} is no folder of a pipeline in {root}: it has no dvc.yaml there")
    return here.relative_to(root.resolve()).as_posix()


def read_progress(root: Path, home: str | None) -> list[Progress]:
    """Return the trainings whose state is kept in `root`, by pipeline, stage and arm; those of `home`, if given."""
    found = []
    for path in sorted((root / ".leverlab" / "state").glob(f"**/{RECORDS}/*.jsonl")):
        record = read_record(path)
        if record is None or not record.rows or (home is not None and record.head.get("home") != home):
            continue
        try:
            found.append(progress(record))
        except (KeyError, TypeError, ValueError):  # of another version of leverlab, or damaged
            continue
    return sorted(found, key=lambda training: (training.pipeline, training.stage, training.arm, training.age))


def progress(record: Record) -> Progress:
    """Return how far the training of a record is, which has a row."""
    head, steps = record.head, dict[int, dict[str, float]]()
    times: dict[int, float] = {}
    for row in record.rows:  # two rows of one step have different names
        steps.setdefault(row.step, {"step": float(row.step)}).update(row.values)
        times[row.step] = row.time
    rows, metric, unit = list(steps.values()), head["metric"], head["unit"]
    done = [int(row[unit]) for row in rows]
    sound = [
        (row[metric], -at)
        for row, at in zip(rows, done, strict=True)
        if math.isfinite(row.get(metric, math.nan)) and row.get("sound", row.get("val/sound", 1.0))
    ]
    best = max(sound, default=None)
    last = record.rows[-1].time
    return Progress(
        pipeline=head["home"],
        stage=head["stage"],
        arm=head["arm"],
        unit=unit,
        done=done[-1],
        total=head["total"],
        loss=_last(rows, "loss"),
        metric=metric,
        value=_last(rows, metric),
        best=best[0] if best else None,
        best_at=-best[1] if best else None,
        seconds=_seconds(done, list(times.values())),
        age=max(0.0, time.time() - last),
    )


def _last(rows: Sequence[dict[str, float]], name: str) -> float | None:
    value = next((row[name] for row in reversed(rows) if name in row), math.nan)
    return value if math.isfinite(value) else None


def _seconds(done: Sequence[int], times: Sequence[float]) -> float | None:
    """Return the median time of the last units; a pause between a kill and the next attempt is one of them."""
    spans = [
        (after - before) / (at - past)
        for past, at, before, after in zip(done, done[1:], times, times[1:], strict=False)
        if at > past
    ]
    return statistics.median(spans[-LAST:]) if spans else None


def as_list(trainings: Sequence[Progress]) -> list[dict[str, object]]:
    """Return the trainings as plain data for JSON."""
    return [asdict(training) for training in trainings]


def table(trainings: Sequence[Progress]) -> Table:
    """Return the trainings as a table to print."""
    shown = Table("training", "at", "loss", "validation", "best", "seconds each", "last row")
    for training in trainings:
        name = training.stage if training.pipeline == "." else f"{training.pipeline}: {training.stage}"
        metric = training.metric.removeprefix("val/").removeprefix("val_")
        shown.add_row(
            f"{name} {training.arm}".rstrip(),
            f"{training.unit} {training.done} of {training.total}",
            _number(training.loss),
            "" if training.value is None else f"{metric} {training.value:.4f}",
            "" if training.best is None else f"{training.best:.4f} ({training.unit} {training.best_at})",
            _number(training.seconds),
            _ago(training.age),
        )
    if not trainings:
        shown.caption = "no training in progress; one appears here with its first row"
    return shown


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _ago(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def follow(console: Console, root: Path, home: str | None) -> None:
    """Show the table until Ctrl-C, with what is new each second."""
    try:
        with Screen(table(read_progress(root, home)), console=console, auto_refresh=False) as screen:
            while True:
                time.sleep(PERIOD)
                screen.update(table(read_progress(root, home)), refresh=True)
    except KeyboardInterrupt:
        return
