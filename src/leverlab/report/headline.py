"""The first sentence of the report, made from its numbers."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from leverlab.evaluation.statistics import NO_DIFFERENCE
from leverlab.evaluation.summary import LIFT_SHOTS, METHODS, RETRIEVAL
from leverlab.report.words import LABELS, count, percent, points

SPACE = "\u00a0"  # keeps a number and its unit on one line
LEARNED = ("grpo", "rce", "sft")


@dataclass(frozen=True)
class Lift:
    """One comparison of the headline: the other method in the sentence and in the table, and its row."""

    phrase: str
    role: str
    comparison: dict[str, Any]


@dataclass(frozen=True)
class Headline:
    """The subject of the report, its row of the shots table, the lifts over its references, and the sentence."""

    subject: str
    cell: dict[str, Any]
    lifts: tuple[Lift, ...]
    sentence: str


def subject_of(methods: set[str]) -> str:
    """Return the method that the report is about: GRPO, else the last training stage, else the last baseline."""
    present = [*(name for name in LEARNED if name in methods), *(name for name in METHODS[::-1] if name in methods)]
    others = [name for name in present if name != "oracle"]
    return (others or present)[0]


def headline(shots: pd.DataFrame, comparisons: pd.DataFrame) -> Headline:
    """Return the headline at 4 shots, or at the subject's largest shot count when 4 is not there.

    shots: rows of reports/shots.csv with a column `seeds`. comparisons: those of the subject with every other method.
    The best retrieval baseline is the one with the highest test accuracy at that shot count.
    """
    subject = subject_of(set(shots["method"]))
    cells = {cell["shots"]: cell for cell in shots[shots["method"] == subject].to_dict("records")}
    at = LIFT_SHOTS if LIFT_SHOTS in cells else max(cells)
    cell = cells[at]
    rows = {row["method_b"]: row for row in comparisons[comparisons["shots"] == at].to_dict("records")}
    retrieval = shots[shots["method"].isin(RETRIEVAL) & (shots["shots"] == at) & (shots["method"] != subject)]
    references = [("sft", "SFT", ""), ("sft_control", "the control of equal budget", "equal budget")]
    if len(retrieval):
        best = str(retrieval.loc[retrieval["accuracy"].idxmax(), "method"])
        references.append((best, f"the best retrieval baseline ({LABELS[best].lower()})", "best retrieval baseline"))
    lifts = tuple(Lift(phrase, role, rows[name]) for name, phrase, role in references if name in rows)
    n = count(cell["n"], "test question")
    reaches = "reach" if LABELS[subject].endswith("demos") else "reaches"
    opening = (
        f"With {count(at, 'demo')}, {LABELS[subject]} {reaches} {percent(cell['accuracy'])}{SPACE}% accuracy on {n}"
    )
    return Headline(subject, cell, lifts, _joined(opening, [_phrase(lift) for lift in lifts]) + ".")


def _phrase(lift: Lift) -> str:
    difference = lift.comparison["difference"]
    if lift.comparison["verdict"] == NO_DIFFERENCE:
        return f"no difference shown from {lift.phrase} ({points(difference)}{SPACE}points)"
    side = "above" if difference > 0 else "below"
    return f"{percent(abs(difference))}{SPACE}points {side} {lift.phrase}"


def _joined(opening: str, phrases: list[str]) -> str:
    if not phrases:
        return opening
    *first, last = phrases
    return f"{opening}: {', '.join(first)}{' and ' if first else ''}{last}"
