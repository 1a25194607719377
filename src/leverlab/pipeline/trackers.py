"""Trackers of trainings as a program: `python -m leverlab.pipeline.trackers RECORD` follows a record until it ends.

`leverlab.live` starts it beside a training when LEVERLAB_REPORT_TO names a tracker. Each tracker gets every row of the
record, those of the attempts before a kill too, so that what it shows is whole however often a run was killed, and
whichever attempt asked for it first. A tracker that fails is switched off with one warning.
"""

import importlib.util
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from leverlab.errors import LeverlabError
from leverlab.library_errors import reason_of
from leverlab.live import PATIENCE, REPORT_TO, Row, parse_row, read_record
from leverlab.nearest import did_you_mean
from leverlab.terminal import echo, one_line

PAUSE = 0.5  # seconds between two looks at the record


class Tracker(Protocol):
    """Where rows go."""

    def log(self, row: Row) -> None:
        """Take a row; several rows of one step have different names, and steps never fall."""

    def flush(self) -> None:
        """Make what was logged visible."""

    def close(self, finished: bool) -> None:
        """End the run, which `finished` or goes on later."""


class TensorBoard:
    """Event files in the run's folder: `tensorboard --logdir live`."""

    def __init__(self, head: Mapping[str, Any], first: int):
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard forgets what files of former attempts have from this step on
        self._writer = SummaryWriter(head["folder"], purge_step=first)

    def log(self, row: Row) -> None:
        """Add a scalar for each value, at the time when it was measured."""
        for name, value in row.values.items():
            self._writer.add_scalar(name, value, row.step, walltime=row.time)

    def flush(self) -> None:
        """Write the events to the disk."""
        self._writer.flush()

    def close(self, finished: bool) -> None:
        """Close the file."""
        self._writer.close()


class Wandb:
    """A run of Weights & Biases, which goes on under its id after a kill; WANDB_* variables count as always."""

    def __init__(self, head: Mapping[str, Any], first: int):
        import wandb

        folder = Path(head["folder"])
        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "leverlab"),
            id=head["id"],
            name=head["id"],
            group=f"{head['home']}/{head['stage']}".removeprefix("./"),
            resume="allow",
            dir=str(folder),
            config=dict(head["params"]),
            settings=wandb.Settings(console="off", save_code=False, disable_git=True, finish_timeout=PATIENCE / 2),
        )

    def log(self, row: Row) -> None:
        """Send a row, unless the run has its step from a former attempt."""
        if row.step >= self._run.step:
            self._run.log(dict(row.values), step=row.step)

    def flush(self) -> None:
        """Do nothing: wandb sends by itself."""

    def close(self, finished: bool) -> None:
        """Finish the run; one that did not finish is marked as failed until it goes on."""
        self._run.finish(exit_code=0 if finished else 1)


class DvcLive:
    """Files of DVCLive in the run's folder, written anew by each attempt: `dvc plots show live/...`."""

    def __init__(self, head: Mapping[str, Any], first: int):
        from dvclive import Live

        # neither an experiment nor a dvc.yaml: the pipeline has its own
        self._live = Live(dir=head["folder"], resume=False, report=None, save_dvc_exp=False, dvcyaml=None)

    def log(self, row: Row) -> None:
        """Add a line to the file of each value."""
        self._live.step = row.step
        for name, value in row.values.items():
            self._live.log_metric(name, value)

    def flush(self) -> None:
        """Write metrics.json; the lines are in their files already."""
        self._live.make_summary()

    def close(self, finished: bool) -> None:
        """End the run."""
        self._live.end()


# name → what opens it, and the package that it needs
TRACKERS: dict[str, tuple[Callable[[Mapping[str, Any], int], Tracker], str]] = {
    "tensorboard": (TensorBoard, "tensorboard"),
    "wandb": (Wandb, "wandb"),
    "dvclive": (DvcLive, "dvclive"),
}


def report_to() -> list[str]:
    """Return the trackers that LEVERLAB_REPORT_TO names, none by default.

    Raises `LeverlabError` for an unknown name, a package that is not installed, and wandb without its key.
    """
    asked = os.environ.get(REPORT_TO, "")
    names = list(dict.fromkeys(filter(None, map(str.strip, asked.split(",")))))
    for name in names:
        if name == "none":
            if len(names) > 1:
                raise LeverlabError(f"{REPORT_TO} = '{asked}' names 'none' beside others; leave one of both out")
            return []
        if name not in TRACKERS:
            hint = did_you_mean(name, ["none", *TRACKERS], "docs/live.md")
            raise LeverlabError(f"{REPORT_TO} = '{asked}': there is no tracker '{name}'{hint}")
        package = TRACKERS[name][1]
        if importlib.util.find_spec(package) is None:
            raise LeverlabError(
                f"{REPORT_TO} = '{asked}': {package} is not installed; run `pip install {package}`, or leave it out"
            )
    if "wandb" in names and os.environ.get("WANDB_MODE") not in {"offline", "disabled", "dryrun"}:
        import wandb

        if not wandb.login(prompt=False):
            raise LeverlabError(
                f"{REPORT_TO} = '{asked}': wandb has no API key; run `wandb login`, or set WANDB_MODE=offline"
            )
    return names


def follow(lines: Iterator[str | None], head: Mapping[str, Any], names: Sequence[str]) -> dict[str, Tracker]:
    """Hand the rows of `lines` to the trackers `names`; return those that still work at the end.

    None in `lines` says that no line follows for a while. Trackers are opened with the first row.
    """
    working: dict[str, Tracker] = {}
    waiting = list(names)

    def each(act: Callable[[str], None], over: Sequence[str]) -> None:
        for name in over:
            try:
                act(name)
            except Exception as error:  # any package, any reason: the others go on
                working.pop(name, None)
                echo(
                    f"leverlab: warning: {head['stage']}: {name} is switched off, the training goes on "
                    f"({type(error).__name__}: {reason_of(error)})",
                    err=True,
                )

    for line in lines:
        if line is None:
            each(lambda name: working[name].flush(), [*working])
            continue
        row = parse_row(line)
        if row is None:
            continue
        opened, waiting = waiting, []
        each(lambda name, step=row.step: working.update({name: TRACKERS[name][0](head, step)}), opened)  # type: ignore[misc]
        each(lambda name, row=row: working[name].log(row), [*working])  # type: ignore[misc]
    return working


class Following:
    """The lines of a record as they come, until standard input is closed, by the training or by its death."""

    def __init__(self, record: Path, stdin: int):
        self._record, self._stdin = record, stdin
        self.finished = False  # whether the training said so before

    def __iter__(self) -> Iterator[str | None]:
        with self._record.open(encoding="utf-8") as file:
            file.readline()  # the head
            part, ended = "", False
            while True:
                for line in file:
                    part += line
                    if part.endswith("\n"):
                        yield part
                        part = ""
                yield None
                if ended:
                    return
                ended = self._has_ended()

    def _has_ended(self) -> bool:
        if not select.select([self._stdin], [], [], PAUSE)[0]:
            return False
        said = os.read(self._stdin, 100)
        self.finished = self.finished or bool(said)
        return not said


def main(record: Path) -> None:
    """Follow `record` with the trackers of LEVERLAB_REPORT_TO."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the training, which then closes standard input
    try:
        names = report_to()
        found = read_record(record)
        if found is None:
            raise LeverlabError(f"{record} is not the record of a training")
        # the trackers of a killed attempt may still finish
        with FileLock(record.with_suffix(".lock")).acquire(timeout=PATIENCE):
            lines = Following(record, sys.stdin.fileno())
            for name, tracker in follow(iter(lines), found.head, names).items():
                _close(name, tracker, lines.finished)
    except (LeverlabError, OSError, Timeout) as error:
        sys.exit(f"leverlab: warning: the trackers stop, the training goes on: {one_line(str(error))}")


def _close(name: str, tracker: Tracker, finished: bool) -> None:
    try:
        tracker.close(finished)
    except Exception as error:  # as while it works
        echo(f"leverlab: warning: {name} did not finish ({reason_of(error)})", err=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
