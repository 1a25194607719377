"""The first sentences of the report of the recipe `clarify`, made from its numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from leverlab.errors import LeverlabError
from leverlab.evaluation.statistics import NO_DIFFERENCE
from leverlab.lm.acceptance import GREEDY, PAIRS
from leverlab.lm.summary import ALL_SEEDS
from leverlab.report.clarify_inputs import POLICIES
from leverlab.report.clarify_tables import of_split
from leverlab.report.headline import SPACE
from leverlab.report.words import count, percent, points, points_interval

SUBJECT, BASELINE = "grpo", "sft"
MEASURES = ("need_success", "over_clarification")
STAGES = (("rce", "sft"), ("grpo", "rce"))  # what each stage adds by itself


@dataclass(frozen=True)
class Headline:
    """What was gained, and which stage gained it; questions and seeds of the evaluation."""

    sentence: str
    credit: str
    questions: int
    needed: int
    seeds: int


def headline(splits: pd.DataFrame, comparisons: pd.DataFrame) -> Headline:
    """Return the headline on the test questions, greedy, over all seeds.

    splits, comparisons: the tables of infer-800. Raises `LeverlabError` when a policy or a comparison is not there.
    """
    rows = of_split(splits, "test", GREEDY)
    subject = rows[rows["policy"] == SUBJECT].to_dict("records")
    over_all = comparisons[comparisons["seed"] == ALL_SEEDS].to_dict("records")
    paired = {(row["policy_a"], row["policy_b"], row["measure"]): row for row in over_all}
    lacking = [f"{a} over {b}" for a, b in PAIRS[:3] for name in MEASURES if (a, b, name) not in paired]
    if not subject or lacking:
        raise LeverlabError(
            f"the tables of infer-800 lack {', '.join(dict.fromkeys(lacking)) or SUBJECT} on the test questions; "
            "run dvc repro infer-800"
        )
    found = subject[0]
    need, over = (paired[SUBJECT, BASELINE, name] for name in MEASURES)
    sentence = (
        f"On {count(int(found['n']), 'test question')}, {POLICIES[SUBJECT]} is right on "
        f"{percent(found['need_success'])}{SPACE}% of those that need an ask, {_against(need)}, and asks needlessly on "
        f"{percent(found['over_clarification'])}{SPACE}% of the others, {_against(over)}."
    )
    credit = "; ".join(_stage(a, b, {name: paired[a, b, name] for name in MEASURES}) for a, b in STAGES)
    seeds = splits[(splits["policy"] == SUBJECT) & (splits["seed"] != ALL_SEEDS)]["seed"].nunique()
    return Headline(sentence, f"{credit}.", int(found["n"]), int(found["needed"]), seeds)


def _against(row: Mapping[str, Any]) -> str:
    other, interval = POLICIES[row["policy_b"]], points_interval(row["ci_low"], row["ci_high"])
    if row["verdict"] == NO_DIFFERENCE:
        return f"no difference shown from {other} ({points(row['difference'])}{SPACE}points {interval})"
    place = "above" if row["difference"] > 0 else "below"
    return f"{percent(abs(row['difference']))}{SPACE}points {place} {other} {interval}"


def _stage(a: str, b: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    parts = []
    for name, row in rows.items():
        said = f"{points(row['difference'])}{SPACE}points {points_interval(row['ci_low'], row['ci_high'])}"
        shown = "" if row["verdict"] != NO_DIFFERENCE else f"{NO_DIFFERENCE}, "
        parts.append(f"{name.replace('_', '-')} {shown}{said}")
    return f"{POLICIES[a]} over {POLICIES[b]}: {', '.join(parts)}"
