"""What the report says of training: where the guard stepped in, and the figures that gates may ask for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from leverlab.evaluation.health import Finding
from leverlab.report.figures import Curves

CHOSEN = ("val_accuracy", "kl", "entropy", "distinct_share", "identical")
CURVES = ("flat_groups", "clipfrac")


@dataclass(frozen=True)
class Intervention:
    """What the guard did after an epoch of one run; `undone` when the epoch broke a limit."""

    method: str
    seed: int
    epoch: int
    text: str
    undone: bool


def interventions(curves: Curves) -> list[Intervention]:
    """Return what the guard did in all runs that had one, in the order of methods, seeds and epochs."""
    return [
        Intervention(method, seed, int(row["epoch"]), str(row["guard"]), not row["sound"])
        for method, runs in curves.items()
        for seed, rows in runs.items()
        if "guard" in rows
        for row in rows[rows["guard"].notna()].to_dict("records")
    ]


def training_metrics(checkpoints: pd.DataFrame, curves: Curves, findings: Sequence[Finding]) -> dict[str, Any]:
    """Return what gates may ask for beside reports/metrics.json, as means over seeds.

    `chosen.<method>.<figure>`: of the chosen checkpoints, on validation questions: val_accuracy, kl and entropy (nats
    per pick), distinct_share and identical (see `Validator`). `training.<method>.<figure>`: means over all epochs of
    training: flat_groups, clipfrac. `health.<name>`: the findings before training.
    """
    chosen = checkpoints[checkpoints["chosen"].astype(bool)]
    return {
        "chosen": {str(method): _means(rows, CHOSEN) for method, rows in chosen.groupby("method")},
        "training": {
            method: _means(pd.concat(runs.values()), CURVES) for method, runs in curves.items() if len(runs) > 0
        },
        "health": {finding.name: finding.value for finding in findings},
    }


def _means(rows: pd.DataFrame, columns: Sequence[str]) -> Mapping[str, float]:
    return {name: float(rows[name].mean()) for name in columns if name in rows and rows[name].notna().any()}
