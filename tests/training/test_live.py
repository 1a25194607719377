"""What a training shows while it runs changes nothing of what it leaves, whatever happens to it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from leverlab.live import Live, Training, read_record
from leverlab.training.loop import Optimisation, train
from tests.training.test_loop import BASE, KilledError, contents, random_losses, validate

REPOSITORY = Path(__file__).parents[2]
PACKAGES = REPOSITORY / "tests" / "live_packages"


def training(root: Path, arm: str = "", key: str = "abcdef0123456789") -> Training:
    record = root / "state" / key / "live" / f"{arm or 'sft'}.jsonl"
    return Training(".", "sft@4", arm, "epoch", 3, "val_accuracy", key, record, root / "live", {"sft": {"lr": 0.01}})


def run(toy: Any, root: Path, dies_at: tuple[int, int] | None = None) -> dict[str, Any]:
    """The files of a run of three epochs that is watched; it goes on from what is in `root`."""
    selector = toy.selector(dropout=0.3)
    losses = random_losses(selector, dies_at=dies_at)
    (root / "run").mkdir(parents=True, exist_ok=True)
    with Live(training(root)) as live:
        train(selector, Optimisation(**BASE), losses, validate, root / "run", live.also(lambda row: None))
    return contents(root / "run")


@pytest.fixture(autouse=True)
def _place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("PYTHONPATH", f"{REPOSITORY / 'src'}:{PACKAGES}")
    monkeypatch.setenv("WANDB_API_KEY", "key")
    monkeypatch.setenv("WANDB_FAKE", str(tmp_path / "wandb.jsonl"))
    monkeypatch.delenv("LEVERLAB_REPORT_TO", raising=False)


def test_checkpoints_and_rows_are_the_same_bytes_whatever_is_reported_to(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run(toy, tmp_path / "none")
    monkeypatch.setenv("LEVERLAB_REPORT_TO", "wandb,dvclive")
    assert run(toy, tmp_path / "watched") == plain
    curve = (tmp_path / "watched/live/plots/metrics/val_accuracy.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in curve] == ["step", "0", "2", "4", "6"]
    assert not (tmp_path / "none/live").exists()


def test_a_killed_run_goes_on_with_its_record_without_a_step_twice(toy: Any, tmp_path: Path) -> None:
    whole = run(toy, tmp_path / "whole")
    with pytest.raises(KilledError):
        run(toy, tmp_path / "killed", dies_at=(2, 1))
    before = read_record(training(tmp_path / "killed").record)
    assert run(toy, tmp_path / "killed") == whole
    after, unbroken = (read_record(training(tmp_path / name).record) for name in ("killed", "whole"))
    assert before is not None
    assert after is not None
    assert unbroken is not None
    assert after.head == before.head
    assert [row.step for row in before.rows] == [0, 2]
    assert [row.step for row in after.rows] == [0, 2, 4, 6]
    assert after.rows[:2] == before.rows
    loss = [[row.values.get("loss") for row in record.rows] for record in (after, unbroken)]
    assert loss[0] == loss[1]


def test_rows_that_a_killed_attempt_left_of_later_steps_are_dropped(tmp_path: Path) -> None:
    for first, last in ((0, 5), (3, 7)):
        with Live(training(tmp_path)) as live:
            for step in range(first, last):
                live.log({"step": step, "loss": first + step})
    record = read_record(training(tmp_path).record)
    assert record is not None
    assert [(row.step, row.values["loss"]) for row in record.rows] == [
        (0, 0.0),
        (1, 1.0),
        (2, 2.0),
        (3, 6.0),
        (4, 7.0),
        (5, 8.0),
        (6, 9.0),
    ]


def test_a_cut_line_is_left_out_and_written_anew(tmp_path: Path) -> None:
    with Live(training(tmp_path)) as live:
        live.log({"step": 0, "loss": 1.0})
    path = training(tmp_path).record
    path.write_text(path.read_text() + '{"step": 1, "ti')
    with Live(training(tmp_path)) as live:
        live.log({"step": 1, "loss": 0.5})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()[1:]] == [0, 1]


def test_numbers_are_recorded_and_nothing_else(tmp_path: Path) -> None:
    with Live(training(tmp_path)) as live:
        live.log({"step": 1, "kl": math.nan, "norm": math.inf, "action": "back", "sound": False, "n": 3}, "val/")
    record = read_record(training(tmp_path).record)
    assert record is not None
    values = dict(record.rows[0].values)
    assert math.isnan(values.pop("val/kl"))
    assert values == {"val/sound": 0.0, "val/n": 3.0}


def test_a_record_that_cannot_be_written_is_one_warning_and_the_training_ends_as_ever(
    toy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = run(toy, tmp_path / "plain")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/state").write_text("a file where the folder of the state would be")
    assert run(toy, tmp_path / "full") == plain
    said = capsys.readouterr().err
    assert said.startswith("leverlab: warning: sft@4: its rows are no longer recorded (")
    assert said.endswith("; the training goes on\n")
    assert said.count("\n") == 1


def test_trackers_that_hang_are_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LEVERLAB_REPORT_TO", "wandb")
    monkeypatch.setenv("WANDB_HANGS", "600")
    monkeypatch.setattr("leverlab.live.PATIENCE", 2)
    with Live(training(tmp_path)) as live:
        live.log({"step": 1, "loss": 1.0})
    assert capsys.readouterr().err == (
        "leverlab: warning: sft@4: the trackers did not finish in 2 seconds and were ended\n"
    )


class StageOf:
    """What `Training.of` reads of a stage."""

    def __init__(self, place: str):
        self.state_dir = Path(".leverlab/state").absolute() / place
        self.name = self.state_dir.parent.name

    def declared_params(self) -> dict[str, Any]:
        return {}


def test_seeds_arms_params_and_pipelines_have_places_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    stages = ("grpo@0/aaaaaaaa00", "grpo@1/aaaaaaaa00", "grpo@0/bbbbbbbb00", "recipes/clarify/grpo@0/aaaaaaaa00")
    found = [
        Training.of(StageOf(place), "epoch", 3, arm=arm)  # type: ignore[arg-type]
        for place in stages
        for arm in ("grpo", "sft_control")
    ]
    assert len({one.record for one in found}) == len({one.folder for one in found}) == 8
    assert [one.folder.relative_to(tmp_path).as_posix() for one in (found[0], found[-1])] == [
        "live/grpo/0-grpo-aaaaaaaa",
        "recipes/clarify/live/grpo/0-sft_control-aaaaaaaa",
    ]
    heads = []
    for one in found:
        with Live(one) as live:
            live.log({"step": 0})
        record = read_record(one.record)
        assert record is not None
        heads.append(record.head["id"])
    assert len(set(heads)) == 8
