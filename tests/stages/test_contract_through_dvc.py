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


def test_a_killed_experiment_leaves_head_detached_and_the_next_run_says_so(job: Workplace) -> None:
    """DVC is killed in the workspace, where it had detached HEAD; the run after it names the branch.

    The next experiment says so too, under the same name, but not its copy with --temp; back on the branch, none does.
    """
    job.dvc("status")
    job.body("raise LeverlabError('not yet')")
    job.commit()
    assert job.dvc("exp", "run", "-n", "failed")[0] != 0
    assert "detached" not in job.dvc("exp", "run", "-n", "again")[1]
    job.body("pause()\nwrite_all(stage)")
    job.commit()
    process = job.start_dvc("exp", "run", "-n", "mine", "-S", "job.lr=0.5")
    wait_for((job.root / "at").exists, process)
    process.kill()
    process.wait()
    assert process.stdout
    process.stdout.close()
    job.write("go", "")
    job.body("write_all(stage)")
    remark = "HEAD is detached, because `dvc exp run` of mine was killed: commits would be on no branch. Return with "
    code, out = job.dvc("repro")
    while "already running" in out:
        code, out = job.dvc("repro")
    assert (code, f"job: {remark}`git switch {branch(job)}`" in out) == (0, True), out
    code, out = job.dvc("exp", "run", "-n", "mine", "-S", "job.lr=0.25")
    assert (code, remark in out) == (0, True), out
    code, out = job.dvc("exp", "run", "--temp", "-n", "copy", "-S", "job.lr=0.75")
    assert (code, "detached" in out) == (0, False), out
    job.git("switch", "-q", branch(job))
    code, out = job.dvc("exp", "run", "-n", "other", "-S", "job.lr=0.125")
    assert (code, "detached" in out) == (0, False), out
    job.git("checkout", "-q", "--detach", "HEAD")  # on purpose
    code, out = job.dvc("repro", "-f")
    assert (code, "detached" in out) == (0, False), out


def branch(job: Workplace) -> str:
    return job.git("for-each-ref", "--format=%(refname:short)", "refs/heads")


def test_a_failed_experiment_leaves_its_params_and_the_error_says_how_to_restore_them(job: Workplace) -> None:
    job.dvc("status")
    job.commit()
    job.body('stage.section("job", JobParams)\nwrite_all(stage)')
    job.commit()
    bad = "leverlab: stage job: params.yaml: 'job.lr' = 'steep' is not allowed"
    code, out = job.dvc("exp", "run", "-S", "job.lr=steep")
    assert (code != 0, bad in out) == (True, True), out
    code, out = job.dvc("repro")
    assert (code != 0, bad in out) == (True, True), out
    assert "params.yaml differs from HEAD: edited, or left by the run before" in out
    (restore,) = re.findall(r"`(git restore .*?)`", out)
    job.git("add", "params.yaml")  # as a kill may leave it
    job.git(*restore.split()[1:])
    assert job.dvc("repro")[0] == 0
    job.write("params.yaml", job.read("params.yaml").replace("5e-05", "steep"))
    job.commit()
    assert "differs from HEAD" not in job.dvc("repro")[1]


def test_params_of_another_file_are_not_blamed(job: Workplace) -> None:
    job.write("other.yaml", "more:\n  depth: deep\n")
    job.body('stage.section("more", MoreParams)')
    job.commit()
    job.write("params.yaml", job.read("params.yaml").replace("unrelated: 1", "unrelated: 2"))
    err = job.fails()
    assert "other.yaml: 'more.depth'" in err
    assert "differs from HEAD" not in err
    job.write("other.yaml", "more:\n  depth: low\n")
    assert "; other.yaml differs from HEAD" in job.fails()
