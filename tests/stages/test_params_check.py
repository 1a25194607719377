"""The first stage that runs checks every section of the params file, those of later stages too."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

REPOSITORY = Path(__file__).parents[2]
CHECK = Path("src/leverlab/pipeline/check_params.py")
MODULE = """\
from leverlab.config.vlm import EvalParams
from leverlab.stage import run_stage


def body(stage):
    stage.out("out.txt").write_text(str(stage.section("eval", EvalParams).shots))


if __name__ == "__main__":
    run_stage("job", body, home={home!r})
"""


class Place:
    """A small repository whose one stage declares the section `eval` of a real params file."""

    def __init__(self, root: Path, home: str):
        self.root, self.params = root, root / home / "params.yaml"
        (root / home).mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / home / "params.yaml", self.params)
        name = self.params.relative_to(root).as_posix()
        pipeline = {"stages": {"job": {"cmd": "python -m job", "params": [{name: ["eval"]}], "outs": ["out.txt"]}}}
        YAML().dump(pipeline, root / home / "dvc.yaml")
        self.edit("eval", {"shots": 4})
        (root / "job.py").write_text(MODULE.format(home=home))
        (root / CHECK).parent.mkdir(parents=True)
        shutil.copy(REPOSITORY / CHECK, root / CHECK)

    def edit(self, key: str, value: Any) -> None:
        yaml = YAML()
        data = yaml.load(self.params)
        *folders, leaf = key.split(".")
        section = data
        for folder in folders:
            section = section[folder]
        section[leaf] = value
        yaml.dump(data, self.params)

    def run(self, *command: str) -> tuple[int, str]:
        environment = os.environ | {
            "PYTHONPATH": f"{self.root}:{REPOSITORY / 'src'}",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(self.root / "site"),
        }
        command = command or (sys.executable, "-m", "job")
        done = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("report.gates.grpo_kl.metric", "chosen.grpo.kll", "'chosen.grpo.kll', which no stage measures"),
        ("benchmark.runs", 0, "'benchmark.runs' = 0 is not allowed"),
        ("reward.shot_weights", [0, 0, 0, 0], "'reward.shot_weights' = "),
        ("reward.weights", None, "'reward.weights' = None is not allowed"),
        ("seeds", [4294967296], "'seeds' = [4294967296] must be"),
        ("gguf.kindz", ["f16"], "unknown key 'gguf.kindz'"),
    ],
)
def test_a_bad_value_of_any_section_stops_the_stage_that_declares_another(
    tmp_path: Path, key: str, value: Any, message: str
) -> None:
    place = Place(tmp_path, ".")
    place.edit(key, value)
    code, said = place.run()
    assert code == 1
    assert said.startswith("leverlab: stage job: params.yaml: ")
    assert message in said
    assert not (tmp_path / "out.txt").exists()


def test_a_plain_dvc_repro_is_stopped_too(tmp_path: Path) -> None:
    place = Place(tmp_path, ".")
    dvc = [sys.executable, "-m", "dvc"]
    assert place.run(*dvc, "init", "--no-scm", "-q")[0] == 0
    place.edit("report.gates.grpo_kl.at_most", "high")
    code, said = place.run(*dvc, "repro")
    assert code != 0
    assert "'report.gates.grpo_kl.at_most' = 'high' is not allowed" in said
    place.edit("report.gates.grpo_kl.at_most", 4.0)
    assert place.run(*dvc, "repro")[0] == 0
    assert (tmp_path / "out.txt").read_text() == "4"


def test_sound_params_pass_and_the_stage_runs(tmp_path: Path) -> None:
    place = Place(tmp_path, ".")
    assert place.run() == (0, "")
    assert (tmp_path / "out.txt").read_text() == "4"


def test_the_params_of_a_recipe_are_checked_by_its_own_rules(tmp_path: Path) -> None:
    place = Place(tmp_path, "recipes/clarify")
    code, said = place.run()
    assert (code, said.splitlines()) == (
        1,
        ["leverlab: stage job: recipes/clarify/params.yaml: unknown section 'eval'"],
    )


def test_where_only_declared_sections_are_nothing_more_is_checked(tmp_path: Path) -> None:
    """`leverlab verify` lays out such a place: neither the check nor the other sections are there."""
    place = Place(tmp_path, ".")
    (tmp_path / CHECK).unlink()
    place.params.write_text("eval:\n  shots: 4\n")
    assert place.run() == (0, "")


def test_a_tracker_that_is_unknown_or_missing_stops_the_first_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(tmp_path, ".")
    monkeypatch.setenv("LEVERLAB_REPORT_TO", "tensorbord")
    said = (
        "leverlab: stage job: LEVERLAB_REPORT_TO = 'tensorbord': there is no tracker 'tensorbord'; "
        "did you mean 'tensorboard'? docs/live.md shows all\n"
    )
    assert place.run() == (1, said)
    assert not (tmp_path / "out.txt").exists()
    monkeypatch.setenv("LEVERLAB_REPORT_TO", "none")
    assert place.run() == (0, "")
