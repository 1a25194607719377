"""Outcomes of the stored dialogues of the recipe `clarify`, a row each, and tables of them."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
from statsmodels.stats.proportion import proportion_confint

from leverlab.errors import LeverlabError
from leverlab.evaluation.statistics import bootstrap_interval
from leverlab.lm.questions import Question
from leverlab.lm.records import DialogueRecord

POLICIES = ("sft", "rce", "grpo", "dpo")
PROPORTIONS = (
    "success",
    "need_success",
    "over_clarification",
    "over_all",
    "ask_recall",
    "format",
    "grounded_thoughts",
    "spam",
)
ALL_SEEDS = "all"  # in the column `seed` of tables
DIGITS = 6  # after the point, of figures in files
_SHOWN = 5  # offenders that an error names


def outcomes(records: Iterable[DialogueRecord], questions_by_split: Mapping[str, Sequence[Question]]) -> pd.DataFrame:
    """Return one row per dialogue, sorted by split, policy, seed, temperature and question.

    Columns: split, policy, seed, temperature, question (its id), family, kind, needs_ask, success, asked (for
    anything), asked_needed (for the fact that is needed), asks, redundant_asks (all but the first for that fact),
    turns, parses and thought (every turn does), grounded_thoughts (every turn has one), spam, end, tokens, confidence.

    Every policy and seed must have the same temperatures and splits, and one dialogue on every question of each.
    Raises `LeverlabError` naming the first that are missing, stand twice, or are on unknown questions or of unknown
    policies.
    """
    known = _known(questions_by_split)
    found = list(records)
    _check_records(found, known)
    frame = pd.DataFrame([_outcome(record, *known[record.question]) for record in found])
    _check_complete(frame, {split: {q.id for q in questions} for split, questions in questions_by_split.items()})
    return frame.sort_values(["split", "policy", "seed", "temperature", "question"], ignore_index=True)


def counted(outcomes: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Return the rows that `measure`, one of `PROPORTIONS` or "turns", is the mean over, with what counts as `value`.

    success: the final answer is right. need_success: the same on questions that need an ask. over_clarification: asked
    on a question that needs no ask. over_all: the same among all questions (the convention of the predecessor).
    ask_recall: on questions that need an ask, the needed fact was asked for. format: every turn parses and thinks
    first. grounded_thoughts: every turn has a thought about what the policy was told (`Dialogue.grounded_thoughts`), as
    the reward's term `thought` pays it. spam: more than 3 asks, or the same twice.
    """
    needed = outcomes["needs_ask"]
    every = pd.Series(True, index=outcomes.index)
    on, value = {
        "success": (every, outcomes["success"]),
        "need_success": (needed, outcomes["success"]),
        "over_clarification": (~needed, outcomes["asked"]),
        "over_all": (every, outcomes["asked"] & ~needed),
        "ask_recall": (needed, outcomes["asked_needed"]),
        "format": (every, outcomes["parses"] & outcomes["thought"]),
        "grounded_thoughts": (every, outcomes["grounded_thoughts"]),
        "spam": (every, outcomes["spam"]),
        "turns": (every, outcomes["turns"]),
    }[measure]
    return outcomes.assign(value=value.astype(float))[on]


def matrix(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return `column` as seeds x questions, both sorted, so that the order of the rows does not matter."""
    return rows.pivot(index="seed", columns="question", values=column).sort_index(axis=0).sort_index(axis=1)


def figures(outcomes: pd.DataFrame) -> dict[str, float]:
    """Return the figures of dialogues: `PROPORTIONS`, ask_precision, redundant_asks and turns.

    ask_precision: asks that were needed / all asks, over all dialogues together. The first ask for a fact that its
    question needs was needed; `Dialogue.needless_asks` counts the others. redundant_asks, turns: per dialogue.
    What has nothing to be a share of (need_success when no question needs an ask, ask_precision when nobody asked) is
    NaN.
    """
    found = {measure: _mean(counted(outcomes, measure)["value"]) for measure in PROPORTIONS}
    asks, redundant = int(outcomes["asks"].sum()), int(outcomes["redundant_asks"].sum())
    return found | {
        "ask_precision": (asks - redundant) / asks if asks else math.nan,
        "redundant_asks": _mean(outcomes["redundant_asks"]),
        "turns": _mean(outcomes["turns"]),
    }


def table(
    outcomes: pd.DataFrame,
    by: Sequence[str] = ("policy", "temperature", "split"),
    resamples: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the `figures` of every group of `by`: a row per seed, then one over all seeds (seed "all").

    by: columns of `outcomes`, "family" or "kind" among them for a finer table. Together with seed and question they
        must tell dialogues apart.
    Columns: `by`, seed (text), n and needed (questions, and those that need an ask), the figures, and beside each of
    `PROPORTIONS` its 95 % interval, <name>_low and <name>_high. The questions of one seed are draws of their own:
    Wilson's interval. Seeds share their questions, so that their dialogues are not: over all seeds it is the bootstrap
    over seeds x questions. ask_precision has none, for the asks of a dialogue hang together.
    Raises `LeverlabError` when `by` leaves two dialogues on one question in a group.
    """
    if "policy" not in by or outcomes.duplicated([*by, "seed", "question"]).any():
        raise LeverlabError(
            f"a table by {', '.join(by) or 'nothing'} mixes dialogues of several policies or temperatures; "
            "name 'policy' and 'temperature' among the columns to group by"
        )
    groups = dict(iter(outcomes.groupby(list(by))))
    result = []
    for key in sorted(groups, key=lambda key: [_place(*pair) for pair in zip(by, key, strict=True)]):
        rows, names = groups[key], dict(zip(by, key, strict=True))
        for number, of_seed in rows.groupby("seed"):
            result.append(names | {"seed": str(number)} | _row(of_seed, {m: _wilson(of_seed, m) for m in PROPORTIONS}))
        intervals = {m: _bootstrap(rows, m, resamples, seed) for m in PROPORTIONS}
        result.append(names | {"seed": ALL_SEEDS} | _row(rows, intervals))
    return pd.DataFrame(result)


def each_leaf(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return nested mappings and lists with `change` made to every value in them."""
    if isinstance(value, Mapping):
        return {key: each_leaf(part, change) for key, part in value.items()}
    return [each_leaf(part, change) for part in value] if isinstance(value, list | tuple) else change(value)


def plain(value: Any) -> Any:
    """Return nested figures as JSON can hold them: 6 digits after the point, null for what is not finite."""
    return each_leaf(value, _plain)


def unplain(value: Any) -> Any:
    """Return what `plain` made as gates read it: null is NaN again, which passes none."""
    return each_leaf(value, lambda leaf: math.nan if leaf is None else leaf)


def _plain(leaf: Any) -> Any:
    if not isinstance(leaf, float):
        return leaf
    return round(leaf, DIGITS) if math.isfinite(leaf) else None


def _known(questions_by_split: Mapping[str, Sequence[Question]]) -> dict[str, tuple[str, Question]]:
    known: dict[str, tuple[str, Question]] = {}
    for split, questions in questions_by_split.items():
        if not questions:
            raise LeverlabError(f"the split '{split}' holds no question; raise their number, or leave it out")
        for question in questions:
            if question.id in known:
                raise LeverlabError(
                    f"the question '{question.id}' of the split '{split}' stands in '{known[question.id][0]}' already; "
                    "every id must be unique over all splits"
                )
            known[question.id] = split, question
    return known


def _check_records(records: Sequence[DialogueRecord], known: Mapping[str, Any]) -> None:
    if not records:
        raise LeverlabError("there is no dialogue to summarise; run the stage that writes them (infer-800)")
    _refuse("are on questions of no split", sorted({record.question for record in records} - set(known)))
    others = {record.policy for record in records} - set(POLICIES)
    _refuse(f"are of policies other than {', '.join(POLICIES)}", sorted(others))
    times = Counter((record.policy, record.seed, record.temperature, record.question) for record in records)
    twice = sorted(key for key, count in times.items() if count > 1)
    _refuse("stand more than once", [f"{_run(*key[:3])} on '{key[3]}'" for key in twice])


def _check_complete(frame: pd.DataFrame, ids: Mapping[str, set[str]]) -> None:
    held = {key: set(rows["question"]) for key, rows in frame.groupby(["policy", "seed", "temperature", "split"])}
    places = sorted({key[2:] for key in held})
    _refuse("leave out whole splits", [split for split in ids if split not in {place[1] for place in places}])
    problems = []
    for policy, number in sorted({key[:2] for key in held}):
        for temperature, split in places:
            lacks = sorted(ids[split] - held.get((policy, number, temperature, split), set()))
            if lacks:
                some = f"{len(lacks)} of the {len(ids[split])} questions of '{split}' ({', '.join(lacks[:3])})"
                problems.append(f"{_run(policy, number, temperature)} lacks {some}")
    _refuse("are not complete", problems)


def _refuse(what: str, offenders: Sequence[str]) -> None:
    if offenders:
        more = f"; and {len(offenders) - _SHOWN} more" if len(offenders) > _SHOWN else ""
        raise LeverlabError(
            f"the dialogues {what}: {'; '.join(offenders[:_SHOWN])}{more}; there must be one of every policy, seed "
            "and temperature on every question: run the stage that writes them (infer-800) again"
        )


def _run(policy: str, seed: int, temperature: float) -> str:
    return f"'{policy}' seed {seed} at temperature {temperature:g}"


def _outcome(record: DialogueRecord, split: str, question: Question) -> dict[str, Any]:
    dialogue = record.dialogue(question)
    return {
        "split": split,
        "policy": record.policy,
        "seed": record.seed,
        "temperature": record.temperature,
        "question": question.id,
        "family": question.family,
        "kind": question.kind,
        "needs_ask": question.needs_ask,
        "success": dialogue.success,
        "asked": bool(dialogue.asks),
        "asked_needed": question.needs_ask and question.slot in dialogue.asks,
        "asks": len(dialogue.asks),
        "redundant_asks": dialogue.needless_asks,
        "turns": len(dialogue.turns),
        "parses": all(turn.parses for turn in dialogue.turns),
        "thought": all(turn.thought for turn in dialogue.turns),
        "grounded_thoughts": all(dialogue.grounded_thoughts),
        "spam": dialogue.spam,
        "end": record.end,
        "tokens": record.tokens,
        "confidence": record.confidence,
    }


def _mean(values: pd.Series) -> float:
    return float(values.mean()) if len(values) else math.nan


def _place(column: str, value: Any) -> Any:
    return POLICIES.index(value) if column == "policy" else value


def _row(rows: pd.DataFrame, intervals: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    asked_on = rows.drop_duplicates("question")
    found: dict[str, float] = {"n": len(asked_on), "needed": int(asked_on["needs_ask"].sum())}
    for name, value in figures(rows).items():
        found[name] = value
        if name in intervals:
            found[f"{name}_low"], found[f"{name}_high"] = intervals[name]
    return found


def _wilson(rows: pd.DataFrame, measure: str) -> tuple[float, float]:
    values = counted(rows, measure)["value"]
    if values.empty:
        return math.nan, math.nan
    low, high = proportion_confint(int(values.sum()), len(values), method="wilson")
    return float(low), float(high)


def _bootstrap(rows: pd.DataFrame, measure: str, resamples: int, seed: int) -> tuple[float, float]:
    scores = matrix(counted(rows, measure), "value")
    return bootstrap_interval(scores, resamples, seed=seed)[1:] if scores.size else (math.nan, math.nan)
