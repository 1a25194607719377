"""The health of any groups file, by the limits and the reward of params.yaml: what rl-data checks, at any time."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from leverlab.config.base import parse_section, read_params
from leverlab.config.reward import RewardParams
from leverlab.config.rl_data import RlDataParams
from leverlab.config.vlm import EvalParams
from leverlab.errors import LeverlabError
from leverlab.evaluation.health import (
    Finding,
    answer_probabilities,
    failures,
    flat_groups,
    headroom,
    health_report,
    positives,
    winner_groups,
)
from leverlab.records import read_table
from leverlab.selector.candidates import read_candidates
from leverlab.training.groups import GROUP_SCHEMA, TERMS, read_groups
from leverlab.training.reward import list_reward

_POOL_IDS = pa.schema([("id", pa.string())])
_SIGNS = {"at_least": "≥", "at_most": "≤"}


def groups_health(root: Path, file: Path, prepared: Path | None) -> list[Finding]:
    """Return the findings of the health report on the groups in `file`, by `params.yaml` in `root`.

    prepared: the folder that the groups were made from; None leaves out the five findings on candidates and pool.
    Raises `LeverlabError` when a file is missing or damaged, when the groups do not have the `eval.shots` and the
    reward terms of params, and when `prepared` offers a query no candidates.
    """
    params = read_params(root / "params.yaml")
    limits = parse_section(RlDataParams, "rl_data", params).health
    reward = parse_section(RewardParams, "reward", params)
    table = _read(file, parse_section(EvalParams, "eval", params).shots)
    rewards = _rewards(table, reward)
    if prepared is not None:
        pool_file = prepared / "pool.parquet"
        pool_ids = _pool_ids(prepared, pool_file)
        return health_report(table, _offered(prepared, pool_ids, table), {str(pool_file): pool_ids}, limits, rewards)
    return [
        flat_groups(table["query_id"].tolist(), rewards, limits.max_flat_groups),
        winner_groups(table, limits.max_winner_groups),
        *positives(table, limits.min_positives),
        *headroom(table, limits.min_oracle_accuracy, limits.max_random_accuracy, limits.min_headroom),
        *answer_probabilities(table, limits.min_answer_prob_median, limits.max_answer_prob_tiny),
    ]


def _read(file: Path, shots: int) -> pd.DataFrame:
    """Return one row a trajectory, after every check that training makes on the file."""
    if not read_groups(file, shots):
        raise LeverlabError(f"{file} holds no groups; run the stage that writes it again")
    table: pd.DataFrame = read_table(file, GROUP_SCHEMA).to_pandas()
    return table


def _rewards(table: pd.DataFrame, reward: RewardParams) -> NDArray[np.float64]:
    terms = {term: np.stack(table[term].tolist()).astype(np.float64) for term in TERMS}
    return list_reward(reward, terms, 0.0)


def _pool_ids(prepared: Path, pool_file: Path) -> list[str]:
    if not prepared.is_dir():
        raise LeverlabError(
            f"{prepared}, the prepared data to check demos against, is no folder; run dvc repro prepare, name another "
            "with --prepared, or leave these checks out with --alone"
        )
    ids: list[str] = read_table(pool_file, _POOL_IDS)["id"].to_pylist()
    return ids


def _offered(prepared: Path, pool_ids: Sequence[str], table: pd.DataFrame) -> pd.DataFrame:
    """Return the candidates of set 0, which rl-data and the training on its groups use, of every query."""
    candidates = read_candidates(prepared / "candidates.parquet", pool_ids)
    query_ids = table["query_id"].unique().tolist()
    return pd.DataFrame({"query_id": query_ids, "candidates": [candidates.of(query, 0) for query in query_ids]})


def render(file: Path, findings: Sequence[Finding]) -> Table:
    """Return the findings as a table to print; those beyond their limits are red and say FAIL."""
    caption = f"{len(failures(findings))} of {len(findings)} checks fail"
    grid = Table(title=Text(f"Health of {file}"), caption=Text(caption))
    grid.add_column("check", no_wrap=True)
    grid.add_column("value", justify="right", no_wrap=True)
    grid.add_column("limit", no_wrap=True)
    grid.add_column("", no_wrap=True)
    grid.add_column("meaning", overflow="fold")
    for finding in findings:
        limit, verdict = f"{_SIGNS[finding.direction]} {finding.limit:.6g}", "ok" if finding.ok else "FAIL"
        cells = (finding.name, f"{finding.value:.6g}", limit, verdict, finding.meaning)
        grid.add_row(*map(Text, cells), style=None if finding.ok else "red")
    return grid
