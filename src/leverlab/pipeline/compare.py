"""How far two files are apart: the largest difference of the numbers in them."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import SafetensorError


def largest_difference(before: Path, after: Path) -> float:
    """Return the largest difference between the numbers of two files, `inf` where anything but a number differs.

    The difference of a and b is |a − b| / max(1, |a|, |b|): the smaller one of the absolute and the relative. Read are
    JSON, CSV, parquet and safetensors; two other files that are not the same differ by `inf`, as does a missing file.
    """
    read = {".json": _read_json, ".csv": _read_frame, ".parquet": _read_frame, ".safetensors": _read_tensors}
    if before.suffix not in read or not before.is_file() or not after.is_file():
        return math.inf
    try:
        return _difference(read[before.suffix](before), read[before.suffix](after))
    except (ValueError, SafetensorError):  # one is no such file
        return math.inf


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _read_frame(path: Path) -> Any:
    frame = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    return [[name, column.to_numpy()] for name, column in frame.items()]


def _read_tensors(path: Path) -> Any:
    from safetensors.torch import load_file  # torch is slow to import, and few files need it

    return {name: [str(tensor.dtype), tensor.double().numpy()] for name, tensor in load_file(path).items()}


def _difference(one: Any, other: Any) -> float:
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return math.inf
        return max((_difference(value, other[key]) for key, value in one.items()), default=0.0)
    if _is_numeric(one) and _is_numeric(other):
        return _numeric_difference(np.asarray(one, float), np.asarray(other, float))
    if isinstance(one, (list, np.ndarray)) and isinstance(other, (list, np.ndarray)):
        if len(one) != len(other):
            return math.inf
        return max(map(_difference, one, other), default=0.0)
    return 0.0 if type(one) is type(other) and (one is other or one == other) else math.inf


def _is_numeric(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "iuf"
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def _numeric_difference(one: "np.ndarray[Any, Any]", other: "np.ndarray[Any, Any]") -> float:
    """Return the largest difference; NaN equals NaN, an infinity equals itself."""
    if one.shape != other.shape:
        return math.inf
    with np.errstate(invalid="ignore"):
        gap = np.abs(one - other) / np.maximum(1, np.maximum(np.abs(one), np.abs(other)))
    gap = np.where((one == other) | (np.isnan(one) & np.isnan(other)), 0.0, gap)
    return float(np.nan_to_num(gap, nan=math.inf, posinf=math.inf).max(initial=0.0))
