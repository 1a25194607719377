"""What `leverlab blast` says of a key is what a change of it re-runs, for a key of every section of every params.yaml.

The real stages on the profile `tiny`, with one seed, in processes that are forked instead of started. Two lanes run
side by side, each in a clone of its own where one change follows the other; every change keeps those before it.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from leverlab.config.base import read_params
from leverlab.files import digest
from leverlab.pipeline.params import SECTIONS
from tests.stages.clones import REPOSITORY, Clone, Cold, stages_run

pytestmark = pytest.mark.slow

LANES: tuple[dict[str, dict[str, Any]], ...] = (
    {
        "report": {"report.gates.grpo_over_sft.at_least": -0.9},
        "infer": {"infer.random_seeds": 3},
        "grpo": {"grpo.lr": 5e-5},
        "sft": {"sft.lr": 2e-3},
        "reward": {"reward.weights.answer_prob": 0.3},
        "prepare": {"prepare.seed": 1},
        "data": {"data.seed": 1},
    },
    {
        "benchmark": {"benchmark.questions": 3},
        "runtime": {"runtime.context": 2048},
        "gguf": {"gguf.kinds": ["f16"], "report.gates.q8_0_parity": None, "report.gates.q8_0_kl": None},
        "select_best": {"select_best.strategy": "last"},
        "rce": {"rce.lr": 1e-4},
        "selector": {"selector.dropout": 0.3},
        "rl_data": {"rl_data.seed": 1},
        "eval": {
            "eval.shots": 3,
            "reward.shot_weights": [1.0, 1.0, 1.0],
            "report.gates.grpo_over_control.metric": "comparisons.sft_control.shots_3.ci_low",
        },
        "vlm": {"vlm.dtype": "bfloat16"},
    },
)
VLM = "worlds/digits"  # the folder of the VLM's own pipeline
UNTRAINED = {  # the VLM after so few steps answers nothing right
    f"{VLM}/params.yaml": {"digits_vlm.steps": 2, "digits_vlm.test_episodes": 4, "digits_vlm.min_matching": 0.0},
    "params.yaml": {"rl_data.health.max_flat_groups": 1.0, "rl_data.health.max_answer_prob_tiny": 1.0},
}


@dataclass(frozen=True)
class Change:
    """What was said of a change, what ran, and of what did not run: whether its inputs are those of its last run."""

    said: set[str]
    direct: set[str]
    ran: set[str]
    unchanged: set[str]


def make(clone: Clone, files: dict[str, dict[str, Any]]) -> Change:
    keys = [f"{file}:{key}" for file, overrides in files.items() for key in overrides]
    rows = [row for key in keys for row in json.loads(clone.run("leverlab", "blast", key, "--json"))]
    rows = [row for row in rows if "<new>" not in row["stage"]]  # items of a seed that is added; none is
    said = {row["stage"] for row in rows}
    for file, overrides in files.items():
        clone.edit_params(file, overrides)
    ran = set(stages_run(clone.run("dvc", "repro")))
    direct = {row["stage"] for row in rows if len(row["why"]) == 2}
    return Change(said, direct, ran, {stage for stage in said - ran if inputs_are_those_of_its_run(clone.root, stage)})


def inputs_are_those_of_its_run(root: Path, stage: str) -> bool:
    folder, _, name = stage.rpartition("dvc.yaml:")
    inputs = json.loads((root / folder / "provenance" / f"{name}.json").read_text())["inputs"]
    return bool(inputs == {path: digest(root / path) for path in inputs})


@pytest.fixture(scope="session")
def warm_python(finished: Cold, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment variables with which `python -m stages.…` runs in a child of `warm_server.py`."""
    path = tmp_path_factory.mktemp("warm") / "socket"
    environment = finished.clone.environment
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.stages.warm_server", path],
        cwd=REPOSITORY,
        env=environment | {"PYTHONPATH": str(REPOSITORY / "src")},
    )
    while not path.exists():
        assert server.poll() is None
        time.sleep(0.1)
    yield {"PATH": f"{Path(__file__).with_name('warm')}:{environment['PATH']}", "WARM_PYTHON": str(path)}
    server.terminate()
    server.wait()


@pytest.fixture(scope="session")
def changes(finished: Cold, warm_python: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Change]:
    """Section → what a change in it did. `seeds` comes first: one is taken away, and the rest goes faster."""

    def run(lane: dict[str, dict[str, Any]]) -> dict[str, Change]:
        clone = Clone(tmp_path_factory.mktemp("lane") / "leverlab", workers=1, source=finished.clone)
        clone.environment |= warm_python
        done = {
            section: make(clone, {"params.yaml": change})
            for section, change in ({"seeds": {"seeds": [0]}} | lane).items()
        }
        if lane is LANES[0]:
            for name in ("dvc.yaml", "dvc.lock"):
                shutil.copy(REPOSITORY / VLM / name, clone.root / VLM)
            done["digits_vlm"] = make(clone, UNTRAINED)
        return done

    with ThreadPoolExecutor() as threads:
        done = list(threads.map(run, LANES))
    return done[0] | done[1]


def test_every_section_is_changed() -> None:
    changed = {"seeds", *LANES[0], *LANES[1]}
    assert changed == {*SECTIONS, "seeds"} == set(read_params(REPOSITORY / "params.yaml"))
    assert set(read_params(REPOSITORY / VLM / "params.yaml")) == {"digits_vlm"}


@pytest.mark.parametrize("section", ["seeds", *LANES[0], *LANES[1], "digits_vlm"])
def test_what_ran_is_what_was_said(section: str, changes: dict[str, Change]) -> None:
    """All that reads the key ran; what follows ran, too, or its inputs came out as before; and nothing else."""
    change = changes[section]
    assert change.direct <= change.ran
    assert change.ran | change.unchanged == change.said
    assert not change.ran & change.unchanged
