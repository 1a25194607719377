"""Trackers: what LEVERLAB_REPORT_TO may say, runs that go on after a kill, and trackers that fail."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from leverlab.errors import LeverlabError
from leverlab.live import Row, read_record
from leverlab.pipeline import trackers
from leverlab.pipeline.trackers import follow, report_to

REPOSITORY = Path(__file__).parents[2]
PACKAGES = REPOSITORY / "tests" / "live_packages"
MODULE = Path("src/leverlab/pipeline/trackers.py")
HEAD: dict[str, Any] = {"home": ".", "stage": "sft@0", "id": "sft-0", "folder": "nowhere", "params": {}}
JOB = """\
import os, sys, time
from pathlib import Path
from leverlab.live import Live, Training

first, last, dies, arm, pause = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], float(sys.argv[5])
root = Path.cwd()
record, folder = root / ".leverlab/state/grpo@0/abcdef01/live" / f"{arm}.jsonl", root / f"live/grpo/0-{arm}"
with Live(Training(".", "grpo@0", arm, "epoch", 9, "val_accuracy", "abcdef01", record, folder, {})) as live:
    for epoch in range(first, last):
        live.log({"epoch": epoch, "step": 2 * epoch, "loss": 1 / (epoch + 1), "val_accuracy": epoch / 10})
        time.sleep(pause)
        if epoch == dies:
            os.kill(os.getpid(), 9)
print("trained")
"""


class Place:
    """A small repository where trainings of nothing run as processes."""

    def __init__(self, root: Path):
        self.root = root
        (root / MODULE).parent.mkdir(parents=True)
        (root / MODULE).touch()
        (root / "job.py").write_text(JOB)

    def start(
        self, report: str, first: int, last: int, dies: int = -1, arm: str = "grpo", pause: float = 0.0, **more: str
    ) -> subprocess.Popen[str]:
        arguments = [str(first), str(last), str(dies), arm, str(pause)]
        return subprocess.Popen(
            [sys.executable, "job.py", *arguments],
            cwd=self.root,
            env=self.environment(report, PACKAGES) | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def environment(self, report: str, *packages: Path) -> dict[str, str]:
        paths = [REPOSITORY / "src", *packages, *filter(None, [os.environ.get("PYTHONPATH")])]
        return os.environ | {
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "LEVERLAB_REPORT_TO": report,
            "WANDB_API_KEY": "key",
            "WANDB_FAKE": str(self.root / "wandb.jsonl"),
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(self.root / "site"),
        }

    def run(self, report: str, first: int, last: int, dies: int = -1, **more: str) -> tuple[int, str, str]:
        job = self.start(report, first, last, dies, **more)
        out, err = job.communicate(timeout=60)
        return job.returncode, out, err

    def curve(self, name: str, arm: str = "grpo") -> list[tuple[int, float]]:
        lines = (self.root / f"live/grpo/0-{arm}/plots/metrics/{name}.tsv").read_text().splitlines()[1:]
        return [(int(line.split("\t")[0]), float(line.split("\t")[1])) for line in lines]

    def sent(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.root / "wandb.jsonl").read_text().splitlines()]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture(autouse=True)
def _no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LEVERLAB_REPORT_TO", "WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def installed(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name in packages else None)


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        (None, []),
        ("", []),
        ("none", []),
        ("dvclive", ["dvclive"]),
        (" tensorboard, dvclive ,", ["tensorboard", "dvclive"]),
        ("dvclive,dvclive", ["dvclive"]),
    ],
)
def test_what_may_be_asked_for(monkeypatch: pytest.MonkeyPatch, asked: str | None, names: list[str]) -> None:
    installed(monkeypatch, "tensorboard", "dvclive")
    if asked is not None:
        monkeypatch.setenv("LEVERLAB_REPORT_TO", asked)
    assert report_to() == names


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("wanddb", "'wanddb': there is no tracker 'wanddb'; did you mean 'wandb'? docs/live.md shows all"),
        ("dvclive,mlflow", "'dvclive,mlflow': there is no tracker 'mlflow'; docs/live.md shows all"),
        ("None", "'None': there is no tracker 'None'; did you mean 'none'? docs/live.md shows all"),
        ("tensorboard", "'tensorboard': tensorboard is not installed; run `pip install tensorboard`, or leave it out"),
        ("dvclive,none", "'dvclive,none' names 'none' beside others; leave one of both out"),
    ],
)
def test_what_may_not_be_asked_for(monkeypatch: pytest.MonkeyPatch, asked: str, message: str) -> None:
    installed(monkeypatch, "dvclive")
    monkeypatch.setenv("LEVERLAB_REPORT_TO", asked)
    with pytest.raises(LeverlabError) as raised:
        report_to()
    assert str(raised.value) == f"LEVERLAB_REPORT_TO = {message}"


def test_wandb_without_a_key_is_refused_at_the_start_unless_it_is_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = ModuleType("wandb")
    wandb.login = lambda prompt: "WANDB_API_KEY" in os.environ  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    installed(monkeypatch, "wandb")
    monkeypatch.setenv("LEVERLAB_REPORT_TO", "wandb")
    with pytest.raises(LeverlabError, match=r"wandb has no API key; run `wandb login`, or set WANDB_MODE=offline$"):
        report_to()
    for name, value in (("WANDB_API_KEY", "key"), ("WANDB_MODE", "offline")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert report_to() == ["wandb"]


def test_a_run_that_is_killed_goes_on_in_the_same_run_without_a_step_twice(place: Place) -> None:
    assert place.run("wandb,dvclive", 0, 5, dies=3)[0] == -9
    wait_for(lambda: "exit_code" in place.sent()[-1])  # trackers end by themselves after a kill
    assert place.run("wandb,dvclive", 2, 6) == (0, "trained\n", "")
    assert place.curve("loss") == [(2 * epoch, 1 / (epoch + 1)) for epoch in range(6)]
    assert json.loads((place.root / "live/grpo/0-grpo/metrics.json").read_text())["step"] == 10
    sent = place.sent()
    assert len({line["id"] for line in sent}) == 1
    assert [line["step"] for line in sent if "step" in line] == [0, 2, 4, 6, 8, 10]
    assert [line["exit_code"] for line in sent if "exit_code" in line] == [1, 0]


def test_a_tracker_that_the_first_attempt_did_not_have_gets_the_rows_before(place: Place) -> None:
    assert place.run("none", 0, 5, dies=3)[0] == -9
    assert place.run("dvclive", 2, 6)[0] == 0
    assert place.curve("epoch") == [(2 * epoch, epoch) for epoch in range(6)]


def test_a_tracker_that_fails_is_one_warning_and_the_others_go_on(place: Place) -> None:
    code, out, err = place.run("wandb,dvclive", 0, 6, WANDB_FAILS_AT="4")
    assert (code, out) == (0, "trained\n")
    assert err == (
        "leverlab: warning: grpo@0: wandb is switched off, the training goes on "
        "(ConnectionError: the network is gone)\n"
    )
    assert [step for step, _ in place.curve("loss")] == [0, 2, 4, 6, 8, 10]
    assert [line["step"] for line in place.sent() if "step" in line] == [0, 2]


def test_arms_in_two_processes_do_not_meet(place: Place) -> None:
    arms = [place.start("wandb,dvclive", 0, 4, arm=arm) for arm in ("grpo", "sft_control")]
    assert [arm.communicate(timeout=60) for arm in arms] == [("trained\n", "")] * 2
    for arm in ("grpo", "sft_control"):
        assert [step for step, _ in place.curve("loss", arm)] == [0, 2, 4, 6]
    assert len({line["id"] for line in place.sent()}) == 2


def test_where_the_trackers_are_no_part_of_the_place_nothing_is_reported(place: Place) -> None:
    """`leverlab verify` lays out such a place."""
    (place.root / MODULE).unlink()
    assert place.run("dvclive", 0, 3) == (0, "trained\n", "")
    assert not (place.root / "live").exists()


class Events:
    """The part of torch's SummaryWriter that is used, and what TensorBoard shows of its files."""

    shown: dict[str, dict[int, float]]

    def __init__(self, folder: str, purge_step: int):
        for steps in self.shown.values():
            for step in [step for step in steps if step >= purge_step]:
                del steps[step]

    def add_scalar(self, name: str, value: float, step: int, walltime: float) -> None:
        self.shown.setdefault(name, {})[step] = walltime

    def flush(self) -> None: ...
    def close(self) -> None: ...


def test_tensorboard_forgets_what_former_attempts_wrote(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Events  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    Events.shown = {}
    for attempt, last in ((1, 5), (2, 4)):
        lines = [
            json.dumps({"step": step, "time": 100 * attempt + step, "values": {"loss": 1.0}}) for step in range(last)
        ]
        working = follow(iter([*lines, None]), HEAD, ["tensorboard"])
        assert [*working] == ["tensorboard"]
        working["tensorboard"].close(True)
    assert Events.shown == {"loss": {0: 200, 1: 201, 2: 202, 3: 203}}


def test_real_tensorboard_shows_each_step_once(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    head = HEAD | {"folder": str(tmp_path)}
    for attempt, last in ((1, 5), (2, 7)):
        lines = [json.dumps({"step": step, "time": 1e9 + step, "values": {"loss": attempt}}) for step in range(last)]
        follow(iter([*lines, None]), head, ["tensorboard"])["tensorboard"].close(attempt == 2)
        time.sleep(1.1)  # the names of event files have seconds
    events = accumulator.EventAccumulator(str(tmp_path)).Reload().Scalars("loss")
    assert [(event.step, event.value, event.wall_time) for event in events] == [(n, 2.0, 1e9 + n) for n in range(7)]


class Broken:
    """A tracker that fails in one of its calls."""

    def __init__(self, call: str):
        self._call, self.rows = call, list[Row]()

    def __call__(self, head: Mapping[str, Any], first: int) -> "Broken":
        self._may_fail("open")
        return self

    def _may_fail(self, call: str) -> None:
        if call == self._call:
            raise OSError(28, "No space left on device")

    def log(self, row: Row) -> None:
        self._may_fail("log")
        self.rows.append(row)

    def flush(self) -> None:
        self._may_fail("flush")

    def close(self, finished: bool) -> None: ...


@pytest.mark.parametrize("call", ["open", "log", "flush"])
def test_a_full_disk_in_any_call_switches_that_tracker_off(
    call: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = Broken("")
    monkeypatch.setattr(trackers, "TRACKERS", {"broken": (Broken(call), "x"), "sound": (sound, "x")})
    lines = [json.dumps({"step": step, "time": 0.0, "values": {}}) for step in range(3)]
    working = follow(iter([lines[0], None, *lines[1:], None]), HEAD, ["broken", "sound"])
    assert [*working] == ["sound"]
    assert [row.step for row in sound.rows] == [0, 1, 2]
    assert capsys.readouterr().err == (
        "leverlab: warning: sft@0: broken is switched off, the training goes on "
        "(OSError: [Errno 28] No space left on device)\n"
    )


@pytest.mark.parametrize("real", [False, True])
def test_dvc_plots_show_during_a_run(place: Place, real: bool) -> None:
    """`dvc plots show` draws the curves of a stage that `dvc repro` runs, before the stage ends."""
    if real:
        pytest.importorskip("dvclive")
    environment = place.environment("dvclive", *(() if real else (PACKAGES,)))
    dvc = [sys.executable, "-m", "dvc"]
    (place.root / "dvc.yaml").write_text(f"stages:\n  job:\n    cmd: {sys.executable} job.py 0 200 -1 grpo 0.3\n")
    subprocess.run([*dvc, "init", "--no-scm", "-q"], cwd=place.root, env=environment, check=True)
    repro = subprocess.Popen([*dvc, "repro", "-q"], cwd=place.root, env=environment, start_new_session=True)
    try:
        folder = place.root / "live/grpo/0-grpo/plots/metrics"
        wait_for(lambda: (folder / "loss.tsv").exists() and len(place.curve("loss")) > 3)
        shown = [*dvc, "plots", "show", "-x", "step", "live/grpo/0-grpo/plots/metrics", "--json"]
        found = subprocess.run(shown, cwd=place.root, env=environment, capture_output=True, text=True, check=True)
        assert repro.poll() is None
    finally:
        os.killpg(repro.pid, 9)
        repro.wait()
    data = json.loads(found.stdout)["data"]
    assert sorted(Path(path).name for path in data) == ["epoch.tsv", "loss.tsv", "val_accuracy.tsv"]
    values = data["live/grpo/0-grpo/plots/metrics/loss.tsv"][0]["content"]["data"]["values"]
    assert [(int(row["step"]), float(row["loss"])) for row in values[:4]] == [
        (0, 1.0),
        (2, 1 / 2),
        (4, 1 / 3),
        (6, 1 / 4),
    ]


def test_the_record_is_what_the_trackers_get(place: Place) -> None:
    assert place.run("dvclive", 0, 3)[0] == 0
    record = read_record(place.root / ".leverlab/state/grpo@0/abcdef01/live/grpo.jsonl")
    assert record is not None
    assert [(row.step, row.values["loss"]) for row in record.rows] == place.curve("loss")


def wait_for(is_there: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not is_there():
        assert time.monotonic() < end
        time.sleep(0.1)
