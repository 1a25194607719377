"""What the report of the recipe `clarify` says of the exported files: parity, what they answer, speed.

A figure is a dotted key below the part of its file, so that another layout is another line in `COLUMNS`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from leverlab.errors import LeverlabError
from leverlab.lm.summary import unplain
from leverlab.report.inputs import read_json
from leverlab.report.words import NOTHING, number, percent

PARTS = ("files", "parity", "answers", "engines")  # of gguf.json, the last one of benchmark.json
PARITY = ("equal_tokens", "max_delta", "max_delta_any", "mean_kl", "greedy", "greedy_decided")
ANSWERS = ("need_success", "over_clarification", "success", "turns", "same_dialogues")
# (head, part, dotted key, how it is written)
COLUMNS: tuple[tuple[str, str, str, Callable[[Any], str]], ...] = (
    ("need-success (%)", "answers", "need_success", percent),
    ("over-clarification (%)", "answers", "over_clarification", percent),
    ("success (%)", "answers", "success", percent),
    ("same dialogues (%)", "answers", "same_dialogues", percent),
    ("largest Δ log-prob", "parity", "max_delta", number),
    ("mean KL", "parity", "mean_kl", number),
    ("same turns (%)", "parity", "greedy", percent),
    ("… if decided (%)", "parity", "greedy_decided", percent),
    ("file (MiB)", "engines", "file_mib", number),
    ("memory (MiB)", "engines", "resident_mib", number),
    ("prompt tokens/s", "engines", "prompt_per_second", number),
    ("turn tokens/s", "engines", "predicted_per_second", number),
    ("ms of a turn, median", "engines", "latency_ms.p50", number),
    ("95th percentile", "engines", "latency_ms.p95", number),
)
FILE_COLUMNS = {
    "bytes": "bytes",
    "tensors": "tensors",
    "max_abs_error": "largest error",
    "values_beyond": "values beyond their bound",
}
Figures = Mapping[str, Mapping[str, Any]]  # kind, file or engine → its figures


@dataclass(frozen=True)
class Export:
    """All of it, part by part. `errors`: by what was not measured, why not; it has no figures then."""

    files: Figures
    parity: Figures
    answers: Figures
    engines: Figures
    errors: Mapping[str, str]


def read_export(gguf: Path, benchmark: Path) -> Export:
    """Return what the stages gguf and benchmark measured. Raises `LeverlabError` for a file that is damaged or lacks a
    part."""
    exported, errors = read_json(gguf), dict[str, str]()
    parts = {}
    for part in PARTS:
        path = benchmark if part == "engines" else gguf
        found = read_json(benchmark).get(part) if part == "engines" else exported.get(part)
        if not isinstance(found, dict) or not all(isinstance(one, dict) for one in found.values()):
            raise LeverlabError(f"{path} must hold {part}, an object of objects; delete it and run dvc repro again")
        again = f"; fix it and measure again: dvc repro -f -s {path.stem}"  # a runtime is no dependency DVC knows
        errors |= {f"{part} of {name}": f"{one['error']}{again}" for name, one in found.items() if "error" in one}
        parts[part] = {name: unplain(one) for name, one in found.items() if "error" not in one}
    return Export(parts["files"], parts["parity"], parts["answers"], parts["engines"], errors)


def gguf_metrics(export: Export, kinds: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
    """Return by kind what gates can ask for: the figures of `parity` and of `answers`.

    kinds: those that should be there. What was not measured, because the kind was not exported or the runtime failed,
    is NaN: its gate is red.
    """
    nothing = dict.fromkeys((*PARITY, *ANSWERS), math.nan)
    failed = [what.rpartition(" of ")[2] for what in export.errors]
    names = dict.fromkeys((*kinds, *export.parity, *export.answers, *failed))
    return {name: nothing | {**export.parity.get(name, {}), **export.answers.get(name, {})} for name in names}


def export_text(export: Export) -> pd.DataFrame:
    """Return one row for each exported kind and each engine it was compared with: parity, answers, speed."""
    names = dict.fromkeys((*export.answers, *export.parity, *export.engines))
    rows = [
        {"type": name}
        | {head: _cell(getattr(export, part).get(name, {}), key, write) for head, part, key, write in COLUMNS}
        for name in names
    ]
    return pd.DataFrame(rows, columns=["type", *(head for head, *_ in COLUMNS)])


def files_text(export: Export) -> pd.DataFrame:
    """Return the exported files, one a row, as they were compared with the checkpoint."""
    rows = [
        {"file": name} | {head: _cell(found, key, number) for key, head in FILE_COLUMNS.items()}
        for name, found in export.files.items()
    ]
    return pd.DataFrame(rows, columns=["file", *FILE_COLUMNS.values()])


def _cell(found: Mapping[str, Any], key: str, write: Callable[[Any], str]) -> str:
    value: Any = found
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return NOTHING if value is None or isinstance(value, Mapping) else write(value)
