"""A small repository with stages that run as processes of their own.

A stage waits where a test wants to act on it: `pause()` writes the file `at` and goes on when the file `go` is there.
"""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

REPOSITORY = Path(__file__).parents[2]
PATIENCE = 120  # seconds until something that does not happen is an error; machines may be busy

PIPELINE = """\
stages:
  job:
    cmd: python -m job
    deps:
      - data/in.txt
      - data/folder
      - job.py
    params:
      - job
      - other.yaml:
          - more
    outs:
      - out/one.txt
      - out/many
    metrics:
      - out/metrics.json:
          cache: false
  many:
    matrix:
      seed: ${seeds}
    cmd: python -m job ${item.seed}
    deps:
      - data/in.txt
    outs:
      - out/${item.seed}
"""

MODULE = """\
import os, sys, time
from pathlib import Path
from leverlab.config.base import Section
from leverlab.errors import LeverlabError
from leverlab.stage import Stage, run_stage, workspace_store


class JobParams(Section):
    steps: int
    lr: float


class MoreParams(Section):
    depth: int


def pause():
    Path("at").write_text("")
    while not Path("go").exists():
        time.sleep(0.02)


def write_all(stage, text="new"):
    stage.out("out/one.txt").write_text(text)
    stage.out("out/many").mkdir()
    (stage.out("out/many") / "a.txt").write_text(text)
    stage.out("out/many/b.txt").write_text(text)
    stage.out("out/metrics.json").write_text("{}")


def body(stage):
BODY

if __name__ == "__main__":
    if len(sys.argv) > 1:
        run_stage("many", lambda stage: stage.out(f"out/{sys.argv[1]}").write_text(sys.argv[1]), {"seed": sys.argv[1]})
    elif "HOME_OF_STAGE" in os.environ:
        run_stage("job", body, home=os.environ["HOME_OF_STAGE"])
    else:
        run_stage("job", body)
"""


class Workplace:
    """A git repository with the stages `job` and `many`."""

    def __init__(self, root: Path):
        self.root = root
        self.environment = {
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(REPOSITORY / "src"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": str(root.parent),
            "GIT_CONFIG_GLOBAL": os.devnull,
            **{f"GIT_{role}_{key}": "leverlab@x.org" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")},
        }
        self.write("dvc.yaml", PIPELINE)
        self.write("params.yaml", "seeds: [0, 1]\njob:\n  steps: 3\n  lr: 5e-05\nunrelated: 1\n")
        self.write("other.yaml", "more:\n  depth: 2\nhidden:\n  x: 1\n")
        self.write("data/in.txt", "input")
        self.write("data/in.txt.secret", "not declared")
        self.write("data/folder/a.txt", "a")
        self.write("data/folder/b/c.txt", "c")
        self.write(".gitignore", ".leverlab/\nout/\nat\ngo\nprovenance\n")
        self.body("write_all(stage)")
        subprocess.run(["git", "init", "-q"], cwd=root, check=True)
        self.commit()

    def write(self, name: str, text: str) -> None:
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_text(text)

    def read(self, name: str) -> str:
        return (self.root / name).read_text()

    def body(self, code: str) -> None:
        """Give the stage `job` the body `code`."""
        self.write("job.py", MODULE.replace("BODY", indent(dedent(code), "    ")))

    def commit(self) -> str:
        for command in (["git", "add", "-A"], ["git", "commit", "-q", "--allow-empty", "-m", "x"]):
            subprocess.run(command, cwd=self.root, env=self.environment, check=True)
        return self.git("rev-parse", "HEAD")

    def git(self, *arguments: str) -> str:
        """Run git; return what it printed."""
        done = subprocess.run(
            ["git", *arguments], cwd=self.root, env=self.environment, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    def start(self, *arguments: str, cwd: Path | None = None, **environment: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "job", *arguments],
            cwd=cwd or self.root,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, cwd: Path | None = None, **environment: str) -> tuple[int, str, str]:
        process = self.start(*arguments, cwd=cwd, **environment)
        out, err = process.communicate(timeout=PATIENCE)
        return process.returncode, out, err

    def succeeds(self, *arguments: str, **options: Any) -> str:
        code, out, err = self.run(*arguments, **options)
        assert (code, err) == (0, "")
        return out

    def fails(self, *arguments: str, **options: Any) -> str:
        """Return the one sentence that the stage fails with; no out is in place."""
        code, _, err = self.run(*arguments, **options)
        assert code == 1
        assert err.count("\n") == 1, err
        assert re.match(r"leverlab: stage (job|many): ", err)
        return err

    def start_dvc(self, *arguments: str) -> "subprocess.Popen[str]":
        """Start DVC in the repository, which becomes one of DVC's own; stderr goes to stdout."""
        environment = self.environment | {
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(self.root.parent / "site"),
            "DVC_GLOBAL_CONFIG_DIR": str(self.root.parent / "config"),
        }
        if not (self.root / ".dvc").exists():
            command = [sys.executable, "-m", "dvc", "init", "-q"]
            subprocess.run(command, cwd=self.root, env=environment, check=True)
        return subprocess.Popen(
            [sys.executable, "-m", "dvc", *arguments],
            cwd=self.root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def dvc(self, *arguments: str) -> tuple[int, str]:
        """Run DVC; return its code and what it printed."""
        process = self.start_dvc(*arguments)
        out, _ = process.communicate(timeout=PATIENCE)
        return process.returncode, out

    def states(self) -> list[Path]:
        return [path for path in (self.root / ".leverlab/state/job").glob("*") if path.is_dir()]

    def outs(self) -> dict[str, str]:
        return {
            path.relative_to(self.root / "out").as_posix(): path.read_text()
            for path in sorted((self.root / "out").rglob("*"))
            if path.is_file()
        }

    @contextlib.contextmanager
    def paused(self, **environment: str) -> Iterator["subprocess.Popen[str]"]:
        """Start the stage and wait until it pauses; end it if the test did not."""
        for name in ("at", "go"):
            (self.root / name).unlink(missing_ok=True)
        process = self.start(**environment)
        try:
            wait_for((self.root / "at").exists, process)
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate()

    def go_on(self, process: "subprocess.Popen[str]") -> tuple[int, str]:
        """Let a paused stage end; return its code and what it said on stderr."""
        self.write("go", "")
        _, err = process.communicate(timeout=PATIENCE)
        return process.returncode, err


ALL = {"many/a.txt": "new", "many/b.txt": "new", "metrics.json": "{}", "one.txt": "new"}


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
