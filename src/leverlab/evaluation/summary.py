"""Tables and metrics from the answers of all methods on the test questions (data/answers.parquet)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from leverlab.errors import LeverlabError
from leverlab.evaluation.statistics import bootstrap_interval, holm, paired_difference, verdict

METHODS = (
    "zero_shot",
    "random",
    "fixed",
    "image_sim",
    "text_sim",
    "mix",
    "type_sim",
    "sft",
    "rce",
    "sft_control",
    "grpo",
    "oracle",
)
SELECTORS = ("sft", "rce", "sft_control", "grpo")  # may stop before they have shown as many demos as shots
RETRIEVAL = ("image_sim", "text_sim", "mix", "type_sim")
LIFT_SHOTS = 4

ANSWER_SCHEMA = pa.schema(
    [
        ("method", pa.string()),
        ("seed", pa.int64()),
        ("shots", pa.int64()),
        ("question_id", pa.string()),
        ("question_type", pa.string()),
        ("demos", pa.list_(pa.string())),
        ("prediction", pa.string()),
        ("vqa_accuracy", pa.float64()),
        ("answer_prob", pa.float32()),
    ]
)

_COLUMNS = ("method", "seed", "shots", "question_id", "demos", "vqa_accuracy")


@dataclass(frozen=True)
class _Cell:
    """The answers of one method at one shot count: `scores` are (seeds, questions)."""

    scores: NDArray[np.float64]
    seeds: list[int]
    question_ids: list[str]
    distinct_demos: float


def check_answers(answers: pd.DataFrame) -> None:
    """Raise `LeverlabError` unless the table holds every answer exactly once.

    That is: known methods; zero_shot at 0 shots; all other methods at the same shot counts; every (method, seed, shots)
    with the same question ids, each once; as many demos as shots (or, from selectors, 1 to as many); `vqa_accuracy` in
    [0, 1].
    """
    lacking = [column for column in _COLUMNS if column not in answers.columns]
    if lacking or answers.empty:
        raise LeverlabError(f"answers have {len(answers)} rows and lack the columns {lacking or 'none'}; run infer-800")
    unknown = sorted(set(answers["method"]) - set(METHODS))
    if unknown:
        raise LeverlabError(f"answers hold the unknown methods {', '.join(unknown)}; known are {', '.join(METHODS)}")
    _check_rows(answers)
    _check_shots(answers)
    _check_questions(answers)


def shots_table(answers: pd.DataFrame, resamples: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """Return one row per method and shot count: method, shots, accuracy, ci_low, ci_high, n, seed_std, distinct_demos.

    Accuracies in [0, 1]: the mean over seeds x questions with its bootstrap 95 % interval over both. n: questions.
    seed_std: standard deviation (ddof 1) over seeds of the accuracy, 0 for one seed. distinct_demos: different demos in
    all prompts of the method at that shot count, averaged over seeds. Methods stand in the order of `METHODS`.
    Raises `LeverlabError` as `check_answers`.
    """
    rows = []
    for (method, shots), cell in _cells(answers).items():
        accuracy, low, high = bootstrap_interval(cell.scores, resamples=resamples, seed=seed)
        seeds, n = cell.scores.shape
        seed_std = float(cell.scores.mean(axis=1).std(ddof=1)) if seeds > 1 else 0.0
        rows.append((method, shots, accuracy, low, high, n, seed_std, cell.distinct_demos))
    columns = ["method", "shots", "accuracy", "ci_low", "ci_high", "n", "seed_std", "distinct_demos"]
    return pd.DataFrame(rows, columns=columns)


def comparisons(
    answers: pd.DataFrame,
    method: str = "grpo",
    against: Sequence[str] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the paired comparisons of `method` (A) with every method of `against` (B) at every shot count.

    against: by default all other methods of the table. zero_shot has one set of answers, at 0 shots: it is compared
        with A at every shot count.
    Columns: method_a, method_b, shots, difference (A - B), ci_low, ci_high, p_value, p_holm,
    least_detectable_difference, verdict, test. `p_holm` is Holm's correction over *all rows of this table*, and the
    verdict follows from it. A sign-flip p-value is 2 / (resamples + 1) at the least, so keep `resamples` above 40 x
    rows.
    Raises `LeverlabError` as `check_answers`, and for a method that the table lacks.
    """
    cells = _cells(answers)
    present = [name for name in METHODS if any(key[0] == name for key in cells)]
    others = [name for name in present if name != method] if against is None else list(against)
    lacking = [name for name in (method, *others) if name not in present]
    if lacking or method in others or method == "zero_shot":
        raise LeverlabError(
            f"cannot compare '{method}' with {', '.join(others)}: the answers hold "
            f"{', '.join(present)}; A must have demos, and stand among the others only as A"
        )
    rows = []
    for other in others:
        for shots in (key[1] for key in cells if key[0] == method):
            a, b = cells[method, shots], cells[other, 0 if other == "zero_shot" else shots]
            found = paired_difference(
                a.scores,
                b.scores,
                a.question_ids,
                b.question_ids,
                resamples,
                seed=seed,
                same_seeds=a.seeds == b.seeds,
            )
            rows.append(
                (
                    method,
                    other,
                    shots,
                    found.difference,
                    found.ci_low,
                    found.ci_high,
                    found.p_value,
                    found.least_detectable_difference,
                    found.test,
                )
            )
    columns = [
        "method_a",
        "method_b",
        "shots",
        "difference",
        "ci_low",
        "ci_high",
        "p_value",
        "least_detectable_difference",
        "test",
    ]
    table = pd.DataFrame(rows, columns=columns)
    table["p_holm"] = holm(table["p_value"])
    table["verdict"] = [verdict(*row) for row in zip(table["ci_low"], table["ci_high"], table["p_holm"], strict=True)]
    return table[[*columns[:7], "p_holm", "least_detectable_difference", "verdict", "test"]]


def metrics(answers: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Return what metrics.json holds: {method: {"shots_<k>": accuracy}}, and "lift" of grpo at 4 shots.

    "lift" (at the largest shot count when 4 is not there) holds `shots`, `over_sft`, `over_best_retrieval` (the best of
    image_sim, text_sim, mix, type_sim) and `over_sft_control`: differences of accuracy. A lift whose methods the table
    lacks is left out, so that a gate on it fails. All figures have 6 digits.
    Raises `LeverlabError` as `check_answers`.
    """
    accuracy = {key: float(cell.scores.mean()) for key, cell in _cells(answers).items()}
    result: dict[str, dict[str, float]] = {}
    for (method, shots), value in accuracy.items():
        result.setdefault(method, {})[f"shots_{shots}"] = round(value, 6)
    counts = {shots for _, shots in accuracy}
    at = LIFT_SHOTS if LIFT_SHOTS in counts else max(counts)
    lift: dict[str, float] = {"shots": at}
    references = {"over_sft": ("sft",), "over_best_retrieval": RETRIEVAL, "over_sft_control": ("sft_control",)}
    for name, methods in references.items():
        values = [accuracy[reference, at] for reference in methods if (reference, at) in accuracy]
        if values and ("grpo", at) in accuracy:
            lift[name] = round(accuracy["grpo", at] - max(values), 6)
    return result | {"lift": lift}


def _cells(answers: pd.DataFrame) -> dict[tuple[str, int], _Cell]:
    """Return the checked answers per (method, shots), methods in the order of `METHODS`, questions sorted by id."""
    check_answers(answers)
    cells = {}
    for (method, shots), rows in answers.groupby(["method", "shots"]):
        scores = rows.pivot(index="seed", columns="question_id", values="vqa_accuracy").sort_index(axis=1)
        distinct = rows.groupby("seed")["demos"].agg(lambda lists: len({demo for demos in lists for demo in demos}))
        scores_SN = scores.to_numpy(dtype=np.float64)
        cells[str(method), int(shots)] = _Cell(
            scores_SN, scores.index.tolist(), scores.columns.tolist(), float(distinct.mean())
        )
    return dict(sorted(cells.items(), key=lambda item: (METHODS.index(item[0][0]), item[0][1])))


def _check_rows(answers: pd.DataFrame) -> None:
    demo_counts = answers["demos"].map(lambda demos: -1 if demos is None else len(demos))
    stops = answers["method"].isin(SELECTORS)
    for column, bad in {
        "demos": answers[(demo_counts > answers["shots"]) | (demo_counts < answers["shots"].where(~stops, 1))],
        "vqa_accuracy": answers[~answers["vqa_accuracy"].between(0, 1)],
    }.items():
        if len(bad):
            row = bad.iloc[0]
            raise LeverlabError(
                f"answers: {_name(row['method'], row['seed'], row['shots'])} has {column} = {row[column]} for question "
                f"'{row['question_id']}', and {len(bad) - 1} more rows are like it; there must be as many demos as "
                "shots, or from 1 on to as many for a selector that may stop, and an accuracy in [0, 1]"
            )


def _check_shots(answers: pd.DataFrame) -> None:
    few_shot = sorted(set(answers.loc[answers["method"] != "zero_shot", "shots"].tolist()))
    for (method, seed), rows in answers.groupby(["method", "seed"]):
        expected = [0] if method == "zero_shot" else few_shot
        found = sorted(set(rows["shots"].tolist()))
        if found != expected or (method != "zero_shot" and 0 in found):
            raise LeverlabError(
                f"answers: '{method}' seed {seed} has {found} shots, expected {expected}; zero_shot "
                "has 0 only, and all other methods the same counts from 1 on"
            )


def _check_questions(answers: pd.DataFrame) -> None:
    everything = set(answers["question_id"])
    problems = []
    for key, rows in answers.groupby(["method", "seed", "shots"]):
        ids = rows["question_id"]
        missing, twice = sorted(everything - set(ids)), sorted(set(ids[ids.duplicated()]))
        if missing:
            problems.append(f"{_name(*key)} lacks {len(missing)} of {len(everything)} ({', '.join(missing[:3])})")
        if twice:
            problems.append(f"{_name(*key)} has {len(twice)} more than once ({', '.join(twice[:3])})")
    if problems:
        more = f"; and {len(problems) - 5} more such" if len(problems) > 5 else ""
        raise LeverlabError(f"answers must cover the same questions once each: {'; '.join(problems[:5])}{more}")


def _name(method: Any, seed: Any, shots: Any) -> str:
    return f"'{method}' seed {seed} at {shots} shots"
