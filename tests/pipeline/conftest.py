"""The command line as tests call it, in this process, and a repository to call it in."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from leverlab import cli

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def root(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet_dvc: None) -> Path:
    """A copy of the repository that the module's `built` made, as the working directory."""
    shutil.copytree(built, tmp_path / "work", symlinks=True)
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """A function that runs `leverlab` with the given arguments and returns its exit code, stdout and stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["leverlab", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capfd.readouterr()
        return int(stopped.value.code or 0), captured.out, captured.err

    return call
