"""What the report says of the exported files: contents, parity with transformers, accuracy, speed."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from leverlab.config.gguf import KINDS
from leverlab.errors import LeverlabError
from leverlab.evaluation.quantised import RANDOM, REFERENCES, SUBJECT, TRANSFORMERS, ZERO
from leverlab.report.inputs import read_csv, read_json
from leverlab.report.words import NOTHING, count, number, percent, percent_interval, points, points_interval

ACCURACY_COLUMNS = ("kind", "method", "shots", "accuracy", "ci_low", "ci_high")
DIFFERENCE_COLUMNS = ("kind", "against", "shots", "difference", "ci_low", "ci_high")
_COMPARED = (*REFERENCES, RANDOM)


class _Figures(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class FileFigures(_Figures):
    """One exported file beside the checkpoint."""

    bytes: int
    tensors: int
    max_abs_error: float
    values_beyond: int


class ParityFigures(_Figures):
    """One set of prompts in one file (`leverlab.deploy.parity.Parity`); None where there is no figure."""

    prompts: int
    decided: int
    equal_tokens: float
    max_delta: float | None
    max_delta_any: float | None
    mean_kl: float | None
    greedy: float | None
    greedy_decided: float | None


class AnswerFigures(_Figures):
    """The test questions answered by one kind (`leverlab.evaluation.quantised.metrics`)."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float | dict[str, float]]

    agreement: float | None = None  # the checkpoint itself has none


class Latency(_Figures):
    """Milliseconds of an answer."""

    p50: float
    p95: float


class EngineFigures(_Figures):
    """Speed and memory of one engine (`leverlab.deploy.benchmark.summary`)."""

    file_mib: float
    load_seconds: float
    resident_mib: float
    prompt_per_second: float
    predicted_per_second: float | None
    latency_ms: dict[Annotated[str, Field(pattern=r"^shots_\d{1,6}$")], Latency]


@dataclass(frozen=True)
class Export:
    """All of it. `errors`: by what was not measured, why not; it has no figures then."""

    files: Mapping[str, FileFigures]
    parity: Mapping[str, Mapping[str, ParityFigures]]
    accuracy: pd.DataFrame
    differences: pd.DataFrame
    metrics: Mapping[str, AnswerFigures]
    engines: Mapping[str, EngineFigures]
    errors: Mapping[str, str]


def read_export(gguf: Path, metrics: Path, accuracy: Path, differences: Path, benchmark: Path) -> Export:
    """Return what the stages gguf, gguf-800 and benchmark measured.

    Raises `LeverlabError` naming a file that is damaged or lacks something.
    """
    exported, errors = read_json(gguf), dict[str, str]()

    def measured(found: Any, what: str, path: Path, stage: str) -> dict[str, Any]:
        if not isinstance(found, dict) or not all(isinstance(one, dict) for one in found.values()):
            raise LeverlabError(f"{path} must hold {what}, an object of objects; delete it and run dvc repro again")
        again = f"; fix it and measure again: dvc repro -f -s {stage}"  # a runtime is no dependency that DVC knows
        errors.update({f"{what} of {name}": f"{one['error']}{again}" for name, one in found.items() if "error" in one})
        return {name: one for name, one in found.items() if "error" not in one}

    files = measured(exported.get("files"), "files", gguf, "gguf")
    parity = measured(exported.get("parity"), "parity", gguf, "gguf")
    answers = measured(read_json(metrics), "answers", metrics, "gguf-800")
    engines = measured(read_json(benchmark).get("engines"), "engines", benchmark, "benchmark")
    try:
        return Export(
            files={name: FileFigures.model_validate(one) for name, one in files.items()},
            parity={
                kind: {size: ParityFigures.model_validate(one) for size, one in sets.items()}
                for kind, sets in parity.items()
            },
            accuracy=read_csv(accuracy, ACCURACY_COLUMNS),
            differences=read_csv(differences, DIFFERENCE_COLUMNS),
            metrics={name: AnswerFigures.model_validate(one) for name, one in answers.items()},
            engines={name: EngineFigures.model_validate(one) for name, one in engines.items()},
            errors=errors,
        )
    except ValidationError as error:
        problem = error.errors()[0]
        raise LeverlabError(
            f"{gguf}, {metrics} or {benchmark} lacks a figure ({'.'.join(map(str, problem['loc']))} "
            f"{problem['msg'].lower()}); delete them and run dvc repro again"
        ) from None


def gate_metrics(export: Export) -> dict[str, dict[str, Any]]:
    """Return by kind what gates can ask for: the parity over all prompts, and the metrics of gguf-800.

    A figure that was not measured, because the kind was not exported or the runtime failed, is NaN: its gate is red.
    """
    nothing = dict.fromkeys(ParityFigures.model_fields, float("nan"))
    answered = {kind: figures.model_dump(exclude_none=True) for kind, figures in export.metrics.items()}
    result: dict[str, dict[str, Any]] = {}
    for kind in KINDS:
        sets = export.parity.get(kind, {})
        figures = dict(sets["all"]) if "all" in sets else {}
        known = {name: value for name, value in figures.items() if value is not None}
        interval = dict.fromkeys(("difference", "ci_low", "ci_high"), float("nan"))
        unknown: dict[str, Any] = {f"over_{against}": interval for against in _COMPARED if against != kind}
        unknown |= {name: float("nan") for name in answered.get(TRANSFORMERS, {}) if name.startswith("shots_")}
        result[kind] = nothing | known | unknown | {"agreement": float("nan")} | answered.get(kind, {})
    return result


def sizes_text(export: Export) -> pd.DataFrame:
    """Return size, accuracy and speed at the largest shot count, one kind a row; empty when no speed was measured."""
    rows = export.accuracy[export.accuracy["method"] == SUBJECT]
    last = rows["shots"].max()
    return pd.DataFrame(
        {
            "type": row["kind"],
            "file (MiB)": number(export.engines[row["kind"]].file_mib),
            "accuracy (%)": f"{percent(row['accuracy'])} {percent_interval(row['ci_low'], row['ci_high'])}",
            "ms an answer": number(export.engines[row["kind"]].latency_ms[f"shots_{last}"].p50),
        }
        for row in rows[(rows["shots"] == last) & rows["kind"].isin(list(export.engines))].to_dict("records")
    )


def files_text(export: Export) -> pd.DataFrame:
    """Return the files, one a row."""
    rows = [
        {
            "file": name,
            "bytes": number(file.bytes),
            "tensors": number(file.tensors),
            "largest error": number(file.max_abs_error),
            "values beyond their bound": number(file.values_beyond),
        }
        for name, file in export.files.items()
    ]
    return pd.DataFrame(rows)


def parity_text(export: Export) -> pd.DataFrame:
    """Return the parity of every kind and set of prompts, one a row."""
    rows = [
        {
            "type": kind,
            "images": size,
            "prompts": number(figures.prompts),
            "equal tokens (%)": percent(figures.equal_tokens),
            "largest Δ log-prob": number(figures.max_delta),
            "of any token": number(figures.max_delta_any),
            "mean KL": number(figures.mean_kl),
            "greedy (%)": _share(figures.greedy),
            "decided (%)": _share(figures.greedy_decided),
        }
        for kind, sets in export.parity.items()
        for size, figures in sets.items()
    ]
    return pd.DataFrame(rows)


def answers_text(export: Export) -> pd.DataFrame:
    """Return the accuracy with the selector's demos in every kind, and the differences at the largest shot count."""
    last = export.differences["shots"].max()
    rows = []
    shown = export.accuracy[export.accuracy["method"].isin([SUBJECT, ZERO])].sort_values("shots", kind="stable")
    for kind, cells in shown.groupby("kind", sort=False):
        texts = {
            count(int(cell["shots"]), "shot"): f"{percent(cell['accuracy'])} "
            f"{percent_interval(cell['ci_low'], cell['ci_high'])}"
            for cell in cells.to_dict("records")
        }
        own = export.differences[(export.differences["kind"] == kind) & (export.differences["shots"] == last)]
        over = {row["against"]: row for row in own.to_dict("records")}
        for against in _COMPARED:
            row = over.get(against)
            texts[f"over {against}"] = (
                NOTHING
                if row is None
                else f"{points(row['difference'])} {points_interval(row['ci_low'], row['ci_high'])}"
            )
        agreed = export.metrics[str(kind)].agreement if str(kind) in export.metrics else None
        rows.append({"type": str(kind), **texts, "same answers (%)": _share(agreed)})
    return pd.DataFrame(rows).fillna(NOTHING)


def engines_text(export: Export) -> pd.DataFrame:
    """Return speed and memory, one engine a row."""
    rows = []
    for name, figures in export.engines.items():
        latency = {
            f"ms at {count(int(shots.removeprefix('shots_')), 'shot')}": f"{number(found.p50)} / {number(found.p95)}"
            for shots, found in figures.latency_ms.items()
        }
        rows.append(
            {
                "engine": name,
                "file (MiB)": number(figures.file_mib),
                "load (s)": number(figures.load_seconds),
                "memory (MiB)": number(figures.resident_mib),
                "prompt tokens/s": number(figures.prompt_per_second),
                "answer tokens/s": number(figures.predicted_per_second),
                **latency,
            }
        )
    return pd.DataFrame(rows).fillna(NOTHING)


def _share(value: float | None) -> str:
    return NOTHING if value is None else percent(value)
