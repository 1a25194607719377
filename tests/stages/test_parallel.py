"""Work on several processes: the same results however many there are, and one sentence when one dies."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from leverlab.errors import LeverlabError
from leverlab.parallel import run_tasks, workers

REPOSITORY = Path(__file__).parents[2]
PATIENCE = 120

# Functions that other processes run must be importable there, so they stand in a module of their own.
MODULE = """\
import os, random, time
from leverlab.errors import LeverlabError

offset = None


def start(value):
    global offset
    assert offset is None, "started twice in one process"
    offset = value


def square(task):
    time.sleep(random.random() / 50)  # a later task may end first
    return task * task + offset


def whoami(task):
    time.sleep(0.2)
    return os.getpid()


def die(task):
    if task == 3:
        os._exit(1)
    return task


def fail(task):
    if task == 3:
        raise LeverlabError("task 3 holds no question")
    return task


def wait(folder):
    with open(os.path.join(folder, str(os.getpid())), "w"):
        pass
    time.sleep(600)
"""


@pytest.fixture
def work(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a script that has `tasks` (the module above) and `run_tasks`, with some number of workers."""
    (tmp_path / "tasks.py").write_text(MODULE)

    def run(script: str, count: int | str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(tmp_path, script),
            cwd=tmp_path,
            env=environment(tmp_path, count),
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )

    return run


def command(folder: Path, script: str) -> list[str]:
    (folder / "main.py").write_text(
        "import tasks\nfrom leverlab.parallel import run_tasks\n\nif __name__ == '__main__':\n    "
        + dedent(script).strip().replace("\n", "\n    ")
        + "\n"
    )
    return [sys.executable, "main.py"]


def environment(folder: Path, count: int | str) -> dict[str, str]:
    return {"PYTHONPATH": f"{REPOSITORY / 'src'}:{folder}", "PATH": "/usr/bin:/bin", "LEVERLAB_WORKERS": str(count)}


@pytest.mark.parametrize("count", [1, 2, 5])
def test_results_come_in_the_order_of_the_tasks(
    work: Callable[..., subprocess.CompletedProcess[str]], count: int
) -> None:
    done = work("print(list(run_tasks(tasks.square, list(range(20)), tasks.start, (7,))))", count)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{[task * task + 7 for task in range(20)]}\n"


def test_one_worker_is_this_process_and_two_are_others(
    work: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    script = """
        import os
        found = set(run_tasks(tasks.whoami, [0] * 8))
        print(len(found), os.getpid() in found)
    """
    assert work(script, 1).stdout == "1 True\n"
    count, inside = work(script, 2).stdout.split()
    assert inside == "False"
    assert 1 <= int(count) <= 2


def test_no_task_needs_no_process() -> None:
    assert list(run_tasks(len, [])) == []


def test_a_worker_that_dies_is_one_sentence(work: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    script = """
        from leverlab.errors import LeverlabError
        try:
            list(run_tasks(tasks.die, list(range(8))))
        except LeverlabError as error:
            print(error)
    """
    done = work(script, 2)
    assert done.stdout.startswith("a worker process died")
    assert "LEVERLAB_WORKERS=1" in done.stdout
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize("count", [1, 2])
def test_an_error_of_a_task_arrives_as_it_is(work: Callable[..., subprocess.CompletedProcess[str]], count: int) -> None:
    script = """
        from leverlab.errors import LeverlabError
        seen = []
        try:
            for result in run_tasks(tasks.fail, list(range(8))):
                seen.append(result)
        except LeverlabError as error:
            print(seen, error)
    """
    assert work(script, count).stdout == "[0, 1, 2] task 3 holds no question\n"


def test_workers_end_soon_after_a_parent_that_is_killed(tmp_path: Path) -> None:
    """Otherwise they would compute on beside the run that follows."""
    (tmp_path / "tasks.py").write_text(MODULE)
    pids = tmp_path / "pids"
    pids.mkdir()
    process = subprocess.Popen(
        command(tmp_path, f"list(run_tasks(tasks.wait, [{str(pids)!r}] * 2))"),
        cwd=tmp_path,
        env=environment(tmp_path, 2),
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: len(os.listdir(pids)) == 2)
    finally:
        process.kill()
        process.wait()
    wait_for(lambda: not any(is_running(int(pid)) for pid in os.listdir(pids)))


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    "asked",
    [
        "",
        "0",
        "-1",
        "two",
        "1.5",
        " ",
        pytest.param("²"),
    ],
)
def test_a_number_of_workers_that_is_none(monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    monkeypatch.setenv("LEVERLAB_WORKERS", asked)
    with pytest.raises(LeverlabError, match=r"LEVERLAB_WORKERS = '.*' must be a whole number from 1 on"):
        workers()


def test_the_number_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEVERLAB_WORKERS", "3")
    assert workers() == 3
    monkeypatch.delenv("LEVERLAB_WORKERS")
    assert workers() == len(os.sched_getaffinity(0))
