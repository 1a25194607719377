"""What the report and select-best read: CSV and JSON files of other stages, and the README's table."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from leverlab.config.gguf import KINDS
from leverlab.config.report import GateParams
from leverlab.evaluation.gates import Gate, evaluate_gates
from leverlab.evaluation.health import Finding
from leverlab.evaluation.summary import METHODS
from leverlab.pipeline import readme
from leverlab.report.exported import (
    Export,
    answers_text,
    engines_text,
    files_text,
    gate_metrics,
    parity_text,
    read_export,
)
from leverlab.report.inputs import (
    CHECKPOINT_COLUMNS,
    CURVE_COLUMNS,
    SHOTS_COLUMNS,
    read_checkpoints,
    read_csv,
    read_findings,
    read_json,
)
from leverlab.training.runs import choose_epoch, read_metrics
from tests.fuzz.conftest import Tally
from tests.fuzz.mutations import byte_mutants
from tests.report.test_stage import write_export

Maker = Callable[..., Tally]

pytestmark = pytest.mark.filterwarnings("error")

RUN = pd.DataFrame(
    {
        "epoch": [0, 1, 2],
        "step": [0, 10, 20],
        "val_accuracy": [0.105, 0.375, 0.365],
        "val_loss": [4.25, 3.63, 3.5],
        "kl": [math.nan, 0.1, 0.2],
        "lr": [math.nan, 0.0015, 0.001],
    }
)


def is_number_column(values: Any) -> bool:
    return values.dtype.kind in "if" and not np.isinf(values).any()


def test_metrics(tmp_path: Path, tally: Maker) -> None:
    """A number that became another number, and a file cut at the end of a line, cannot be told from a sound file."""
    path = tmp_path / "metrics.csv"
    RUN.to_csv(path, index=False)

    def check(rows: pd.DataFrame) -> None:
        assert rows["epoch"].tolist() == list(range(len(rows)))
        assert all(is_number_column(rows[name]) for name in ("epoch", "val_accuracy", "val_loss", "kl"))
        assert rows["val_accuracy"].between(0, 1).all()
        assert rows["val_loss"].notna().all()
        for strategy in ("last", "val_loss", "val_accuracy", "kl"):
            assert choose_epoch(rows, strategy) in range(len(rows))

    count = tally(lambda: read_metrics(path), check, [str(path)])
    count.attempt_all(path, byte_mutants(path.read_bytes(), 2000, seed=0))


SHOTS = pd.DataFrame(
    [["zero_shot", 0, 0.1, 0.05, 0.2, 800, 0.0, 0], ["grpo", 4, 0.8, 0.75, 0.85, 800, 0.01, 300]],
    columns=list(SHOTS_COLUMNS),
)


@pytest.mark.parametrize(("table", "columns"), [(SHOTS, SHOTS_COLUMNS), (RUN, CURVE_COLUMNS)], ids=["shots", "curve"])
def test_csv(tmp_path: Path, tally: Maker, table: pd.DataFrame, columns: tuple[str, ...]) -> None:
    path = tmp_path / "table.csv"
    table.to_csv(path, index=False)

    def check(rows: pd.DataFrame) -> None:
        assert len(rows)
        for name in columns:
            if name == "method":
                assert all(isinstance(value, str) and value for value in rows[name])
            else:
                assert is_number_column(rows[name])
                assert rows[name].notna().all() or name == "seed_std"

    count = tally(lambda: read_csv(path, columns), check, [str(path)])
    count.attempt_all(path, byte_mutants(path.read_bytes(), 2000, seed=0))


CHECKPOINTS = pd.DataFrame(
    [
        ["sft", 0, 1, 0.3, 3.5, math.nan, True],
        ["grpo", 0, 1, 0.8, 1.5, 0.1, True],
        ["grpo", 0, 2, 0.7, 1.4, 0.2, False],
    ],
    columns=list(CHECKPOINT_COLUMNS),
)


def test_checkpoints(tmp_path: Path, tally: Maker) -> None:
    path = tmp_path / "checkpoints.csv"
    CHECKPOINTS.to_csv(path, index=False)

    def check(rows: pd.DataFrame) -> None:
        assert set(rows["method"]) <= set(METHODS)
        assert rows["chosen"].dtype == bool
        assert (rows.groupby(["method", "seed"])["chosen"].sum() == 1).all()
        for column in CHECKPOINT_COLUMNS[1:-1]:
            assert is_number_column(rows[column])
        for row in rows.to_dict("records"):
            assert row["seed"] == int(row["seed"])
            assert row["epoch"] == int(row["epoch"])
            assert math.isfinite(row["val_accuracy"])

    count = tally(lambda: read_checkpoints(path), check, [str(path)])
    count.attempt_all(path, byte_mutants(path.read_bytes(), 2000, seed=0))


FINDING = {"name": "headroom", "value": 0.5, "limit": 0.1, "direction": "at_least", "ok": True, "meaning": "to gain"}


def test_findings(tmp_path: Path, tally: Maker) -> None:
    path = tmp_path / "health.json"
    data = {"findings": [FINDING, {**FINDING, "name": "flat", "direction": "at_most", "ok": False}]}
    path.write_text(json.dumps(data))

    def check(findings: list[Finding]) -> None:
        for finding in findings:
            assert isinstance(finding.name, str)
            assert isinstance(finding.meaning, str)
            assert type(finding.ok) is bool
            assert finding.direction in ("at_least", "at_most")
            assert all(type(number) in (int, float) for number in (finding.value, finding.limit))
            assert float(finding.value) is not None

    count = tally(lambda: read_findings(path), check, [str(path)])
    count.attempt_all(path, byte_mutants(path.read_bytes(), 1000, seed=0))
    count.attempt_trees(path, data, 1000)


def test_export(tmp_path: Path, tally: Maker) -> None:
    """Each of the five files in turn is damaged, the others are sound."""
    write_export(tmp_path, second_runs=True)
    folder = tmp_path / "reports"
    paths = [
        folder / name
        for name in ("gguf.json", "gguf_metrics.json", "gguf_accuracy.csv", "gguf_differences.csv", "benchmark.json")
    ]

    def check(export: Export) -> None:
        for kind, figures in gate_metrics(export).items():
            assert kind in KINDS
            assert {"max_delta", "greedy_decided", "mean_kl", "agreement"} <= figures.keys()
        for table in (files_text, parity_text, answers_text, engines_text):
            assert all(isinstance(cell, str) for row in table(export).itertuples(index=False) for cell in row)

    for path in paths:
        count = tally(lambda: read_export(*paths), check, [str(one) for one in paths])
        sound = path.read_bytes()
        count.attempt_all(path, byte_mutants(sound, 250, seed=0))
        if path.suffix == ".json":
            count.attempt_trees(path, json.loads(sound), 250)
        path.write_bytes(sound)


def test_gates(tmp_path: Path, tally: Maker) -> None:
    path = tmp_path / "metrics.json"
    data = {"grpo": {"shots_4": 0.8, "seeds": 3}, "zero_shot": {"shots_0": 0.0}}
    path.write_text(json.dumps(data))
    rules = {
        "gain": GateParams(metric="grpo.shots_4", at_least=0.7),
        "blind": GateParams(metric="zero_shot.shots_0", at_most=0.1),
    }

    def check(gates: list[Gate]) -> None:
        assert [gate.name for gate in gates] == ["gain", "blind"]
        for gate in gates:
            assert type(gate.value) is float
            keeps = gate.value >= gate.threshold if gate.direction == "at_least" else gate.value <= gate.threshold
            assert gate.passed == (math.isfinite(gate.value) and keeps)

    count = tally(lambda: evaluate_gates(rules, read_json(path)), check, [str(path), "gate 'gain'", "gate 'blind'"])
    count.attempt_all(path, byte_mutants(path.read_bytes(), 1000, seed=0))
    count.attempt_trees(path, data, 1000)


@pytest.mark.parametrize("name", ["README.md", "accuracy.md"])
def test_readme(tmp_path: Path, tally: Maker, name: str) -> None:
    table = "| method | 4 shots |\n|---|---|\n| grpo | 0.8 |\n"
    (tmp_path / "reports" / "tables").mkdir(parents=True)
    places = {"README.md": tmp_path / "README.md", "accuracy.md": tmp_path / "reports" / "tables" / "accuracy.md"}
    places["README.md"].write_text(
        f"# leverlab\n\n<!-- accuracy: of the report -->\n{table}<!-- /accuracy -->\n\nend τ\n"
    )
    places["accuracy.md"].write_text(table)
    sound = places["README.md"].read_text(encoding="utf-8")

    def check(current: bool) -> None:
        text, rows = (places[key].read_text(encoding="utf-8") for key in ("README.md", "accuracy.md"))
        assert not current or f"-->\n{rows.strip()}\n<!-- /accuracy -->" in text
        assert current or text != sound or rows.strip() != table.strip()

    # A marker that names another table sends the reader to that table's file.
    count = tally(lambda: readme.is_current(tmp_path), check, [name, "README.md", str(tmp_path / "reports/tables")])
    count.attempt_all(places[name], byte_mutants(places[name].read_bytes(), 2200, seed=0))
