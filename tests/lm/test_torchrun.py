"""Two processes, as `torchrun` starts them, on CPU: what they learn, remember and write, beside one process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from leverlab.lm import grpo
from leverlab.lm.records import RewardRecord, read_records
from tests.lm.torchrun_grpo import imitate, train_twice

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *torchrun, "-m", "tests.lm.torchrun_grpo", str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    folder, drawn = tmp_path_factory.mktemp("one"), grpo.roll_out
    try:
        _, weights = train_twice(folder)
    finally:
        grpo.roll_out = drawn
    return folder, weights, imitate(folder)


def told(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"told-{rank}.json").read_text()) for rank in range(2)]


def records(folder: Path, step: int) -> list[RewardRecord]:
    return read_records(folder / "rollouts" / f"{step:06d}.jsonl", RewardRecord)


@pytest.mark.parametrize("trainer", ["grpo", "sft"])
def test_processes_end_with_the_same_weights(two: Path, trainer: str) -> None:
    first, second = (load_file(two / f"{trainer}-{rank}.safetensors") for rank in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("trainer", ["grpo", "sft"])
def test_they_learn_what_one_process_does(two: Path, one: tuple[Path, Any, Any], trainer: str) -> None:
    """On the same dialogues and examples, up to rounding: which process holds which does not matter.

    Of GRPO's groups some have no spread, and not as many in each process; nor have both as many tokens.
    """
    found = load_file(two / f"{trainer}-0.safetensors")
    expected = dict(zip(("grpo", "sft"), one[1:], strict=True))[trainer]
    assert max(float((found[name] - expected[name]).abs().max()) for name in expected) < 1e-4


def test_they_remember_the_same(two: Path) -> None:
    first, second = told(two)
    assert (first["processes"], second["processes"]) == (2, 2)
    assert first["memories"] == second["memories"]
    memory = json.loads(first["memories"][0])
    assert [row["step"] for row in memory["rows"]] == [0, 1, 2]
    assert [row["success"] for row in memory["rows"]] == [0.0] * 3  # process 1 would have found 1
    assert any(0 < row["flat_groups"] < 1 for row in memory["steps"])


def test_records_hold_the_dialogues_of_both(two: Path, one: tuple[Path, Any, Any]) -> None:
    """The four questions of a step, two a process, in the order in which one process has them."""
    memory = json.loads(told(two)[0]["memories"][0])
    for step in range(2):
        found = records(two / "once", step)
        named = {record.question for record in found}
        assert (len(named), len(found)) == (4, 16)
        assert [record.model_dump(exclude={"confidence"}) for record in found] == [
            record.model_dump(exclude={"confidence"}) for record in records(one[0] / "once", step)
        ]
        row = memory["steps"][step]
        assert fmean(record.total for record in found) == pytest.approx(row["reward"], abs=1e-6)
        assert fmean(record.terms["luck"] for record in found) == pytest.approx(row["terms/luck"], abs=1e-6)
        totals = {name: {record.total for record in found if record.question == name} for name in named}
        assert row["flat_groups"] == sum(len(of_one) == 1 for of_one in totals.values()) / 4


def test_one_process_writes(two: Path) -> None:
    """The other adds the state of its random numbers to each checkpoint, as transformers does, and its own report."""
    first, second = told(two)
    assert {"whole.json", "trainer_state.json"} <= {
        name.split(".", 1)[1].rsplit(".", 2)[0] if name.endswith(".partial") else name for name in first["written"]
    }
    assert set(second["written"]) <= {"rng_state_1.pth"}


def test_a_second_run_gives_the_same_bytes(two: Path) -> None:
    first, second = (
        {
            path.relative_to(two / name): path.read_bytes()
            for path in sorted((two / name).rglob("*"))
            if path.is_file() and "checkpoints" not in path.parts
        }
        for name in ("once", "again")
    )
    assert first == second
    assert len(first) > 6
    assert len(set(told(two)[0]["memories"])) == 1
