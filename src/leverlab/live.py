"""What a training shows while it runs: a record of its rows, which `leverlab watch` and trackers read.

The trackers that LEVERLAB_REPORT_TO names run in a process of their own, which follows the record: what they import,
draw at random, wait for or break stays there, and their code is no dep of a stage. Nothing here reaches an out.
"""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TextIO

from leverlab.files import write_text
from leverlab.stage import Stage, workspace_store
from leverlab.terminal import echo

REPORT_TO = "LEVERLAB_REPORT_TO"
RECORDS = "live"  # folder of the records in a state folder, and of what trackers write in the folder of a pipeline
TRACKERS = "leverlab.pipeline.trackers"
PATIENCE = 90  # seconds that trackers have to finish after the training

Listener = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Training:
    """One of the trainings of a stage, and where its curves go.

    home: the folder of the pipeline, '.' for the main one. stage: as DVC names it ('grpo@0'). arm: '' in a stage with
    one training. unit: what a row is of. total: how many units there will be. metric: the validation metric that
    chooses among checkpoints, higher is better; '' for none. key: of the params, inputs and versions of the stage.
    folder: for trackers.
    """

    home: str
    stage: str
    arm: str
    unit: Literal["epoch", "step"]
    total: int
    metric: str
    key: str
    record: Path
    folder: Path
    params: Mapping[str, Any]

    @classmethod
    def of(cls, stage: Stage, unit: Literal["epoch", "step"], total: int, metric: str = "", arm: str = "") -> Self:
        """Return a training of `stage`, as it runs now."""
        store = workspace_store()
        place = stage.state_dir.relative_to(store / "state")
        home, key = place.parent.parent.as_posix(), place.name
        name, _, seed = stage.name.partition("@")
        record = stage.state_dir / RECORDS / f"{arm or name}.jsonl"
        run = "-".join(filter(None, (seed, arm, key[:8])))
        folder = store.parent / home / RECORDS / name / run
        return cls(home, stage.name, arm, unit, total, metric, key, record, folder, stage.declared_params())


@dataclass(frozen=True)
class Row:
    """What a training measured at one step: finite numbers and NaN. time: seconds since 1970."""

    step: int
    time: float
    values: Mapping[str, float]


@dataclass
class Record:
    """The rows of a training so far. head: the fields of `Training` that are plain data, and `id`, which is unique."""

    head: Mapping[str, Any]
    rows: list[Row] = field(default_factory=list)


def read_record(path: Path) -> Record | None:
    """Return the record at `path`, or None where there is none; lines that a kill or a full disk cut are left out."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        record = Record(json.loads(lines[0])["head"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    for line in lines[1:]:
        row = parse_row(line)
        if row is not None:
            record.rows.append(row)
    return record


def parse_row(line: str) -> Row | None:
    """Return the row that a line of a record holds, or None when it is cut."""
    try:
        return Row(**json.loads(line))
    except (ValueError, TypeError):
        return None


class Live:
    """Records a training, and has the trackers follow; a run that goes on after a kill goes on with its record.

    Use it as a context manager, in the process that trains. Whatever fails here is one warning: a training does not
    end because nobody can watch it.
    """

    def __init__(self, training: Training):
        self._training = training
        self._file: TextIO | None = None
        self._trackers: subprocess.Popen[bytes] | None = None
        self._on = True

    def also(self, listener: Listener) -> Listener:
        """Return `listener` as one that records the rows that it gets, too."""

        def listen(row: dict[str, Any]) -> None:
            listener(row)
            self.log(row)

        return listen

    def log(self, row: Mapping[str, Any], prefix: str = "") -> None:
        """Record the numbers of a row, which has a `step`; `prefix` tells rows of two kinds apart."""
        if not self._on:
            return
        try:
            step = int(row["step"])
            if self._file is None:
                self._file = self._begin(step)
            values = {f"{prefix}{name}": float(value) for name, value in row.items() if _is_number(name, value)}
            line = {"step": step, "time": time.time(), "values": values}
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        except Exception as error:  # a full disk above all
            self._on = False
            self._warn(f"its rows are no longer recorded ({type(error).__name__}: {error}); the training goes on")

    def _begin(self, step: int) -> TextIO:
        """Open the record for rows from `step` on: those that a killed attempt left of later steps are dropped."""
        training = self._training
        record = read_record(training.record) or Record(_head(training))
        kept = [{"step": row.step, "time": row.time, "values": row.values} for row in record.rows if row.step < step]
        write_text(training.record, "".join(json.dumps(line) + "\n" for line in ({"head": record.head}, *kept)))
        file = training.record.open("a", encoding="utf-8")
        try:
            self._trackers = _start_trackers(training.record)
        except OSError as error:
            self._warn(f"the trackers cannot start ({error})")
        return file

    def _warn(self, text: str) -> None:
        echo(f"leverlab: warning: {self._training.stage} {self._training.arm}".rstrip() + f": {text}", err=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Let the trackers finish, for `PATIENCE` seconds at most."""
        if self._file is not None:
            try:
                self._file.close()
            except OSError as problem:
                self._warn(f"the record cannot be closed ({problem})")
        if self._trackers is None:
            return
        try:
            self._trackers.communicate(b"finished\n" if kind is None else b"", timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self._warn(f"the trackers did not finish in {PATIENCE} seconds and were ended")
        finally:
            self._trackers.kill()
            self._trackers.communicate()


def _head(training: Training) -> dict[str, Any]:
    started = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    names = (*Path(training.home).parts, *training.stage.split("@"), training.arm, training.key[:8], started)
    plain = ("home", "stage", "arm", "unit", "total", "metric", "params")
    head: dict[str, Any] = {name: getattr(training, name) for name in plain}
    return head | {"folder": str(training.folder), "id": "-".join(filter(None, names))}


def _is_number(name: str, value: object) -> bool:
    return name != "step" and isinstance(value, int | float) and not math.isinf(value)


def _start_trackers(record: Path) -> subprocess.Popen[bytes] | None:
    """Start the process that follows `record`, if LEVERLAB_REPORT_TO asks for one and this place has its code.

    A place that has only what a stage declares (`leverlab verify`) lacks it: nothing is reported from there. The
    process ends soon after its standard input is closed, by `Live` or by a kill.
    """
    if os.environ.get(REPORT_TO, "none").strip() in {"", "none"}:
        return None
    if not Path("src", *TRACKERS.split(".")).with_suffix(".py").exists():
        return None
    return subprocess.Popen(
        [sys.executable, "-m", TRACKERS, str(record)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
