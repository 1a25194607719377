"""Copies of this repository in which real stages run."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


class Clone:
    """A copy of the repository as it stands, edits and new files included, with caches and a home of its own."""

    def __init__(self, root: Path, workers: int):
        self.root = root
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=REPOSITORY,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for name in filter(None, listed.split("\0")):
            if (REPOSITORY / name).is_file():  # a file that was deleted and not yet committed is listed, too
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(REPOSITORY / name, root / name)
        self.environment = {
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "PYTHONPATH": str(root / "src"),
            "HOME": str(root.parent),
            "OMP_NUM_THREADS": "1",
            "LEVERLAB_WORKERS": str(workers),
            "HF_HUB_OFFLINE": "1",
            "DVC_NO_ANALYTICS": "1",
            "DVC_GLOBAL_CONFIG_DIR": str(root.parent / "config"),
            "DVC_SITE_CACHE_DIR": str(root.parent / "site"),
            "GIT_CONFIG_GLOBAL": os.devnull,
            **{f"GIT_{role}_{key}": "leverlab@x.org" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")},
        }

    def start(self, *command: str) -> "subprocess.Popen[str]":
        """Start `command` in the copy; what it prints, errors included, is its stdout."""
        return subprocess.Popen(
            command,
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *command: str) -> str:
        """Run `command` in the copy and return what it printed; its failure is the test's."""
        process = self.start(*command)
        output, _ = process.communicate()
        if process.returncode != 0:
            pytest.fail(f"{' '.join(command)} ended with {process.returncode}:\n{output}")
        return output

    def commit(self, message: str) -> None:
        """Commit everything that git does not ignore, the outs kept in git included."""
        if not (self.root / ".git").exists():
            self.run("git", "init", "-q")
        self.run("git", "add", "-A")
        self.run("git", "commit", "-q", "-m", message)


@pytest.fixture(scope="session")
def make_clone(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Clone]:
    """A function that makes one more copy of the repository."""

    def make(workers: int = 2) -> Clone:
        return Clone(tmp_path_factory.mktemp("copy") / "leverlab", workers)

    return make
