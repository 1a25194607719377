"""What DVC prints of experiments, with the pipelines of this repository, fits a terminal of 120 columns."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from leverlab.pipeline.readme import COLUMNS, EXPERIMENTS, METRICS, printed

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[2]
PIPELINES = (".", "recipes/clarify", "worlds/clarify", "worlds/digits")
DIFF = "dvc metrics diff advantage-rank plan-6"
# By experiment: the keys of the section grpo that it changes, and its metrics.
RUNS = {"main": ({}, 0.89), "advantage-rank": ({"advantage": "rank"}, 0.8875), "plan-6": ({"lr": 5e-05}, 0.9025)}


def headline(folder: str, value: float) -> Mapping[str, float]:
    params = yaml.safe_load((REPOSITORY / folder / "params.yaml").read_text(encoding="utf-8"))
    return dict.fromkeys(params["report"]["headline"], value) | {"red": round(10 * value)}


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, quiet_dvc: None) -> dict[str, str]:
    """What each command prints in a repository with the pipelines' own files and two experiments.

    An experiment of DVC is a commit on its base, under the ref refs/exps/<base>/<name>.
    """
    root = tmp_path_factory.mktemp("clone")

    def git(*words: str) -> str:
        person = {f"GIT_{role}_{key}": "a@x.org" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
        environment = os.environ | person | {"GIT_CONFIG_GLOBAL": "/dev/null"}
        done = subprocess.run(["git", *words], cwd=root, env=environment, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    for folder in PIPELINES:
        (root / folder / "reports").mkdir(parents=True, exist_ok=True)
        for name in ("dvc.yaml", "dvc.lock", "params.yaml"):
            shutil.copy(REPOSITORY / folder / name, root / folder)
    (root / ".dvc").mkdir()
    for name in ("config", ".gitignore"):
        shutil.copy(REPOSITORY / ".dvc" / name, root / ".dvc")
    (root / "recipes/clarify/reports/headline.json").write_text(json.dumps(headline("recipes/clarify", 0.5)))
    git("init", "-q")
    params, lock = ((root / name).read_text(encoding="utf-8") for name in ("params.yaml", "dvc.lock"))
    for number, (name, (changes, value)) in enumerate(RUNS.items()):
        edited = yaml.safe_load(params)
        edited["grpo"] |= changes
        (root / "params.yaml").write_text(yaml.safe_dump(edited), encoding="utf-8")
        # Another run has other files: every digest of a dependency differs.
        (root / "dvc.lock").write_text(re.sub(r"(md5: )\w", rf"\g<1>{number}", lock), encoding="utf-8")
        (root / "reports/headline.json").write_text(json.dumps(headline(".", value)), encoding="utf-8")
        git("add", "-A", "-f")
        git("commit", "-qm", name)
        if name == "main":
            base = git("rev-parse", "HEAD")
        else:
            git("update-ref", f"refs/exps/{base[:2]}/{base[2:]}/{name}", "HEAD")
            git("reset", "-q", "--hard", base)
    return {command: printed([command], root) for command in (EXPERIMENTS, DIFF, METRICS)}


def test_it_fits(shown: dict[str, str]) -> None:
    """No line is longer, and no cell is shortened to an ellipsis."""
    for text in shown.values():
        assert max(map(len, text.splitlines())) <= COLUMNS
        assert "…" not in text


def test_experiments_show_what_differs(shown: dict[str, str]) -> None:
    lines = shown[EXPERIMENTS].splitlines()
    header = next(line for line in lines if line.lstrip().startswith("Experiment")).split()
    assert header == ["Experiment", "acc_4", "kl", "params.yaml:grpo.advantage", "params.yaml:grpo.lr"]
    rows = {
        name: next(line for line in lines if f"[{name}]" in line).split()[-4:] for name in ("advantage-rank", "plan-6")
    }
    assert rows == {
        "advantage-rank": ["0.8875", "0.8875", "rank", "0.001"],
        "plan-6": ["0.9025", "0.9025", "zscore", "5e-05"],
    }


def test_the_difference_has_a_row_for_every_metric(shown: dict[str, str]) -> None:
    rows = [line.split() for line in shown[DIFF].splitlines() if line.startswith("reports/headline.json")]
    assert {row[1] for row in rows} == {*headline(".", 0)} - {"red"}  # as many gates failed
    assert [row[2:] for row in rows if row[1] == "acc_4"] == [["0.8875", "0.9025", "0.015"]]


def test_the_metrics_of_the_recipe_have_other_names() -> None:
    """DVC puts the path of the file before the name of a metric that two files have."""
    assert {*headline(".", 0)} & {*headline("recipes/clarify", 0)} == {"red"}


def test_the_readme_names_these_commands() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert f"\n{EXPERIMENTS} " in readme
    assert f"\n{DIFF}\n" in readme
