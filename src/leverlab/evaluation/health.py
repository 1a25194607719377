"""Health of the reinforcement-learning data: checks that run before any training.

Every check is a pure function of tables and returns a `Finding`. The limits come from params; a value outside its limit
fails the rl-data stage, with the reason.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from leverlab.config.rl_data import HealthLimits
from leverlab.errors import LeverlabError
from leverlab.evaluation.gates import Direction, within

TINY_PROBABILITY = 1e-4
FLAT_TOLERANCE = 1e-8  # that of rl.advantages, which is not imported here: it takes torch along

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Finding:
    """One check: the measured `value`, its `limit` (itself allowed), whether it is kept, and what that says."""

    name: str
    value: float
    limit: float
    direction: Direction
    ok: bool
    meaning: str


def flat_groups(query_ids: Sequence[str], rewards: ArrayLike, max_share: float) -> Finding:
    """Return the share of groups whose trajectories all have the same reward: they carry no signal for GRPO.

    query_ids, rewards: one entry per trajectory. A group of one trajectory is flat. The meaning tells the count, and
    the median deviation of rewards inside the other groups alone.
    """
    spread, deviation = _group_spread(query_ids, rewards)
    live = spread > FLAT_TOLERANCE
    meaning = (
        f"share of groups whose trajectories all have the same reward ({int((~live).sum())} of {len(live)}); GRPO "
        "learns nothing from them"
    )
    if live.any():
        meaning += f"; median deviation of the rewards in the others {float(np.median(deviation[live])):.3g}"
    return _finding("flat_groups", float((~live).mean()), max_share, "at_most", meaning)


def winner_groups(groups: pd.DataFrame, max_share: float) -> Finding:
    """Return the share of groups in which every trajectory is correct at full length."""
    worst = pd.Series(_prefixes(groups, "correct")[:, -1]).groupby(groups["query_id"].to_numpy()).min()
    meaning = "share of groups in which every trajectory is right; nothing worse is left to learn from"
    return _finding("winner_groups", float((worst > 0).mean()), max_share, "at_most", meaning)


def positives(groups: pd.DataFrame, min_share: float) -> list[Finding]:
    """Return, per source, the share of the answers (trajectories x prefixes) that are correct."""
    correct_BT = _prefixes(groups, "correct") > 0
    sources = groups["source"].to_numpy()
    return [
        _finding(
            f"positives_{source}",
            float(correct_BT[sources == source].mean()),
            min_share,
            "at_least",
            f"share of right answers over all prefixes of the trajectories from source '{source}'; next to none means "
            "that answers are judged wrongly or that the VLM cannot do the task",
        )
        for source in sorted(set(sources.tolist()))
    ]


def headroom(groups: pd.DataFrame, min_oracle: float, max_random: float, min_headroom: float) -> list[Finding]:
    """Return the oracle's accuracy, that of random demos, and their difference, at full length.

    The oracle takes the best trajectory of each group by `vqa_accuracy`; random is the mean over source "random".
    Raises `LeverlabError` when no trajectory is from that source.
    """
    accuracy = pd.Series(_prefixes(groups, "vqa_accuracy")[:, -1], index=groups.index)
    chance = accuracy[groups["source"] == "random"]
    if chance.empty:
        raise LeverlabError("groups hold no trajectory from source 'random'; the headroom is measured against them")
    oracle, random = float(accuracy.groupby(groups["query_id"]).max().mean()), float(chance.mean())
    size = groups.groupby("query_id").size().median()
    return [
        _finding(
            "oracle_accuracy",
            oracle,
            min_oracle,
            "at_least",
            f"accuracy of the best trajectory of each group (median {size:g} trajectories): what a perfect choice "
            "among them would reach",
        ),
        _finding(
            "random_accuracy",
            random,
            max_random,
            "at_most",
            "accuracy of random demos; near 1 there is nothing to learn",
        ),
        _finding(
            "headroom",
            oracle - random,
            min_headroom,
            "at_least",
            "oracle minus random accuracy: the most that selection can gain on these trajectories",
        ),
    ]


def answer_probabilities(groups: pd.DataFrame, min_median: float, max_tiny_share: float) -> list[Finding]:
    """Return the median of `answer_prob` over all prefixes, and the share below 1e-4."""
    values = _prefixes(groups, "answer_prob").ravel()
    return [
        _finding(
            "answer_prob_median",
            float(np.median(values)),
            min_median,
            "at_least",
            "median probability of the true answer; tiny for all queries means that the answer's tokens are "
            "masked wrongly, and every reward built on it is inert",
        ),
        _finding(
            "answer_prob_tiny",
            float((values < TINY_PROBABILITY).mean()),
            max_tiny_share,
            "at_most",
            f"share of true answers with a probability below {TINY_PROBABILITY:g}",
        ),
    ]


def outside_pool(groups: pd.DataFrame, candidates: pd.DataFrame, pool_ids: Sequence[str]) -> list[Finding]:
    """Return how many distinct demo ids of candidates and of trajectories are not in the pool, and how many
    trajectories hold a demo that is not among their query's candidates (of any set). All three must be 0."""
    pool = set(pool_ids)
    offered = {query: _union(lists) for query, lists in candidates.groupby("query_id")["candidates"]}
    strangers = sum(
        not set(demos) <= offered.get(query, set())
        for query, demos in zip(groups["query_id"], groups["demos"], strict=True)
    )
    return [
        _count("candidates_outside_pool", _union(candidates["candidates"]) - pool, "candidate ids that the pool lacks"),
        _count("demos_outside_pool", _union(groups["demos"]) - pool, "demo ids of trajectories that the pool lacks"),
        _finding(
            "demos_outside_candidates",
            float(strangers),
            0.0,
            "at_most",
            "trajectories with a demo that was not among their query's candidates",
        ),
    ]


def distinct_candidates(candidates: pd.DataFrame, pool_ids: Sequence[str], min_share: float) -> Finding:
    """Return the distinct candidate ids over all queries as a share of what was possible: the pool's size, or the
    number of places in all candidate lists when that is smaller."""
    distinct, places = len(_union(candidates["candidates"])), sum(len(ids) for ids in candidates["candidates"])
    possible = min(len(pool_ids), places)
    share = distinct / possible if possible else math.nan
    meaning = (
        f"share of the possible distinct candidates that occur: {distinct} demos of a pool of {len(pool_ids)}, "
        f"in {places} places; next to none means that every query is offered the same few"
    )
    return _finding("distinct_candidates", share, min_share, "at_least", meaning)


def pool_identity(pools: Mapping[str, Sequence[str]]) -> Finding:
    """Return the number of different pools among `pools` (file -> ids), by digest. It must be 1."""
    digests = {file: pool_digest(ids, file) for file, ids in pools.items()}
    listed = ", ".join(f"{file} {digest[:12]}" for file, digest in digests.items())
    return _finding(
        "pool_identity",
        float(len(set(digests.values()))),
        1.0,
        "at_most",
        f"number of different pools among the files that must share one: {listed}",
    )


def pool_digest(ids: Sequence[str], where: str = "the pool") -> str:
    """Return the SHA-256 (hex) of the sorted ids: equal for the same pool in any order.

    Raises `LeverlabError` for an empty pool or an id that occurs twice.
    """
    if len(ids) == 0 or len(set(ids)) != len(ids):
        raise LeverlabError(
            f"{where} holds {len(ids)} demo ids, {len(set(ids))} of them distinct; ids must be unique and at least one"
        )
    # A length before each id: no two lists of ids share a text, whatever the ids contain.
    return hashlib.sha256("".join(f"{len(item)}:{item}" for item in sorted(ids)).encode()).hexdigest()


def health_report(
    groups: pd.DataFrame,
    candidates: pd.DataFrame,
    pools: Mapping[str, Sequence[str]],
    limits: HealthLimits,
    rewards: ArrayLike | None = None,
) -> list[Finding]:
    """Return all findings on the data that GRPO will learn from.

    groups: one row per trajectory (data/rl/groups.parquet).
    candidates: the rows of data/prepared/candidates.parquet of the queries in question.
    pools: file -> demo ids; the first is the one that ids are looked up in.
    rewards: one per row of `groups`; without it the mean of `vqa_accuracy` over the prefixes.
    Raises `LeverlabError` for a table without rows or columns it needs.
    """
    _check_table("groups", groups, ("query_id", "source", "demos", "correct", "vqa_accuracy", "answer_prob"))
    _check_table("candidates", candidates, ("query_id", "candidates"))
    if not pools:
        raise LeverlabError("the health report needs the pool's ids, under the name of the file they come from")
    pool_ids = next(iter(pools.values()))
    if rewards is None:
        rewards = _prefixes(groups, "vqa_accuracy").mean(axis=1)
    return [
        pool_identity(pools),
        *outside_pool(groups, candidates, pool_ids),
        distinct_candidates(candidates, pool_ids, limits.min_distinct_candidates),
        flat_groups(groups["query_id"].tolist(), rewards, limits.max_flat_groups),
        winner_groups(groups, limits.max_winner_groups),
        *positives(groups, limits.min_positives),
        *headroom(groups, limits.min_oracle_accuracy, limits.max_random_accuracy, limits.min_headroom),
        *answer_probabilities(groups, limits.min_answer_prob_median, limits.max_answer_prob_tiny),
    ]


def failures(findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings that are not ok, in order."""
    return [finding for finding in findings if not finding.ok]


def raise_on_failures(findings: Sequence[Finding]) -> None:
    """Raise `LeverlabError` with one line per failed finding: value, limit and reason. Silent when all are ok."""
    failed = failures(findings)
    if failed:
        lines = [
            f"- {f.name} is {f.value:.6g}, must be {f.direction.replace('_', ' ')} {f.limit:.6g}: {f.meaning}"
            for f in failed
        ]
        head = f"the health report fails {len(failed)} of {len(findings)} checks; repair the data or change the limits:"
        raise LeverlabError("\n".join([head, *lines]))


def _finding(name: str, value: float, limit: float, direction: Direction, meaning: str) -> Finding:
    return Finding(name, value, limit, direction, within(value, limit, direction), meaning)


def _count(name: str, ids: set[str], meaning: str) -> Finding:
    examples = f" (such as {', '.join(sorted(ids)[:3])})" if ids else ""
    return _finding(name, float(len(ids)), 0.0, "at_most", meaning + examples)


def _union(lists: Any) -> set[str]:
    return {item for ids in lists for item in ids}


def _group_spread(query_ids: Sequence[str], rewards: ArrayLike) -> tuple[Array, Array]:
    """Return max - min and the population standard deviation of the rewards of each group."""
    values = np.asarray(rewards, dtype=np.float64)
    if values.shape != (len(query_ids),) or not np.isfinite(values).all():
        raise LeverlabError(
            f"rewards must be one finite number per trajectory, got shape {values.shape} for "
            f"{len(query_ids)} trajectories"
        )
    grouped = pd.Series(values).groupby(np.asarray(query_ids))
    return (grouped.max() - grouped.min()).to_numpy(), grouped.std(ddof=0).to_numpy()


def _prefixes(groups: pd.DataFrame, column: str) -> Array:
    """Return `column`, a list per trajectory, as an array (trajectories, prefixes)."""
    lengths = groups[column].map(len)
    if lengths.nunique() != 1 or lengths.iloc[0] == 0:
        raise LeverlabError(
            f"groups: '{column}' must hold one number per prefix, equally many in every row; it holds "
            f"{sorted(set(lengths))}"
        )
    values = np.array(groups[column].tolist(), dtype=np.float64)
    if not np.isfinite(values).all():
        raise LeverlabError(f"groups: '{column}' holds {int((~np.isfinite(values)).sum())} values that are not finite")
    return values


def _check_table(name: str, table: pd.DataFrame, columns: Sequence[str]) -> None:
    lacking = [column for column in columns if column not in table.columns]
    if lacking or table.empty:
        raise LeverlabError(
            f"{name} has {len(table)} rows and lacks the columns {lacking or 'none'}; it needs rows, "
            f"and the columns {', '.join(columns)}"
        )
