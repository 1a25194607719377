"""What the guard did, told in order, and the figures for gates by hand."""

import math

import pandas as pd
import pytest

from leverlab.evaluation.health import Finding
from leverlab.report.training import Intervention, interventions, training_metrics

GUARDED = pd.DataFrame(
    {
        "epoch": [0, 1, 2],
        "val_accuracy": [0.1, 0.2, 0.3],
        "flat_groups": [math.nan, 0.2, 0.4],
        "action": ["none", "back", "alarm"],
        "guard": [math.nan, "back to epoch 0: KL 9", "alarm: KL 0"],
        "sound": [True, False, True],
    }
)
PLAIN = pd.DataFrame({"epoch": [0, 1], "val_accuracy": [0.1, 0.2]})
CURVES = {"sft": {0: PLAIN}, "grpo": {0: GUARDED, 1: GUARDED.assign(flat_groups=[math.nan, 0.0, 0.2])}}
CHECKPOINTS = pd.DataFrame(
    {
        "method": ["grpo", "grpo", "grpo", "sft"],
        "seed": [0, 0, 1, 0],
        "epoch": [1, 2, 1, 1],
        "val_accuracy": [0.5, 0.6, 0.8, 0.4],
        "kl": [9.0, 1.0, 2.0, math.nan],
        "entropy": [0.1, 1.0, 0.5, 2.0],
        "chosen": [False, True, True, True],
    }
)


def test_what_the_guard_did_is_told_in_order() -> None:
    assert interventions(CURVES) == [
        Intervention("grpo", seed, epoch, text, undone)
        for seed in (0, 1)
        for epoch, text, undone in ((1, "back to epoch 0: KL 9", True), (2, "alarm: KL 0", False))
    ]
    assert interventions({"sft": {0: PLAIN}, "grpo": {0: GUARDED.iloc[:1]}}) == []


def test_figures_for_gates_by_hand() -> None:
    """Chosen KL (1 + 2) / 2, flat groups (.2 + .4 + 0 + .2) / 4; SFT has no KL, and no figure for it."""
    finding = Finding("flat_groups", 0.05, 0.2, "at_most", True, "no signal")
    found = training_metrics(CHECKPOINTS, CURVES, [finding])
    assert found["chosen"]["grpo"] == pytest.approx({"val_accuracy": 0.7, "kl": 1.5, "entropy": 0.75})
    assert found["chosen"]["sft"] == {"val_accuracy": 0.4, "entropy": 2.0}
    assert found["training"]["grpo"] == pytest.approx({"flat_groups": 0.2})
    assert found["training"]["sft"] == {}
    assert found["health"] == {"flat_groups": 0.05}
