"""The stage that trains the VLM of `digits`, on a few steps: what it publishes, its gate, and its resume."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

from leverlab.vlm.model import load_vlm

pytestmark = pytest.mark.slow

STEPS = 130
PATIENCE = 300
OUTS = ("worlds/digits/matching.json", "worlds/digits/training.csv", "worlds/digits/vlm")


@pytest.fixture
def clone(make_clone: Callable[..., Any]) -> Any:
    """A copy whose stage takes seconds, without the VLM that is committed."""
    made = make_clone(workers=1)
    for out in OUTS:
        remove(made.root / out)
    return made


def remove(path: Path) -> None:
    if path.is_dir():
        for child in path.iterdir():
            remove(child)
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


def set_params(clone: Any, **values: float) -> None:
    yaml, path = YAML(), clone.root / "worlds/digits/params.yaml"
    params = yaml.load(path)
    small = {"steps": 3, "episodes": 4, "items": 3, "save_every": 20, "test_episodes": 20, "min_matching": 0.0}
    params["digits_vlm"].update(small | values)
    yaml.dump(params, path)


def train(clone: Any) -> str:
    return clone.run("python", "-m", "stages.digits_vlm")


def published(clone: Any) -> dict[str, bytes]:
    return {
        path.relative_to(clone.root).as_posix(): path.read_bytes()
        for out in OUTS
        for path in ([clone.root / out] if (clone.root / out).is_file() else sorted((clone.root / out).rglob("*")))
        if path.is_file()
    }


def test_a_fresh_clone_finds_the_committed_vlm_up_to_date(make_clone: Callable[..., Any]) -> None:
    """`make repro` must not train it: dvc.lock belongs to the code, the params and the weights that are committed."""
    made = make_clone(workers=1)
    made.commit("clone")
    assert json.loads(made.run("dvc", "status", "--json", "worlds/digits/dvc.yaml")) == {}


def test_three_steps_make_a_folder_in_the_format_of_the_hub(clone: Any) -> None:
    set_params(clone)
    assert "matching test" in train(clone)
    folder = clone.root / "worlds/digits/vlm"
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= {
        path.name for path in folder.iterdir()
    }
    assert sum(path.stat().st_size for path in folder.iterdir()) < 8_000_000
    assert json.loads((folder / "config.json").read_text())["model_type"] == "qwen2_5_vl"
    vlm = load_vlm(str(folder), "float32")
    assert sum(weight.numel() for weight in vlm.model.parameters()) > 1_000_000
    matching = json.loads((clone.root / "worlds/digits/matching.json").read_text())["matching"]
    assert set(matching) == {"shots_2", "shots_3", "shots_4"}
    assert all(0 <= share <= 1 and share * 20 == pytest.approx(round(share * 20)) for share in matching.values())
    assert (clone.root / "worlds/digits/training.csv").read_text().startswith("step,")
    record = json.loads((clone.root / "worlds/digits/provenance/digits-vlm.json").read_text())
    assert set(record["outs"]) == set(OUTS)


def test_below_the_gate_nothing_is_published(clone: Any) -> None:
    """Three steps teach nothing: the sentence names the figure and the gate, and there is no VLM to be used by
    mistake."""
    set_params(clone, min_matching=1.0)
    process = clone.start("python", "-m", "stages.digits_vlm")
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    last = output.splitlines()[-1]
    assert last.startswith("leverlab: stage digits-vlm: the VLM matches 0.")
    assert "below digits_vlm.min_matching = 1.0" in last
    assert "Traceback" not in output
    assert published(clone) == {}


def test_killed_and_run_again_it_ends_with_the_same_bytes(clone: Any, make_clone: Callable[..., Any]) -> None:
    """SIGKILL after step 50 was logged and step 60 saved; the second run begins there, the log is whole."""
    set_params(clone, steps=STEPS)
    train(clone)
    killed = make_clone(workers=1)
    for out in OUTS:
        remove(killed.root / out)
    set_params(killed, steps=STEPS)
    process = killed.start("python", "-m", "stages.digits_vlm")
    try:
        saved = wait_for_step(killed.root, 60, process)
    finally:
        process.send_signal(signal.SIGKILL)
        output, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert f"step 50 of {STEPS}" in output
    assert published(killed) == {}
    resumed = train(killed)
    assert f"step 50 of {STEPS}" not in resumed
    assert (f"step 100 of {STEPS}" in resumed) == (saved < 100)
    assert published(killed) == published(clone)
    steps = [line.split(",")[0] for line in (killed.root / OUTS[1]).read_text().splitlines()]
    assert steps == ["step", "50", "100", str(STEPS)]


def wait_for_step(root: Path, least: int, process: Any) -> int:
    """Return the step of the resume file once it is `least` or more."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        assert process.poll() is None, process.communicate()
        for path in (root / ".leverlab/state/worlds/digits/digits-vlm").glob("*/resume.pt"):
            step = int(torch.load(path, weights_only=True)["step"])
            if step >= least:
                return step
        time.sleep(0.05)
    pytest.fail(f"step {least} was not saved within {PATIENCE} seconds")
