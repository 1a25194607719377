"""Runs compared on the same questions: what differs in params, accuracy, paired differences and tests, agreement.

Each pair of runs is compared at every shot count that both have. Three things are said of a pair, which answer
different questions:

- *the interval and `p_value`* (`leverlab.evaluation.statistics.paired_difference`) use all seeds of both runs, averaged
  by question; the interval draws seeds in pairs where both runs have the same. They decide the verdict, after Holm's
  correction over all pairs and shot counts.
- *McNemar's exact test* asks whether two fixed sets of yes-or-no answers differ, so it applies to one seed of A and one
  of B, and to scores of 0 and 1 alone. It is made for every seed that both runs have; `mcnemar_p` is the smallest of
  these p-values times their number (Bonferroni). Seeds are not pooled, since the answers of several seeds to one
  question are not independent, and no majority is voted, since that would judge an ensemble that nobody runs.
- *agreement* compares the picks themselves, prompt by prompt, for every seed that both runs have.
"""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from leverlab.errors import LeverlabError
from leverlab.evaluation.statistics import MCNEMAR, bootstrap_interval, holm, paired_difference, verdict
from leverlab.evaluation.summary import check_answers
from leverlab.nearest import did_you_mean
from leverlab.pipeline.answers_of import Run, flat

RESAMPLES = 10_000


@dataclass(frozen=True)
class Comparison:
    """Runs compared with each other on `questions` test questions. Accuracies and differences are shares, in [0, 1].

    revisions: commit by name of the run, None for the workspace; the order is that of the request.
    params: for each dotted key that differs, the value by name of the run; a run that lacks the key is left out.
    accuracy: one row a shot count and run: shots, run, seeds, accuracy, ci_low, ci_high (95 % bootstrap interval over
        seeds and questions), seed_std (standard deviation over seeds, NaN for one seed).
    pairs: one row a pair and shot count: run_a, run_b, shots, difference (A - B), ci_low, ci_high, p_value, p_holm,
        test, b, c (questions on which A, and B, is better), least_detectable_difference (80 % power, uncorrected),
        verdict, matched_seeds, mcnemar_p, mcnemar_holm, same_list, overlap. The last two are shares of prompts with the
        same ordered list, and the mean Jaccard overlap of the sets of demos; NaN without seeds in common or demos.
    seeds: what the last five rest on, one row a pair, shot count and seed that both runs have: run_a, run_b, shots,
        seed, b, c, mcnemar_p (NaN where a score is not 0 or 1), same_list, overlap.
    warnings: sentences on what is doubtful in a run.
    """

    method: str
    questions: int
    revisions: Mapping[str, str | None]
    params: Mapping[str, Mapping[str, Any]]
    accuracy: pd.DataFrame
    pairs: pd.DataFrame
    seeds: pd.DataFrame
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Cell:
    """A run's answers at one shot count: seeds x questions, both sorted."""

    scores: pd.DataFrame
    demos: pd.DataFrame  # tuples of ids

    def of_seed(self, seed: int) -> NDArray[np.float64]:
        return self.scores.loc[[seed]].to_numpy(dtype=np.float64)


_Cells = dict[int, _Cell]  # by shot count


def compare(runs: Sequence[Run], method: str = "grpo", resamples: int = RESAMPLES) -> Comparison:
    """Return the comparison of `method` between all pairs of `runs`; a pair's numbers do not depend on their order.

    resamples: of the bootstrap and of the permutation test, at least; more are drawn where Holm's correction over many
        rows could not be passed otherwise.
    Raises `LeverlabError` for fewer than two runs, the same run twice, a method that a run lacks, unsound answers, and
    unless all runs answer the same questions.
    """
    _check_runs(runs)
    cells = {run.name: _cells(run, method) for run in runs}
    questions = _check_questions(runs, cells)
    rows = [(a, b, k) for a, b in itertools.combinations(cells, 2) for k in _common_shots(a, b, cells)]
    resamples = max(resamples, 40 * len(rows))
    seeds = pd.DataFrame(
        [{"run_a": a, "run_b": b, "shots": k, **row} for a, b, k in rows for row in _matched(cells[a][k], cells[b][k])],
        columns=["run_a", "run_b", "shots", "seed", "b", "c", "mcnemar_p", "same_list", "overlap"],
    )
    pairs = pd.DataFrame([_pair(a, b, k, cells, seeds, resamples) for a, b, k in rows])
    pairs["p_holm"] = holm(pairs["p_value"])
    pairs["mcnemar_holm"] = math.nan
    applies = pairs["mcnemar_p"].notna()
    pairs.loc[applies, "mcnemar_holm"] = holm(pairs.loc[applies, "mcnemar_p"])
    pairs["verdict"] = [verdict(*row) for row in zip(pairs["ci_low"], pairs["ci_high"], pairs["p_holm"], strict=True)]
    return Comparison(
        method=method,
        questions=questions,
        revisions={run.name: run.revision for run in runs},
        params=differing({run.name: flat(run.params) for run in runs}),
        accuracy=_accuracy(cells, resamples),
        pairs=pairs,
        seeds=seeds,
        warnings=tuple(warning for run in runs for warning in _warnings(run)),
    )


def accuracies(runs: Sequence[Run], method: str = "grpo") -> dict[str, dict[int, float]]:
    """Return the accuracy of `method` by run and shot count. Raises `LeverlabError` as `compare`."""
    _check_runs(runs)
    cells = {run.name: _cells(run, method) for run in runs}
    _check_questions(runs, cells)
    return {
        name: {shots: float(cell.scores.to_numpy().mean()) for shots, cell in sorted(of_run.items())}
        for name, of_run in cells.items()
    }


def _check_runs(runs: Sequence[Run]) -> None:
    if len(runs) < 2:
        raise LeverlabError("a comparison needs at least two runs")
    for one, other in itertools.combinations(runs, 2):
        if one.name == other.name or one.revision == other.revision:
            where = f"commit {one.revision[:7]}" if one.revision else "the workspace"
            raise LeverlabError(f"'{one.name}' and '{other.name}' are the same run ({where}); compare different ones")


def _cells(run: Run, method: str) -> _Cells:
    """Return the sound answers of `method` by shot count."""
    answers = run.answers[run.answers["method"] == method]
    if answers.empty:
        hint = did_you_mean(method, run.answers["method"], "its table `data/answers.parquet`")
        raise LeverlabError(f"'{run.name}' has no answers of the method '{method}'{hint}")
    try:
        check_answers(answers)
    except LeverlabError as error:
        raise LeverlabError(f"run '{run.name}': {error}") from None
    answers = answers.assign(demos=answers["demos"].map(tuple))
    return {
        int(str(shots)): _Cell(_grid(rows, "vqa_accuracy"), _grid(rows, "demos"))
        for shots, rows in answers.groupby("shots")
    }


def _grid(rows: pd.DataFrame, values: str) -> pd.DataFrame:
    return rows.pivot(index="seed", columns="question_id", values=values)


def _check_questions(runs: Sequence[Run], cells: Mapping[str, _Cells]) -> int:
    """Return the number of questions, the same in all runs."""
    ids = {name: set(next(iter(of_run.values())).scores.columns) for name, of_run in cells.items()}
    for one, other in itertools.combinations(runs, 2):
        lost, added = sorted(ids[one.name] - ids[other.name]), sorted(ids[other.name] - ids[one.name])
        if lost or added:
            raise LeverlabError(
                f"'{one.name}' and '{other.name}' did not answer the same questions: {len(lost)} of the "
                f"{len(ids[one.name])} of '{one.name}' are not in '{other.name}', and {len(added)} of the "
                f"{len(ids[other.name])} of '{other.name}' are not in '{one.name}' ({', '.join([*lost, *added][:3])}); "
                "compare runs with the same data params"
            )
        if one.test_set and other.test_set and one.test_set != other.test_set:
            raise LeverlabError(
                f"'{one.name}' and '{other.name}' have equal question ids, but other test questions behind them; "
                "compare runs with the same data params"
            )
    return len(ids[runs[0].name])


def _common_shots(a: str, b: str, cells: Mapping[str, _Cells]) -> list[int]:
    common = sorted(set(cells[a]) & set(cells[b]))
    if not common:
        raise LeverlabError(
            f"'{a}' has answers at {sorted(cells[a])} shots and '{b}' at {sorted(cells[b])}: none in common"
        )
    return common


def _matched(a: _Cell, b: _Cell) -> list[dict[str, Any]]:
    """Return McNemar's test and the agreement of picks for each seed that both have."""
    rows = []
    for seed in sorted(set(a.scores.index) & set(b.scores.index)):
        found = paired_difference(a.of_seed(seed), b.of_seed(seed), resamples=1)
        prompts = list(zip(a.demos.loc[seed], b.demos.loc[seed], strict=True))
        same = float(np.mean([one == other for one, other in prompts]))
        overlap = float(np.mean([_jaccard(one, other) for one, other in prompts]))
        rows.append(
            {
                "seed": seed,
                "b": found.b,
                "c": found.c,
                "mcnemar_p": found.p_value if found.test == MCNEMAR else math.nan,
                "same_list": math.nan if math.isnan(overlap) else same,
                "overlap": overlap,
            }
        )
    return rows


def _jaccard(one: Sequence[str], other: Sequence[str]) -> float:
    union = set(one) | set(other)
    return len(set(one) & set(other)) / len(union) if union else math.nan


def _pair(
    a: str, b: str, shots: int, cells: Mapping[str, _Cells], seeds: pd.DataFrame, resamples: int
) -> dict[str, Any]:
    """Return the row of A and B at a shot count, without what follows from all rows together."""
    first, second = sorted((a, b))  # the draws go to the runs by name, so that B, A gives what A, B gives
    one, other = cells[first][shots].scores, cells[second][shots].scores
    found = paired_difference(
        one.to_numpy(dtype=np.float64),
        other.to_numpy(dtype=np.float64),
        ids_a=list(one.columns),
        ids_b=list(other.columns),
        resamples=resamples,
        same_seeds=list(one.index) == list(other.index),
    )
    straight = first == a
    matched = seeds[(seeds["run_a"] == a) & (seeds["run_b"] == b) & (seeds["shots"] == shots)]
    return {
        "run_a": a,
        "run_b": b,
        "shots": shots,
        "difference": found.difference if straight else 0.0 - found.difference,
        "ci_low": found.ci_low if straight else 0.0 - found.ci_high,
        "ci_high": found.ci_high if straight else 0.0 - found.ci_low,
        "p_value": found.p_value,
        "test": found.test,
        "b": found.b if straight else found.c,
        "c": found.c if straight else found.b,
        "least_detectable_difference": found.least_detectable_difference,
        "matched_seeds": len(matched),
        "mcnemar_p": float(np.minimum(1.0, len(matched) * matched["mcnemar_p"].astype(float).min(skipna=False))),
        "same_list": matched["same_list"].astype(float).mean(),
        "overlap": matched["overlap"].astype(float).mean(),
    }


def _accuracy(cells: Mapping[str, _Cells], resamples: int) -> pd.DataFrame:
    rows = []
    for shots in sorted({shots for of_run in cells.values() for shots in of_run}):
        for name, of_run in cells.items():
            if shots not in of_run:
                continue
            scores_SN = of_run[shots].scores.to_numpy(dtype=np.float64)
            accuracy, low, high = bootstrap_interval(scores_SN, resamples)
            seed_std = float(scores_SN.mean(axis=1).std(ddof=1)) if len(scores_SN) > 1 else math.nan
            rows.append((shots, name, len(scores_SN), accuracy, low, high, seed_std))
    return pd.DataFrame(rows, columns=["shots", "run", "seeds", "accuracy", "ci_low", "ci_high", "seed_std"])


def differing(params: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return by dotted key what each run that has the key says, where not all say the same.

    params: the flat params of each run, by its name.
    """
    keys = sorted({key for of_run in params.values() for key in of_run})
    values = {key: {name: of_run[key] for name, of_run in params.items() if key in of_run} for key in keys}
    return {
        key: said
        for key, said in values.items()
        if len(said) < len(params) or len(set(map(as_text, said.values()))) > 1
    }


def as_text(value: Any) -> str:
    """Return a value of params as JSON."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)


def _warnings(run: Run) -> list[str]:
    if run.test_set:
        return list(run.warnings)
    unread = f"the test questions of '{run.name}' cannot be read: that equal ids are equal questions is not checked"
    return [*run.warnings, unread]
