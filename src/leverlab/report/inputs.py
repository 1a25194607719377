"""What the report reads, checked: a file that another stage wrote differently is an error that names it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import TypeAdapter, ValidationError

from leverlab import csvfile
from leverlab.errors import LeverlabError
from leverlab.evaluation.health import Finding
from leverlab.evaluation.summary import METHODS

SHOTS_COLUMNS = ("method", "shots", "accuracy", "ci_low", "ci_high", "n", "seed_std", "distinct_demos")
CURVE_COLUMNS = ("epoch", "val_accuracy")
CHECKPOINT_COLUMNS = ("method", "seed", "epoch", "val_accuracy", "val_loss", "kl", "chosen")
TEXTS = ("method", "kind", "against")
MAY_LACK = ("seed_std", "kl", "val_loss")  # one seed has no spread, the first stage no reference


def read_csv(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Return the rows of a CSV file, at least one.

    Raises `LeverlabError` as `csvfile.read_csv`, when one of `TEXTS` is empty, when `chosen` is not true or false, and
    when another of these columns holds a text, an infinite number, or a gap where `MAY_LACK` does not allow one.
    """
    table = csvfile.read_csv(path, columns)
    wrong = [name for name in columns if not _is_sound(table[name])]
    if wrong:
        raise LeverlabError(f"{path} has the damaged columns {wrong}; delete it and run dvc repro again")
    return table


def _is_sound(column: "pd.Series[Any]") -> bool:
    if column.name in TEXTS:
        return all(isinstance(value, str) for value in column)
    if column.name == "chosen":
        return column.dtype == bool
    if column.dtype.kind not in "if" or np.isinf(column).any():
        return False
    return column.name in MAY_LACK or bool(column.notna().all())


def read_json(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file. Raises `LeverlabError` when it is missing, damaged or no object."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LeverlabError(f"{path} does not exist; run the stage that writes it (dvc repro)") from None
    except (ValueError, RecursionError) as error:
        raise LeverlabError(f"{path} is damaged or no JSON ({error}); delete it and run dvc repro again") from None
    if not isinstance(data, dict):
        raise LeverlabError(f"{path} must hold a JSON object, not {type(data).__name__}")
    return data


def read_findings(path: Path) -> list[Finding]:
    """Return the findings of reports/health.json. Raises `LeverlabError` when one has other keys than a `Finding`."""
    try:
        return TypeAdapter(list[Finding]).validate_python(read_json(path).get("findings"))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:3])
        raise LeverlabError(f"{path} must hold 'findings' with the keys of a health finding: {problems}") from None


def read_checkpoints(path: Path) -> pd.DataFrame:
    """Return models/best/checkpoints.csv, sorted by method, seed and epoch.

    Raises `LeverlabError` as `read_csv`, for an unknown method, and unless one epoch of every run is `chosen`.
    """
    checkpoints = read_csv(path, CHECKPOINT_COLUMNS)
    if unknown_methods := sorted(set(checkpoints["method"]) - set(METHODS)):
        raise LeverlabError(f"{path} holds the unknown methods {unknown_methods}; known are {', '.join(METHODS)}")
    if not all(checkpoints[name].dtype.kind == "i" for name in ("seed", "epoch")):
        raise LeverlabError(f"{path} must hold whole numbers as seed and epoch; run dvc repro select-best")
    chosen = checkpoints.groupby(["method", "seed"])["chosen"].sum()
    if not (chosen == 1).all():
        (method, seed), count = next(iter(chosen[chosen != 1].items()))
        raise LeverlabError(
            f"{path} chooses {count} epochs of {method}, seed {seed}, not one; run dvc repro select-best"
        )
    order = checkpoints["method"].map(METHODS.index)
    return checkpoints.assign(order=order).sort_values(["order", "seed", "epoch"]).drop(columns="order")
