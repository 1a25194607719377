"""Whether what the demos win survives quantisation: answers of exported models beside those of the checkpoint."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from leverlab.errors import LeverlabError
from leverlab.evaluation.statistics import bootstrap_interval, holm, paired_difference, verdict

SUBJECT, RANDOM, ZERO = "selector", "random", "zero_shot"  # methods; the first is the selector that is deployed
TRANSFORMERS = "transformers"  # the kind of the checkpoint's own answers, in vlm.dtype
REFERENCES = (TRANSFORMERS, "f16")  # kinds that others are compared with

SCHEMA = pa.schema(
    [
        ("kind", pa.string()),
        ("method", pa.string()),
        ("shots", pa.int64()),
        ("question_id", pa.string()),
        ("prediction", pa.string()),
        ("vqa_accuracy", pa.float64()),
    ]
)


def to_answer(answers: pd.DataFrame, method: str, seed: int) -> pd.DataFrame:
    """Return the rows of data/answers.parquet whose prompts exported models answer too: zero-shot, random demos of the
    first seed, and as `selector` the demos of `method` with `seed`, the selector that is deployed."""
    random = answers["method"] == RANDOM
    chosen = (answers["method"] == method) & (answers["seed"] == seed)
    wanted = (answers["method"] == ZERO) | chosen | (random & (answers["seed"] == answers.loc[random, "seed"].min()))
    shown = answers.assign(method=answers["method"].mask(chosen, SUBJECT))[wanted]
    return shown.sort_values(["method", "shots", "question_id"], ignore_index=True)


def accuracy_table(answers: pd.DataFrame, resamples: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """Return one row a kind, method and shot count: kind, method, shots, accuracy, ci_low, ci_high, n.

    Accuracies in [0, 1] with their bootstrap 95 % interval. n: questions.
    """
    rows = []
    for (kind, method, shots), scores in _cells(answers).items():
        accuracy, low, high = bootstrap_interval(scores, resamples=resamples, seed=seed)
        rows.append((kind, method, shots, accuracy, low, high, len(scores)))
    return pd.DataFrame(rows, columns=["kind", "method", "shots", "accuracy", "ci_low", "ci_high", "n"])


def differences_table(answers: pd.DataFrame, resamples: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """Return the paired differences of the selector's demos in each kind, at each shot count.

    against: `transformers` and `f16`, the same demos answered there, and `random`, random demos in the same kind.
    Columns: kind, against, shots, difference, ci_low, ci_high, p_value, p_holm (over all rows), verdict.
    Raises `LeverlabError` as `paired_difference`.
    """
    cells, rows = _cells(answers), []
    for (kind, method, shots), ours in cells.items():
        if method != SUBJECT:
            continue
        others = {name: cells.get((name, SUBJECT, shots)) for name in REFERENCES if kind not in (name, TRANSFORMERS)}
        for against, theirs in (others | {RANDOM: cells.get((kind, RANDOM, shots))}).items():
            if theirs is not None:
                found = paired_difference(ours, theirs, resamples=resamples, seed=seed)
                rows.append((kind, against, shots, found.difference, found.ci_low, found.ci_high, found.p_value))
    table = pd.DataFrame(rows, columns=["kind", "against", "shots", "difference", "ci_low", "ci_high", "p_value"])
    table["p_holm"] = holm(table["p_value"])
    table["verdict"] = [verdict(*row) for row in zip(table["ci_low"], table["ci_high"], table["p_holm"], strict=True)]
    return table


def agreement(answers: pd.DataFrame) -> dict[str, float]:
    """Return by kind the share of the selector's prompts with the same answer as in transformers, in [0, 1]."""
    rows = answers[answers["method"] == SUBJECT].set_index(["shots", "question_id"])
    theirs = rows.loc[rows["kind"] == TRANSFORMERS, "prediction"]
    shares = {}
    for kind, own in rows[rows["kind"] != TRANSFORMERS].groupby("kind", sort=False):
        shares[str(kind)] = float((own["prediction"] == theirs.reindex(own.index)).mean())
    return shares


def metrics(
    accuracy: pd.DataFrame, differences: pd.DataFrame, agreed: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    """Return by kind: `shots_<k>`, the accuracy with the selector's demos (0: no demos); `agreement`; and
    `over_<against>` at the largest shot count, each with `difference`, `ci_low` and `ci_high`. Six digits."""
    result: dict[str, dict[str, Any]] = {}
    shown = accuracy[accuracy["method"].isin([ZERO, SUBJECT])].sort_values("shots", kind="stable")
    for row in shown.to_dict("records"):
        result.setdefault(str(row["kind"]), {})[f"shots_{row['shots']}"] = round(float(row["accuracy"]), 6)
    for kind, share in agreed.items():
        result[kind]["agreement"] = round(share, 6)
    last = differences[differences["shots"] == differences["shots"].max()]
    for row in last.to_dict("records"):
        figures = {name: round(float(row[name]), 6) for name in ("difference", "ci_low", "ci_high")}
        result[str(row["kind"])][f"over_{row['against']}"] = figures
    return result


def _cells(answers: pd.DataFrame) -> dict[tuple[str, str, int], NDArray[np.float64]]:
    """Return the scores of all questions, in one order, by kind, method and shot count; kinds in the order of the rows.

    Raises `LeverlabError` when a question has no answer, or two.
    """
    cells: dict[tuple[str, str, int], NDArray[np.float64]] = {}
    questions = sorted(set(answers["question_id"]))
    for (kind, method, shots), rows in answers.groupby(["kind", "method", "shots"], sort=False):
        if rows["question_id"].duplicated().any():
            raise LeverlabError(f"{kind} has two answers of {method} at {shots} shots to one question; run gguf-800")
        scores = rows.set_index("question_id")["vqa_accuracy"].reindex(questions).to_numpy(dtype=np.float64)
        if np.isnan(scores).any():
            raise LeverlabError(f"{kind} lacks answers of {method} at {shots} shots; run gguf-800")
        cells[str(kind), str(method), int(str(shots))] = scores
    return cells
