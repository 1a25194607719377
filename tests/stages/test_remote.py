"""A remote that is a folder: what was computed in one clone is pulled into a fresh one, and nothing runs there."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from leverlab.files import digest
from tests.stages.clones import Clone, Cold, stages_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pulled(finished: Cold, make_clone: Callable[..., Clone], tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A fresh clone of a finished run, after `dvc pull` from the folder that the run was pushed to."""
    store = tmp_path_factory.mktemp("remote") / "a folder"
    source = Clone(tmp_path_factory.mktemp("copy") / "leverlab", 1, finished.clone)
    source.run("dvc", "remote", "add", "--default", "store", str(store))
    source.commit("run")
    source.run("dvc", "push")
    clone = make_clone(workers=1)
    for path in clone.root.iterdir():  # what git has, and nothing else
        clone.run("rm", "-rf", path.name)
    clone.run("git", "clone", "-q", str(source.root), ".")
    assert not (clone.root / "data/prepared").exists()
    clone.run("dvc", "pull")
    return clone


def test_nothing_runs_again(pulled: Clone) -> None:
    assert stages_run(pulled.run("dvc", "repro")) == []


def test_the_bytes_are_those_that_were_pushed(pulled: Clone, finished: Cold) -> None:
    for name in ("data/prepared", "data/answers.parquet", "models/selector", "models/gguf", "models/bundle"):
        assert digest(pulled.root / name) == digest(finished.root / name), name


def test_commands_work_on_what_was_pulled(pulled: Clone, tmp_path: Path) -> None:
    image = "examples/questions/1.png"
    chosen = json.loads(pulled.run("leverlab", "select", "--image", image, "--question", "Which texture?", "--json"))
    assert len(chosen["picks"]) > 0
    out = tmp_path / "answers.csv"
    pulled.run("leverlab", "predict", "examples/questions.csv", "-o", str(out))
    assert len(out.read_text(encoding="utf-8").splitlines()) == 1 + 4
    assert json.loads(pulled.run("leverlab", "compare", "workspace", "HEAD", "--json"))
    assert "data/prepared" in pulled.run("leverlab", "lineage", "reports/report.html")
    assert "Ranked by validation accuracy" in pulled.run("leverlab", "plan", "ledger", "HEAD", "workspace")
