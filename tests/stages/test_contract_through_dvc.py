"""The contract of stages through DVC: what `dvc repro` and `dvc exp run --temp` record, and what they do not."""

import re

import pytest

from leverlab.config.base import read_yaml
from tests.stages.workplace import ALL, PIPELINE, Workplace, wait_for

EDIT = 'Path("data/in.txt").write_text("edited")\nwrite_all(stage)'
PLAIN = """
from pathlib import Path
text = Path("data/in.txt").read_text()
Path("data/in.txt").write_text("edited")
Path("out").mkdir(exist_ok=True)
Path("out/one.txt").write_text(text)
"""


@pytest.fixture
def job(place: Workplace) -> Workplace:
    """The repository with the stage `job` alone."""
    place.write("dvc.yaml", PIPELINE.split("  many:")[0])
    return place


def test_a_failed_stage_fails_dvc(job: Workplace) -> None:
    """The sentence is shown, nothing is recorded; mended, the same command succeeds."""
    job.body('raise LeverlabError("the data cannot teach")')
    code, out = job.dvc("repro")
    assert code != 0
    assert "leverlab: stage job: the data cannot teach" in out
    assert not (job.root / "dvc.lock").exists()
    job.body("assert os.environ['DVC_ROOT'] == os.getcwd()\nwrite_all(stage)")
    assert job.dvc("repro")[0] == 0
    assert job.outs() == ALL
    assert "Stage 'job' didn't change, skipping" in job.dvc("repro")[1]


def test_an_input_that_is_edited_meanwhile_is_not_recorded(job: Workplace) -> None:
    job.body(EDIT)
    code, out = job.dvc("repro")
    assert code != 0
    assert "leverlab: stage job: 'data/in.txt' changed while the stage ran" in out
    assert not (job.root / "dvc.lock").exists()
    assert job.outs() == {}


def test_plain_dvc_records_the_edited_input(place: Workplace) -> None:
    """What the contract guards against (iterative/dvc#11058): the lock pairs the out of one input with another."""
    place.write("plain.py", PLAIN)
    place.write("dvc.yaml", "stages: {plain: {cmd: python plain.py, deps: [data/in.txt], outs: [out/one.txt]}}")
    assert place.dvc("repro")[0] == 0
    assert place.read("out/one.txt") == "input"
    (dep,) = read_yaml(place.root / "dvc.lock")["stages"]["plain"]["deps"]
    assert dep["size"] == len("edited")
    assert "didn't change" in place.dvc("repro")[1]


def test_an_edit_in_a_temporary_copy_is_not_recorded(job: Workplace) -> None:
    """In `dvc exp run --temp` a stage runs in a copy; its input there is edited, the workspace's is not."""
    job.dvc("status")
    job.commit()
    job.body(EDIT)
    code, out = job.dvc("exp", "run", "--temp")
    assert code != 0
    assert "'data/in.txt' changed while the stage ran" in out
    assert job.read("data/in.txt") == "input"
    assert job.dvc("exp", "list", "--name-only")[1].split() == []
    job.body("write_all(stage)")
    code, out = job.dvc("exp", "run", "--temp", "-n", "sound")
    assert code == 0, out
    assert job.dvc("exp", "list", "--name-only")[1].split() == ["sound"]


def test_the_orphan_of_a_killed_dvc_keeps_its_place(job: Workplace) -> None:
    """SIGKILL ends dvc and not its stage; the next one is told so, and runs when the orphan has ended."""
    job.body("pause()\nwrite_all(stage)")
    process = job.start_dvc("repro")
    wait_for((job.root / "at").exists, process)
    process.kill()
    process.wait()
    assert process.stdout
    process.stdout.close()  # the orphan has its other end
    code, out = job.dvc("repro")
    assert code != 0
    assert re.search(r"'job' is already running in another process, perhaps left over by a killed dvc", out)
    assert job.outs() == {}
    job.write("go", "")
    code, out = job.dvc("repro")
    while "already running" in out:
        code, out = job.dvc("repro")
    assert code == 0, out
    assert job.outs() == ALL
