"""The files of the rl-data stage: beams to imitate, and groups of scored trajectories."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from leverlab.errors import LeverlabError
from leverlab.records import read_table, write_table

TERMS = ("beam_score", "correct", "vqa_accuracy", "answer_prob", "relevance")
_ROUNDING = 1e-5  # probabilities are exponents of float32 sums
_FLOATS = pa.list_(pa.float32())
BEAM_SCHEMA = pa.schema(
    [("query_id", pa.string()), ("rank", pa.int64()), ("demos", pa.list_(pa.string())), ("beam_score", _FLOATS)]
)
GROUP_SCHEMA = pa.schema(
    [
        ("query_id", pa.string()),
        ("source", pa.string()),
        ("demos", pa.list_(pa.string())),
        *((term, _FLOATS) for term in TERMS),
    ]
)


@dataclass(frozen=True)
class Group:
    """The G trajectories of one query: demo lists of T demos and the reward terms of every prefix, (G, T)."""

    query_id: str
    lists: tuple[tuple[str, ...], ...]
    sources: tuple[str, ...]
    terms: Mapping[str, NDArray[np.float64]]

    def stopped(self) -> "Group":
        """Return the group with every list up to the first demo after which P(answer) is highest.

        Behind its end a list goes on to be answered as at its end, so the terms stay what they are there.
        """
        last_G = self.terms["answer_prob"].argmax(axis=1)
        lists = tuple(demos[: last + 1] for demos, last in zip(self.lists, last_G.tolist(), strict=True))
        steps_GT = np.minimum(np.arange(self.terms["answer_prob"].shape[1]), last_G[:, None])
        terms = {name: np.take_along_axis(values, steps_GT, axis=1) for name, values in self.terms.items()}
        return replace(self, lists=lists, terms=terms)


def write_beams(path: Path, beams: Mapping[str, Sequence[tuple[tuple[str, ...], Sequence[float]]]]) -> None:
    """Write query id → beams, best first: the demos and P(answer) after every prefix."""
    rows = [
        {"query_id": query_id, "rank": rank, "demos": list(demos), "beam_score": list(scores)}
        for query_id, ranked in beams.items()
        for rank, (demos, scores) in enumerate(ranked)
    ]
    write_table(path, rows, BEAM_SCHEMA)


def read_beams(path: Path, shots: int, stop: bool = False) -> dict[str, list[tuple[str, ...]]]:
    """Return query id → demo lists, best first; with `stop` up to the first demo after which P(answer) is highest.

    Raises `LeverlabError` for lists that do not have `shots` demos, or with `stop` as many finite probabilities.
    """
    beams: dict[str, list[tuple[str, ...]]] = {}
    for index, row in enumerate(read_table(path, BEAM_SCHEMA).to_pylist()):
        ranked = beams.setdefault(row["query_id"], [])
        if not _is_list(row["demos"], shots) or row["rank"] != len(ranked):
            raise LeverlabError(
                f"{path} row {index}: expected rank {len(ranked)} with {shots} demos, all different, found {row}"
            )
        scores = np.asarray(row["beam_score"] or [], np.float64)
        if stop and (scores.shape != (shots,) or not np.isfinite(scores).all()):
            raise LeverlabError(f"{path} row {index}: 'beam_score' must hold {shots} numbers, not {row['beam_score']}")
        ranked.append(tuple(row["demos"][: int(scores.argmax()) + 1 if stop else shots]))
    return beams


def _is_list(demos: Sequence[str | None] | None, shots: int) -> bool:
    return demos is not None and len(demos) == len(set(demos)) == shots and None not in demos


def write_groups(path: Path, groups: Sequence[Group]) -> None:
    """Write one row a trajectory."""
    rows = [
        {"query_id": group.query_id, "source": group.sources[g], "demos": list(group.lists[g])}
        | {term: group.terms[term][g].tolist() for term in TERMS}
        for group in groups
        for g in range(len(group.lists))
    ]
    write_table(path, rows, GROUP_SCHEMA)


def read_groups(path: Path, shots: int) -> list[Group]:
    """Return the groups, in the order of their first row.

    Raises `LeverlabError` for a list or a term that does not have `shots` values, a value out of range, a demo that
    comes twice in a list, and groups of unequal size.
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    for index, row in enumerate(read_table(path, GROUP_SCHEMA).to_pylist()):
        for name in ("demos", *TERMS):
            values = row[name]
            if values is None or len(values) != shots:
                raise LeverlabError(f"{path} row {index}: '{name}' must hold {shots} values, not {values!r}")
            if name != "demos" and not np.isfinite(np.asarray(values, np.float64)).all():
                raise LeverlabError(f"{path} row {index}: '{name}' holds a value that is not a number: {values!r}")
            low = -1 if name == "beam_score" else 0
            if name != "demos" and not all(low - _ROUNDING <= value <= 1 + _ROUNDING for value in values):
                raise LeverlabError(f"{path} row {index}: '{name}' must hold values in {low}..1, not {values!r}")
        if not _is_list(row["demos"], shots):
            raise LeverlabError(f"{path} row {index}: 'demos' must hold {shots} different demos, not {row['demos']}")
        rows.setdefault(row["query_id"], []).append(row)
    if len({len(group) for group in rows.values()}) > 1:
        raise LeverlabError(f"{path} holds groups of different sizes; run dvc repro rl-data")
    return [
        Group(
            query_id,
            tuple(tuple(row["demos"]) for row in group),
            tuple(row["source"] for row in group),
            {term: np.asarray([row[term] for row in group], np.float64) for term in TERMS},
        )
        for query_id, group in rows.items()
    ]
