"""The tables of the report as data frames of text, and as Markdown and CSV files."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from leverlab.errors import LeverlabError
from leverlab.evaluation.gates import Gate
from leverlab.files import write_text
from leverlab.markdown import inline
from leverlab.report.words import (
    LABELS,
    NOTHING,
    number,
    p_value,
    percent,
    percent_interval,
    points,
    points_interval,
    verdict_text,
)


def with_seeds(shots: pd.DataFrame, answers: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of reports/shots.csv with a column `seeds`: of how many seeds the method has answers.

    Raises `LeverlabError` when the two hold different methods.
    """
    if set(shots["method"]) != set(answers["method"]):
        raise LeverlabError(
            f"reports/shots.csv holds the methods {sorted(set(shots['method']))}, the answers "
            f"{sorted(set(answers['method']))}; both come from infer-800: run dvc repro infer-800"
        )
    seeds = answers.groupby("method")["seed"].nunique()
    return shots.assign(seeds=shots["method"].map(seeds).astype(int))


def comparison_metrics(comparisons: pd.DataFrame) -> dict[str, dict[str, dict[str, float]]]:
    """Return the comparisons as metrics that gates can ask for: {method_b: {"shots_<k>": {column: value}}}.

    Columns: difference, ci_low, ci_high, p_holm, least_detectable_difference.
    """
    columns = ("difference", "ci_low", "ci_high", "p_holm", "least_detectable_difference")
    result: dict[str, dict[str, dict[str, float]]] = {}
    for row in comparisons.to_dict("records"):
        values = {column: float(row[column]) for column in columns}
        result.setdefault(row["method_b"], {})[f"shots_{row['shots']}"] = values
    return result


def accuracy_text(shots: pd.DataFrame) -> pd.DataFrame:
    """Return methods x shot counts, each cell the accuracy in percent with its interval.

    shots: the rows of `with_seeds`. The last two columns are the standard deviation over seeds in points and the
    distinct demos, both at the method's largest shot count.
    """
    counts = sorted(shots["shots"].unique())
    rows = []
    for method, cells in shots.groupby("method", sort=False):
        by_count = {cell["shots"]: cell for cell in cells.to_dict("records")}
        last = by_count[max(by_count)]
        texts = {
            f"{k} {'shot' if k == 1 else 'shots'}": (
                f"{percent(by_count[k]['accuracy'])} {percent_interval(by_count[k]['ci_low'], by_count[k]['ci_high'])}"
                if k in by_count
                else ""
            )
            for k in counts
        }
        spread = percent(last["seed_std"]) if last["seeds"] > 1 else NOTHING
        rows.append(
            {
                "method": LABELS[str(method)],
                **texts,
                "seeds": str(last["seeds"]),
                "std over seeds": spread,
                "distinct demos": number(round(last["distinct_demos"])),
            }
        )
    return pd.DataFrame(rows)


def comparisons_text(comparisons: pd.DataFrame) -> pd.DataFrame:
    """Return the paired comparisons of `leverlab.evaluation.summary.comparisons`, one a row; differences in points."""
    rows = [
        {
            "method": LABELS[row["method_a"]],
            "against": LABELS[row["method_b"]],
            "shots": str(row["shots"]),
            "difference": points(row["difference"]),
            "95 % interval": points_interval(row["ci_low"], row["ci_high"]),
            "p": p_value(row["p_value"]),
            "p (Holm)": p_value(row["p_holm"]),
            "least detectable": percent(row["least_detectable_difference"]),
            "verdict": verdict_text(row["verdict"], row["method_a"], row["method_b"]),
            "test": row["test"],
        }
        for row in comparisons.to_dict("records")
    ]
    columns = ["method", "against", "shots", "difference", "95 % interval", "p", "p (Holm)", "least detectable"]
    return pd.DataFrame(rows, columns=[*columns, "verdict", "test"])


def checkpoints_text(checkpoints: pd.DataFrame) -> pd.DataFrame:
    """Return all checkpoints, one a row: validation accuracies in percent, loss, KL, and which were chosen.

    Pick entropy and distinct demos stand beside them where the table has them.
    """
    frame = pd.DataFrame(
        {
            "method": [LABELS[method] for method in checkpoints["method"]],
            "seed": checkpoints["seed"].astype(str).tolist(),
            "epoch": checkpoints["epoch"].astype(str).tolist(),
            "val accuracy": [percent(value) for value in checkpoints["val_accuracy"]],
        }
    )
    for column in checkpoints.columns:
        if column.startswith("val_accuracy_"):
            shots = column.removeprefix("val_accuracy_")
            frame[f"{shots} {'shot' if shots == '1' else 'shots'}"] = [percent(x) for x in checkpoints[column]]
    frame["val loss"] = [number(float(value)) for value in checkpoints["val_loss"]]
    frame["KL"] = [number(float(value)) for value in checkpoints["kl"]]
    if "entropy" in checkpoints:
        frame["entropy"] = [number(float(value)) for value in checkpoints["entropy"]]
    if "distinct_demos" in checkpoints:
        frame["demos"] = [number(round(value)) for value in checkpoints["distinct_demos"]]
    frame["chosen"] = ["chosen" if chosen else "" for chosen in checkpoints["chosen"]]
    return frame


def gates_text(gates: Iterable[Gate], off: Iterable[str]) -> pd.DataFrame:
    """Return the gates, one a row: what was asked, what was measured, and whether it passed; last those that are `off`,
    by name."""
    rows = [
        {
            "gate": gate.name,
            "metric": gate.metric,
            "threshold": f"{'≥' if gate.direction == 'at_least' else '≤'} {number(gate.threshold)}",
            "measured": number(gate.value),
            "result": "pass" if gate.passed else "FAIL",
        }
        for gate in gates
    ]
    rows += [{"gate": name, "metric": "", "threshold": "", "measured": "", "result": "off"} for name in off]
    return pd.DataFrame(rows, columns=["gate", "metric", "threshold", "measured", "result"])


def question_types(answers: pd.DataFrame, shots: int) -> pd.DataFrame:
    """Return accuracy by question type at `shots` (zero_shot at 0): columns method, question_type, accuracy, n.

    Methods keep the order of `LABELS`; accuracy in [0, 1] is the mean over seeds and questions; n counts questions.
    """
    rows = answers[(answers["shots"] == shots) | (answers["method"] == "zero_shot")]
    table = rows.groupby(["method", "question_type"], as_index=False).agg(
        accuracy=("vqa_accuracy", "mean"), n=("question_id", "nunique")
    )
    order = table["method"].map(list(LABELS).index)
    return table.assign(order=order).sort_values(["order", "question_type"]).drop(columns="order")


def question_types_text(types: pd.DataFrame) -> pd.DataFrame:
    """Return methods x question types in percent; a column's head holds the number of its questions."""
    heads = {name: f"{name} (n = {n:,})" for name, n in types.groupby("question_type")["n"].first().items()}
    rows = [
        {
            "method": LABELS[str(method)],
            **{heads[row["question_type"]]: percent(row["accuracy"]) for row in cells.to_dict("records")},
        }
        for method, cells in types.groupby("method", sort=False)
    ]
    return pd.DataFrame(rows)


def markdown(frame: pd.DataFrame, left: Sequence[str] = ()) -> str:
    """Return a data frame of text as a Markdown table; columns stand right but for the first and those in `left`."""
    heads = [inline(str(column)) for column in frame.columns]
    rows = [[inline(str(cell)) for cell in row] for row in frame.itertuples(index=False)]
    widths = [max([3, *map(len, column)]) for column in zip(heads, *rows, strict=True)]
    flush = [i == 0 or name in left for i, name in enumerate(frame.columns)]
    rule = [
        f":{'-' * (width - 1)}" if is_left else f"{'-' * (width - 1)}:"
        for width, is_left in zip(widths, flush, strict=True)
    ]
    lines = [
        [
            cell.ljust(width) if is_left else cell.rjust(width)
            for cell, width, is_left in zip(r, widths, flush, strict=True)
        ]
        for r in (heads, rule, *rows)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def write_markdown(path: Path, frame: pd.DataFrame, left: Sequence[str] = ()) -> None:
    """Write a data frame of text as a Markdown table."""
    write_text(path, markdown(frame, left))


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Write the numbers of a data frame as CSV with six digits."""
    write_text(path, frame.to_csv(index=False, float_format="%.6f", lineterminator="\n"))
