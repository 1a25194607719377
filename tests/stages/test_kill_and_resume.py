"""SIGKILL at any moment: run again, a stage ends with the bytes of an unbroken run and repeats little of its work.

Stages of the profile `tiny` are killed at random moments of their run, in chains: each run goes on where the last one
was cut off, until one comes to its end. A unit is what a stage keeps: a batch of scores, an epoch, a file.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from leverlab.dvcfile import read_declaration
from leverlab.files import digest
from tests.stages.clones import Clone, Cold, comparable, make_tiny

pytestmark = pytest.mark.slow

KILLS = 20
STAGES = {
    "prepare": ("stages.prepare",),
    "rl-data": ("stages.rl_data",),
    "sft@1": ("stages.sft", "1"),
    "rce@1": ("stages.rce", "1"),
    "grpo@1": ("stages.grpo", "1"),
    "select-best": ("stages.select_best",),
    "infer-800": ("stages.infer_800",),
    "gguf": ("stages.gguf",),
    "gguf-800": ("stages.gguf_800",),
}


class Victim:
    """A stage in a copy of a finished workspace, run by a server that forks."""

    def __init__(self, finished: Cold, folder: Path, stage: str):
        self.root, self._stage = folder / "leverlab", stage
        ignored = shutil.ignore_patterns(".git", ".leverlab", ".dvc", "__pycache__", "provenance")
        shutil.copytree(finished.root, self.root, ignore=ignored)
        name, _, seed = stage.partition("@")
        declaration = read_declaration(self.root / "dvc.yaml", name, {"seed": seed} if seed else {})
        self.outs = declaration.outs
        self.expected = {out: digest(finished.root / out) for out in self.outs}
        self._units, self._log = folder / "units", folder / "log"
        self._units.touch()
        environment = finished.clone.environment | {
            "PYTHONPATH": f"{self.root / 'src'}:{self.root}",
            "LEVERLAB_WORKERS": "1",
        }
        self._server = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("fork_server.py"), self._units, self._log],
            cwd=self.root,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.reset()

    def reset(self) -> None:
        """Forget all work: the next run starts from nothing."""
        shutil.rmtree(self.root / ".leverlab", ignore_errors=True)
        for out in self.outs:
            path = self.root / out
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        self._units.write_text("")

    def run(self, kill_after: float | None = None, at_its_end: bool = False) -> bool:
        """Run the stage, and kill it after so many seconds, or when its work is done; return whether it came to its end
        before: its outs are there, and its state is forgotten."""
        assert self._server.stdin
        assert self._server.stdout
        module, *arguments = STAGES[self._stage]
        print(json.dumps(["+" * at_its_end + module, *arguments]), file=self._server.stdin, flush=True)
        pid = int(self._server.stdout.readline())
        if kill_after is not None:
            time.sleep(kill_after)
            with contextlib.suppress(ProcessLookupError):  # it may have come to its end
                os.kill(pid, signal.SIGKILL)
        status = int(self._server.stdout.readline())
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            kept = [path for path in (self.root / ".leverlab/state").glob("*/*/") if path.suffix != ".forgotten"]
            return not kept and all((self.root / out).exists() for out in self.outs)
        assert status == 0, self._log.read_text()[-3000:]
        return True

    def check(self, kills: int) -> None:
        """Compare the outs with those of the unbroken run, and what was done twice with the number of kills."""
        assert {out: digest(self.root / out) for out in self.outs} == self.expected
        done = Counter(self._units.read_text().splitlines())
        assert sum(count - 1 for count in done.values()) <= kills

    def close(self) -> None:
        self._server.communicate()


@pytest.fixture(params=STAGES)
def victim(request: pytest.FixtureRequest, finished: Cold, tmp_path: Path) -> Iterator[Victim]:
    made = Victim(finished, tmp_path, request.param)
    yield made
    made.close()


def soak(victim: Victim, kills: int, seed: int) -> None:
    victim.run()  # the first run loads code from the disk
    victim.reset()
    start = time.monotonic()
    assert victim.run()
    seconds = time.monotonic() - start
    victim.check(kills=0)
    victim.reset()
    moments = random.Random(seed)
    killed, in_chain = 0, 0
    while killed < kills or in_chain:
        enough = killed >= kills
        if victim.run(None if enough else moments.uniform(0, seconds)):
            victim.check(in_chain)
            victim.reset()
            in_chain = 0
        else:
            killed, in_chain = killed + 1, in_chain + 1


def test_killed_twenty_times(victim: Victim) -> None:
    soak(victim, KILLS, seed=0)


def test_killed_when_its_work_is_done_it_repeats_nothing(victim: Victim) -> None:
    assert not victim.run(at_its_end=True)
    assert victim.run()
    victim.check(kills=0)


def soak_dvc(clone: Clone, kills: int, seed: int) -> None:
    """Run `dvc repro` to its end, killing it with all its processes at random moments before."""
    make_tiny(clone)
    moments = random.Random(seed)
    for _ in range(kills):
        process = clone.start("dvc", "repro")
        try:
            process.communicate(timeout=moments.uniform(2, 10))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        else:
            assert process.returncode == 0
    clone.run("dvc", "repro")


def test_dvc_killed_twenty_times(finished: Cold, make_clone: Callable[..., Clone]) -> None:
    clone = make_clone()
    soak_dvc(clone, KILLS, seed=0)
    assert comparable((clone.root / "dvc.lock").read_bytes()) == comparable(finished.lock)


@pytest.mark.soak
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_killed_two_hundred_times(victim: Victim, seed: int) -> None:
    soak(victim, 200, seed)
