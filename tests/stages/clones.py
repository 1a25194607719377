"""Copies of this repository in which real stages run."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from leverlab.pipeline.params import check_params_file
from leverlab.pipeline.plans import load_plan

REPOSITORY = Path(__file__).parents[2]
AUDIT = Path(__file__).with_name("audit")  # watches which files stages read
MEASURED = ("reports/benchmark.json", "reports/report.html", "reports/tables", "reports/figures")  # and what shows it


class Clone:
    """A copy of the repository as it stands, edits and new files included, with caches and a home of its own.

    With `source` it is a copy of another clone, with all that was computed there.
    """

    def __init__(self, root: Path, workers: int, source: "Clone | None" = None):
        self.root = root
        if source:
            shutil.copytree(source.root, root, symlinks=True)
        else:
            self._copy_repository()
        self.environment = self._environment(workers)

    def _copy_repository(self) -> None:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=REPOSITORY,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for name in filter(None, listed.split("\0")):
            if (REPOSITORY / name).is_file():  # a file that was deleted and not yet committed is listed, too
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(REPOSITORY / name, self.root / name)

    def _environment(self, workers: int) -> dict[str, str]:
        root = self.root
        return {
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "PYTHONPATH": f"{root / 'src'}:{AUDIT}",
            "HOME": str(root.parent),
            "OMP_NUM_THREADS": "1",
            "LEVERLAB_WORKERS": str(workers),
            "HF_HUB_OFFLINE": "1",
            "DVC_NO_ANALYTICS": "1",
            "DVC_GLOBAL_CONFIG_DIR": str(root.parent / "config"),
            "DVC_SITE_CACHE_DIR": str(root.parent / "site"),
            "GIT_CONFIG_GLOBAL": os.devnull,
            "AUDIT_ROOT": str(root),
            "AUDIT_LOG": str(root.parent / "reads"),
            **{f"GIT_{role}_{key}": "leverlab@x.org" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")},
        }

    def start(self, *command: str) -> "subprocess.Popen[str]":
        """Start `command` in the copy, in a process group of its own; its stdout is what it prints, errors included."""
        return subprocess.Popen(
            command,
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *command: str) -> str:
        """Run `command` in the copy and return what it printed; its failure is the test's."""
        process = self.start(*command)
        output, _ = process.communicate()
        if process.returncode != 0:
            pytest.fail(f"{' '.join(command)} ended with {process.returncode}:\n{output}")
        return output

    def set_params(self, overrides: Mapping[str, Any]) -> None:
        """Give dotted keys of params.yaml new values."""
        self.edit_params("params.yaml", overrides)
        check_params_file(self.root / "params.yaml")

    def edit_params(self, file: str, overrides: Mapping[str, Any]) -> None:
        """Give dotted keys of a params file new values."""
        yaml, path = YAML(), self.root / file
        params = yaml.load(path)
        for dotted, value in overrides.items():
            *folders, leaf = dotted.split(".")
            section = params
            for folder in folders:
                section = section[folder]
            section[leaf] = value
        yaml.dump(params, path)

    def commit(self, message: str) -> None:
        """Commit everything that git does not ignore, the outs kept in git included."""
        if not (self.root / ".git").exists():
            self.run("git", "init", "-q")
        self.run("git", "add", "-A")
        self.run("git", "commit", "-q", "-m", message)


@dataclass(frozen=True)
class Cold:
    """A clone after its first `dvc repro`; its files are those of the last one."""

    clone: Clone
    ran: list[str]
    lock: bytes

    @property
    def root(self) -> Path:
        return self.clone.root


def comparable(lock: bytes) -> Any:
    """Return the stages of a dvc.lock, without what the benchmark measured and what shows it."""
    stages = YAML(typ="safe").load(lock)["stages"]
    for entry in stages.values():
        for part in ("deps", "outs"):
            entry[part] = [item for item in entry.get(part, []) if item["path"] not in MEASURED]
    return stages


def stages_run(output: str) -> list[str]:
    return re.findall(r"^Running stage '([^']+)':", output, flags=re.MULTILINE)


def make_tiny(clone: Clone) -> None:
    """Make of the copy what a first run on the profile `tiny` finds: no pipeline but the main one."""
    (clone.root / "dvc.lock").unlink(missing_ok=True)
    for place in ("worlds", "recipes"):
        for path in (clone.root / place).glob("*/dvc.*"):
            path.unlink()
    for folder in ("reports", "provenance"):
        for path in (clone.root / folder).rglob("*"):
            if path.is_file():
                path.unlink()
    assert (clone.root / "worlds/digits/vlm/config.json").exists(), "build the VLM: dvc repro worlds/digits/dvc.yaml"
    clone.set_params(load_plan(clone.root, "tiny").overrides)
    clone.commit("tiny")
