"""A comparison of runs as sentences, as tables for a terminal, as Markdown, as one HTML page and as plain data."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table
from rich.text import Text

from leverlab.evaluation.statistics import NO_DIFFERENCE
from leverlab.markdown import inline
from leverlab.pipeline.compare_runs import Comparison, as_text
from leverlab.report import words
from leverlab.report.page import page_template
from leverlab.report.tables import markdown

TEMPLATE = Path(__file__).with_name("compare_runs.html.jinja")
ACCURACY, PAIRS, AGREEMENT, PARAMS = "Accuracy", "Paired differences", "Agreement of picks", "Params that differ"
NO_PARAM = "No parameter differs: the runs differ by code or data alone."
LEFT = ("run", "against", "verdict")


def sentences(comparison: Comparison) -> list[str]:
    """Return one verdict a pair, at the largest shot count that both runs have."""
    return [_sentence(rows) for _, rows in comparison.pairs.groupby(["run_a", "run_b"], sort=False)]


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """Return all of it as plain data for JSON; a number that is not defined (NaN) is None."""
    frames = {"accuracy": comparison.accuracy, "pairs": comparison.pairs, "seeds": comparison.seeds}
    return {
        "method": comparison.method,
        "questions": comparison.questions,
        "revisions": dict(comparison.revisions),
        "params": {
            key: {name: json.loads(as_text(value)) for name, value in said.items()}
            for key, said in comparison.params.items()
        },
        **{name: json.loads(frame.to_json(orient="records", double_precision=15)) for name, frame in frames.items()},
        "verdicts": sentences(comparison),
        "warnings": list(comparison.warnings),
    }


def tables(comparison: Comparison) -> list[Table]:
    """Return the tables to print on a terminal."""
    return [rich_table(title, frame) for title, frame in _frames(comparison).items()]


def rich_table(title: str, frame: pd.DataFrame, left: Sequence[str] = LEFT) -> Table:
    """Return a data frame of text as a table for a terminal; the first column and those of `left` stand left."""
    table = Table(title=title, title_justify="left")
    for place, column in enumerate(frame.columns):
        table.add_column(str(column), justify="left" if place == 0 or column in left else "right")
    for row in frame.itertuples(index=False):
        table.add_row(*map(Text, row))
    return table


def to_markdown(comparison: Comparison) -> str:
    """Return the comparison as a Markdown document."""
    parts = [
        f"# {inline(_title(comparison))}",
        _list(sentences(comparison)),
        _list(comparison.warnings, "**Warning:** "),
    ]
    parts += [f"## {title}\n\n{markdown(frame, LEFT).rstrip()}" for title, frame in _frames(comparison).items()]
    parts += ["" if comparison.params else NO_PARAM, "\n\n".join(notes(comparison))]
    return "\n\n".join(part for part in parts if part) + "\n"


def to_html(comparison: Comparison) -> str:
    """Return the comparison as one HTML page that needs nothing else: no script, nothing is fetched."""
    accuracy, pairs = comparison.accuracy, comparison.pairs
    return page_template(TEMPLATE).render(
        title=_title(comparison),
        verdicts=sentences(comparison),
        warnings=comparison.warnings,
        no_param="" if comparison.params else NO_PARAM,
        frames=_frames(comparison),
        left=LEFT,
        drawn={
            ACCURACY: _places(accuracy, "accuracy", [True] * len(accuracy), ()),
            PAIRS: _places(pairs, "difference", list(pairs["verdict"] != NO_DIFFERENCE), (0.0,)),
        },
        notes=notes(comparison),
    )


def notes(comparison: Comparison) -> list[str]:
    """Return what a reader of the numbers must know."""
    tests = " or ".join(sorted(set(comparison.pairs["test"])))
    rows = words.count(len(comparison.pairs), "row")
    return [
        f"{words.LABELS[comparison.method]} on {words.count(comparison.questions, 'test question')}, the same in all "
        "runs. Accuracies in percent, differences in points, both with 95 % bootstrap intervals over questions and "
        "seeds.",
        f"p: {tests} test, Holm-corrected over the {rows} of the table. McNemar: the exact test for each seed that "
        "both runs have, the smallest p times the number of these seeds, then Holm-corrected; for scores of 0 and 1.",
        "“No difference shown” stands where the interval holds 0 or p (Holm) is not below 0.05. The least detectable "
        "difference (80 % power, before correction) says how large a difference would have had to be.",
        "Same list: prompts with the same demos in the same order. Overlap: shared demos out of all demos of both "
        "prompts (Jaccard). Both for the seeds that both runs have.",
    ]


def _title(comparison: Comparison) -> str:
    names = [f"{name} ({revision[:7]})" if revision else name for name, revision in comparison.revisions.items()]
    return f"{words.LABELS[comparison.method]}: {', '.join(names[:-1])} and {names[-1]}"


def _frames(comparison: Comparison) -> dict[str, pd.DataFrame]:
    """Return the tables as text, by title."""
    frames = {ACCURACY: _accuracy(comparison), PAIRS: _pairs(comparison), AGREEMENT: _agreement(comparison)}
    return frames | ({PARAMS: _params(comparison)} if comparison.params else {})


def _accuracy(comparison: Comparison) -> pd.DataFrame:
    rows = [
        {
            "shots": str(row["shots"]),
            "run": row["run"],
            "accuracy": words.percent(row["accuracy"]),
            "95 % interval": words.percent_interval(row["ci_low"], row["ci_high"]),
            "seeds": str(row["seeds"]),
            "std over seeds": words.percent(row["seed_std"]),
        }
        for row in comparison.accuracy.to_dict("records")
    ]
    return pd.DataFrame(rows)


def _pairs(comparison: Comparison) -> pd.DataFrame:
    rows = [
        {
            "run": row["run_a"],
            "against": row["run_b"],
            "shots": str(row["shots"]),
            "difference": words.points(row["difference"]),
            "95 % interval": words.points_interval(row["ci_low"], row["ci_high"]),
            "p (Holm)": words.p_value(row["p_holm"]),
            "McNemar (Holm)": _p_value(row["mcnemar_holm"]),
            "least detectable": words.percent(row["least_detectable_difference"]),
            "verdict": words.side(row["verdict"]),
        }
        for row in comparison.pairs.to_dict("records")
    ]
    return pd.DataFrame(rows)


def _agreement(comparison: Comparison) -> pd.DataFrame:
    rows = [
        {
            "run": row["run_a"],
            "against": row["run_b"],
            "shots": str(row["shots"]),
            "same list (%)": words.percent(row["same_list"]),
            "overlap (%)": words.percent(row["overlap"]),
            "seeds in common": str(row["matched_seeds"]),
        }
        for row in comparison.pairs.to_dict("records")
    ]
    return pd.DataFrame(rows)


def _params(comparison: Comparison) -> pd.DataFrame:
    rows = [
        {"key": key, **{name: as_text(said[name]) if name in said else words.NOTHING for name in comparison.revisions}}
        for key, said in comparison.params.items()
    ]
    return pd.DataFrame(rows)


def _p_value(p: float) -> str:
    return words.NOTHING if math.isnan(p) else words.p_value(p)


def _sentence(rows: pd.DataFrame) -> str:
    """Return what the rows of a pair say at the largest shot count."""
    row = rows.loc[rows["shots"].idxmax()]
    a, b, at = row["run_a"], row["run_b"], words.count(int(row["shots"]), "shot")
    interval = f"95 % interval {words.points(row['ci_low'])} to {words.points(row['ci_high'])}"
    p = f"Holm p {words.p_value(row['p_holm'])}"
    if row["verdict"] != NO_DIFFERENCE:
        size = words.percent(abs(row["difference"]))
        return f"{a} is {size} points {words.side(row['verdict'])} {b} at {at} ({interval}, {p})."
    least = row["least_detectable_difference"]
    power = (
        "the difference is the same on every question"
        if math.isnan(least)
        else f"a difference of {words.percent(least)} points would have been found with 80 % power"
    )
    difference = f"difference {words.points(row['difference'])} points"
    return f"No difference shown between {a} and {b} at {at} ({difference}, {interval}, {p}; {power})."


def _list(lines: Sequence[str], prefix: str = "") -> str:
    return "\n".join(f"- {prefix}{inline(line)}" for line in lines)


def _places(frame: pd.DataFrame, value: str, shown: Sequence[bool], also: Sequence[float]) -> list[dict[str, Any]]:
    """Return for each row where its interval is drawn on one axis, from 0 to 100, that holds all rows and `also`."""
    low, high = min([*frame["ci_low"], *also]), max([*frame["ci_high"], *also])
    scale = 92 / ((high - low) or 1.0)

    def place(number: float) -> str:
        return f"{4 + (number - low) * scale:.2f}"

    return [
        {
            "low": place(row["ci_low"]),
            "high": place(row["ci_high"]),
            "at": place(row[value]),
            "marks": [place(number) for number in also],
            "shown": filled,
        }
        for row, filled in zip(frame.to_dict("records"), shown, strict=True)
    ]
