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
def cold(make_clone: Callable[..., Clone]) -> Cold:
    """A cold run with two workers, in whose clone one test follows the other."""
    return run_cold(make_clone(workers=2))


@pytest.fixture(scope="session")
def finished(make_clone: Callable[..., Clone]) -> Cold:
    """A cold run with one worker, whose files no test changes."""
    return run_cold(make_clone(workers=1))


def run_cold(clone: Clone) -> Cold:
    make_tiny(clone)
    output = clone.run("dvc", "repro")
    return Cold(clone, stages_run(output), (clone.root / "dvc.lock").read_bytes())


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    (tmp_path / "repository").mkdir()
    return Workplace(tmp_path / "repository")
