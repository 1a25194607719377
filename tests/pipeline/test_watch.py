"""`leverlab watch`: one line for each training in progress."""

import json
import math
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from leverlab.cli import app
from leverlab.errors import LeverlabError
from leverlab.live import Live, Training
from leverlab.pipeline.watch import read_progress

Rows = Sequence[dict[str, Any]]
GRPO = [
    {"epoch": 0, "step": 0, "val_accuracy": 0.5},
    {"epoch": 1, "step": 8, "loss": 0.25, "val_accuracy": 0.75},
    {"epoch": 2, "step": 16, "loss": 0.125, "val_accuracy": 0.9, "sound": False},
    {"epoch": 3, "step": 24, "loss": 0.0625, "val_accuracy": 0.7, "sound": True},
]


class Place:
    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch):
        self.root, self.patch = root, monkeypatch
        (root / ".dvc").mkdir()
        (root / "dvc.yaml").touch()
        (root / "recipes/clarify").mkdir(parents=True)
        (root / "recipes/clarify/dvc.yaml").touch()
        monkeypatch.chdir(root)
        monkeypatch.delenv("LEVERLAB_REPORT_TO", raising=False)

    def train(self, rows: Rows, stage: str, unit: Any, total: int, metric: str, arm: str = "", home: str = ".") -> Path:
        """Record `rows`, two seconds each, the last one five seconds ago; return the record."""
        record = self.root / ".leverlab/state" / home / stage / "abcdef01/live" / f"{arm or 'x'}.jsonl"
        with Live(Training(home, stage, arm, unit, total, metric, "abcdef01", record, self.root / "live", {})) as live:
            for place, row in enumerate(rows):
                at = time.time() - 5 - 2 * (len(rows) - 1 - place)
                with self.patch.context() as patch:
                    patch.setattr("leverlab.live.time.time", lambda at=at: at)
                    live.log(row, "val/" if "success" in row else "")
        return record

    def watch(self, *arguments: str) -> str:
        result = CliRunner().invoke(app, ["watch", *arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.output


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(tmp_path, monkeypatch)


def test_a_training_is_its_last_row_its_best_sound_one_and_its_pace(place: Place) -> None:
    place.train(GRPO, "grpo@0", "epoch", 5, "val_accuracy", "grpo")
    (found,) = json.loads(place.watch("--json"))
    assert found.pop("age") == pytest.approx(5, abs=3)
    assert found.pop("seconds") == pytest.approx(2, abs=0.5)
    assert found == {
        "pipeline": ".",
        "stage": "grpo@0",
        "arm": "grpo",
        "unit": "epoch",
        "done": 3,
        "total": 5,
        "loss": 0.0625,
        "metric": "val_accuracy",
        "value": 0.7,
        "best": 0.75,
        "best_at": 1,
    }


def test_evaluations_between_steps_are_one_training(place: Place) -> None:
    rows = [
        {"step": 0, "success": 0.5, "kl": 0.0},
        {"step": 1, "loss": 2.0},
        {"step": 2, "success": 0.6, "kl": 0.1},
        {"step": 2, "loss": math.nan},
    ]
    place.train(rows, "grpo@0", "step", 40, "val/success", home="recipes/clarify")
    (found,) = read_progress(place.root, "recipes/clarify")
    assert (found.done, found.total, found.value, found.best, found.best_at) == (2, 40, 0.6, 0.6, 2)
    assert found.loss is None  # the last one is not a number


def test_the_table_has_a_line_for_each_training(place: Place) -> None:
    place.train(GRPO, "grpo@0", "epoch", 5, "val_accuracy", "sft_control")
    place.train(GRPO[:1], "grpo@0", "epoch", 5, "val_accuracy", "grpo")
    place.train([{"step": 7, "loss": 0.5}], "sft@1", "step", 40, "", home="recipes/clarify")
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in place.watch("--once").splitlines()]
    lines = [line[:5] for line in cells if line]
    assert lines == [
        ["grpo@0 grpo", "epoch 0 of 5", "", "accuracy 0.5000", "0.5000 (epoch 0)"],
        ["grpo@0 sft_control", "epoch 3 of 5", "0.0625", "accuracy 0.7000", "0.7500 (epoch 1)"],
        ["recipes/clarify: sft@1", "step 7 of 40", "0.5", "", ""],
    ]
    assert "sft@1" in place.watch("recipes/clarify", "--once")
    assert "grpo@0" not in place.watch("recipes/clarify", "--once")
    assert "sft@1" not in place.watch(".", "--once")


def test_nothing_in_progress_is_said(place: Place) -> None:
    assert "no training in progress" in place.watch()
    assert json.loads(place.watch("--json")) == []


def test_damaged_records_are_left_out(place: Place) -> None:
    sound = place.train(GRPO, "grpo@0", "epoch", 5, "val_accuracy", "grpo")
    lines = sound.read_text().splitlines()
    for name, text in {
        "empty": "",
        "text": "no record",
        "list": "[1]",
        "head": lines[0],
        "other": '{"head": {"stage": "x"}}\n' + lines[1],
        "cut": lines[0] + "\n" + lines[1][:20],
    }.items():
        (sound.parent / f"{name}.jsonl").write_text(text)
    assert [training.arm for training in read_progress(place.root, None)] == ["grpo"]


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("recipes/clarifi", "there is no recipe 'recipes/clarifi'; did you mean 'recipes/clarify'? "),
        ("recipes", "recipes is no folder of a pipeline in "),
        ("..", ".. is no folder of a pipeline in "),
    ],
)
def test_a_folder_without_a_pipeline_is_refused(place: Place, folder: str, message: str) -> None:
    with pytest.raises(LeverlabError, match=f"^{re.escape(message)}"):
        place.watch(folder)


def test_control_characters_of_a_record_do_not_reach_the_terminal(place: Place) -> None:
    place.train(GRPO, "grpo@0", "epoch", 5, "val_accuracy", "\x1b[2Jarm")
    assert "\x1b[2J" not in place.watch("--once")


def test_on_a_terminal_the_table_follows_until_ctrl_c(place: Place) -> None:
    """New rows appear while the command runs, and Ctrl-C ends it with code 0."""
    place.train(GRPO[:2], "grpo@0", "epoch", 5, "val_accuracy", "grpo")
    ours, theirs = pty.openpty()
    source = Path(__file__).parents[2] / "src"
    environment = os.environ | {"PYTHONPATH": str(source), "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    watching = subprocess.Popen(
        [sys.executable, "-m", "leverlab.cli", "watch"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        start_new_session=True,
        # a run of the tests in the background ignores Ctrl-C, and a child would, too
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(theirs)
    try:
        assert "epoch 1 of 5" in read_until(ours, "epoch 1 of 5")
        place.train(GRPO, "grpo@0", "epoch", 5, "val_accuracy", "grpo")
        assert "epoch 3 of 5" in read_until(ours, "epoch 3 of 5")
        watching.send_signal(signal.SIGINT)
        assert watching.wait(timeout=30) == 0
    finally:
        watching.kill()
        watching.wait()
        os.close(ours)


def read_until(terminal: int, text: str) -> str:
    shown, end = "", time.monotonic() + 60
    while text not in shown and time.monotonic() < end:
        shown += os.read(terminal, 10_000).decode(errors="replace")
    return shown
