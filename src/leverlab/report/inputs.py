"""What the report reads, checked: a file that another stage wrote differently is an error that names it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import TypeAdapter, ValidationError

from leverlab.errors import LeverlabError
from leverlab.evaluation.health import Finding
from leverlab.evaluation.summary import METHODS

SHOTS_COLUMNS = ("method", "shots", "accuracy", "ci_low", "ci_high", "n", "seed_std", "distinct_demos")
CURVE_COLUMNS = ("epoch", "val_accuracy")
CHECKPOINT_COLUMNS = ("method", "seed", "epoch", "val_accuracy", "val_loss", "kl")
MAY_LACK = ("seed_std", "kl", "val_loss")  # one seed has no spread, the first stage no reference


def read_csv(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Return the rows of a CSV file, at least one.

    Raises `LeverlabError` when it is missing, damaged or lacks one of `columns`, when a `method` is empty, and when
    another of these columns holds a text, an infinite number, or a gap where `MAY_LACK` does not allow one.
    """
    try:
        table = pd.read_csv(path)
        if not isinstance(table.index, pd.RangeIndex):  # what pandas makes of rows with one field more than the header
            raise ValueError("its rows have more fields than its header")
    except FileNotFoundError:
        raise LeverlabError(f"{path} does not exist; run the stage that writes it (dvc repro)") from None
    except (ValueError, OverflowError) as error:
        raise LeverlabError(f"{path} is damaged or no CSV ({error}); delete it and run dvc repro again") from None
    lacking = [column for column in columns if column not in table.columns]
    if lacking:
        raise LeverlabError(f"{path} lacks the columns {lacking}; it holds {table.columns.tolist()}")
    wrong = [name for name in columns if not _is_sound(table[name])]
    if wrong or table.empty:
        raise LeverlabError(
            f"{path} has {len(table)} rows and damaged columns {wrong}; delete it and run dvc repro again"
        )
    return table


def _is_sound(column: "pd.Series[Any]") -> bool:
    if column.name == "method":
        return all(isinstance(value, str) for value in column)
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


def read_export(path: Path) -> list[dict[str, Any]]:
    """Return the files of reports/gguf.json, each a mapping. Raises `LeverlabError` when there is no such list."""
    files = read_json(path).get("files")
    if not isinstance(files, list) or not all(isinstance(file, dict) for file in files):
        raise LeverlabError(f"{path} must hold 'files', a list of objects, one an exported file")
    return files


def read_checkpoints(table: Path, best: Path) -> pd.DataFrame:
    """Return models/best/checkpoints.csv with a column `chosen`: whether best.json names its method, seed and epoch.

    Every object of best.json with these three keys counts, at any depth. The rows are sorted by method, seed and epoch.
    Raises `LeverlabError` when best.json names no checkpoint or one that the table lacks, and for an unknown method.
    """
    checkpoints = read_csv(table, CHECKPOINT_COLUMNS)
    if unknown_methods := sorted(set(checkpoints["method"]) - set(METHODS)):
        raise LeverlabError(f"{table} holds the unknown methods {unknown_methods}; known are {', '.join(METHODS)}")
    order = checkpoints["method"].map(METHODS.index)
    checkpoints = checkpoints.assign(order=order).sort_values(["order", "seed", "epoch"]).drop(columns="order")
    if not all(checkpoints[name].dtype.kind == "i" for name in ("seed", "epoch")):
        raise LeverlabError(f"{table} must hold whole numbers as seed and epoch; run dvc repro select-best")
    chosen = set()
    for item in _choices(read_json(best)):
        if not isinstance(item["method"], str) or type(item["seed"]) is not int or type(item["epoch"]) is not int:
            raise LeverlabError(f"{best} must name a method and the whole numbers seed and epoch, not {dict(item)}")
        chosen.add((item["method"], item["seed"], item["epoch"]))
    if not chosen:
        raise LeverlabError(f"{best} names no checkpoint: no object in it has the keys method, seed and epoch")
    keys = list(zip(checkpoints["method"], checkpoints["seed"], checkpoints["epoch"], strict=True))
    if unknown := sorted(chosen - set(keys)):
        raise LeverlabError(f"{best} names checkpoints that {table} lacks, first (method, seed, epoch) = {unknown[0]}")
    return checkpoints.assign(chosen=[key in chosen for key in keys])


def _choices(data: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(data, Mapping):
        if {"method", "seed", "epoch"} <= set(data):
            yield data
        for value in data.values():
            yield from _choices(value)
    elif isinstance(data, list):
        for value in data:
            yield from _choices(value)
