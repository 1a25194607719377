"""Small repositories for the contract of stages, and the profile `tiny` run from nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.stages.clones import Clone, Cold, make_tiny, stages_run
from tests.stages.workplace import Workplace


@pytest.fixture(scope="session")
def make_clone(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Clone]:
    """A function that makes one more copy of the repository."""

    def make(workers: int = 2) -> Clone:
        return Clone(tmp_path_factory.mktemp("copy") / "leverlab", workers)

    return make


@pytest.fixture(scope="session")
def both(make_clone: Callable[..., Clone]) -> tuple[Cold, Cold]:
    """Two cold runs in two places, one with two workers and one with one, side by side."""
    clones = [make_clone(workers=2), make_clone(workers=1)]
    for clone in clones:
        make_tiny(clone)
    processes = [clone.start("dvc", "repro") for clone in clones]
    outputs = [process.communicate()[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        if process.returncode != 0:
            pytest.fail(f"dvc repro ended with {process.returncode}:\n{output}")
    first, second = (
        Cold(clone, stages_run(output), (clone.root / "dvc.lock").read_bytes())
        for clone, output in zip(clones, outputs, strict=True)
    )
    return first, second


@pytest.fixture(scope="session")
def cold(both: tuple[Cold, Cold]) -> Cold:
    return both[0]


@pytest.fixture(scope="session")
def finished(both: tuple[Cold, Cold]) -> Clone:
    """A workspace after a cold run, which no test changes."""
    return both[1].clone


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    (tmp_path / "repository").mkdir()
    return Workplace(tmp_path / "repository")
