"""Candidates: the K demos of the pool that a sampler offers for one query, in one or several sets."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from leverlab.errors import LeverlabError
from leverlab.records import Example, read_table, write_table
from leverlab.selector.features import FeatureTable

SAMPLERS = ("random", "text_sim", "image_sim", "mix")
NEIGHBOURHOOD = 4  # sets after the first are drawn from the 4 K most similar demos
_SCHEMA = pa.schema(
    [("split", pa.string()), ("query_id", pa.string()), ("set", pa.int64()), ("candidates", pa.list_(pa.string()))]
)
_Rows = NDArray[np.int64]


@dataclass(frozen=True)
class CandidateSet:
    """One set of candidates of one query; sets are numbered from 0."""

    split: str
    query_id: str
    set_index: int
    candidates: tuple[str, ...]


def unit_vectors(vectors_ND: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the rows of `vectors_ND` with length 1, so that their products are cosines.

    Raises `LeverlabError` for a row of zeros, whose cosine is undefined.
    """
    vectors = vectors_ND.astype(np.float64)
    norms_N1 = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not norms_N1.all():
        raise LeverlabError("a feature vector is all zeros and has no cosine similarity; check the encoder")
    units: NDArray[np.float64] = vectors / norms_N1
    return units


def draw_candidates(
    sampler: str,
    split: str,
    queries: Sequence[Example],
    pool: Sequence[Example],
    features: FeatureTable,
    candidates: int,
    sets: int,
    seed: int,
) -> list[CandidateSet]:
    """Return `sets` sets of `candidates` distinct demos for each query; never a demo with the query's own image.

    An image is the query's own by its `image_id`, or by its pixels.
    `random` draws uniformly. `text_sim` and `image_sim` take the most similar demos by the cosine of question or image
    vectors: set 0 is the K most similar (ties broken at random), later sets are drawn uniformly from the 4 K most
    similar, so that they differ. `mix` takes half by text and half by image in this way, drops what comes twice, and
    fills up with random demos. Candidates stand in random order: their position tells nothing about similarity.

    A set is a function of the data, `seed`, the query's id and the set's number, not of the other queries. Raises
    `LeverlabError` for an unknown sampler, fewer eligible demos than K, an id without features, or an image that cannot
    be decoded.
    """
    if sampler not in SAMPLERS:
        raise LeverlabError(f"prepare.sampler = '{sampler}' is not known; use one of {list(SAMPLERS)}")
    pool_ids, pool_images = [demo.id for demo in pool], np.asarray([demo.image_id for demo in pool])
    pool_pixels = np.asarray([demo.pixels for demo in pool])
    pool_rows, query_rows = features.rows(pool_ids), features.rows(query.id for query in queries)
    units = [
        (unit_vectors(table[query_rows]), unit_vectors(table[pool_rows]))
        for name, table in (("text_sim", features.question_ND), ("image_sim", features.image_ND))
        if sampler in (name, "mix")
    ]
    drawn = []
    for row, query in enumerate(queries):
        eligible = np.flatnonzero((pool_images != query.image_id) & (pool_pixels != query.pixels))
        if len(eligible) < candidates:
            raise LeverlabError(
                f"query '{query.id}' has {len(eligible)} eligible demos in the pool of {len(pool)} (those of its own "
                f"image are left out), but prepare.candidates = {candidates}; enlarge the pool or lower the candidates"
            )
        # rounded, so that equal vectors tie whatever the rounding of their sums
        similarities = [np.round(demos_ND @ queries_QD[row], 6) for queries_QD, demos_ND in units]
        for set_index in range(sets):
            rng = _generator(seed, query.id, set_index)
            chosen = rng.permutation(_choose(similarities, eligible, candidates, set_index, rng))
            drawn.append(CandidateSet(split, query.id, set_index, tuple(pool_ids[demo] for demo in chosen)))
    return drawn


def _generator(seed: int, query_id: str, set_index: int) -> np.random.Generator:
    digest = np.frombuffer(hashlib.sha256(query_id.encode()).digest(), dtype="<u4")
    return np.random.default_rng([seed, set_index, *digest.tolist()])


def _choose(
    similarities: Sequence[NDArray[np.float64]], eligible: _Rows, count: int, set_index: int, rng: np.random.Generator
) -> _Rows:
    """Return `count` distinct rows of `eligible`: an equal share by each similarity, the rest at random."""
    nearest: list[int] = []
    for index, similarity in enumerate(similarities):
        share = count // len(similarities) + (index < count % len(similarities))
        shuffled = rng.permutation(eligible)
        ranked = shuffled[np.argsort(-similarity[shuffled], kind="stable")]
        if set_index > 0:
            ranked = rng.permutation(ranked[: NEIGHBOURHOOD * share])
        nearest += ranked[:share].tolist()
    chosen = np.asarray(list(dict.fromkeys(nearest)), dtype=np.int64)
    if len(chosen) == count:
        return chosen
    rest = rng.permutation(eligible[~np.isin(eligible, chosen)])
    return np.concatenate([chosen, rest[: count - len(chosen)]])


class Candidates:
    """The candidate sets of all queries, looked up by query id."""

    def __init__(self, sets: Iterable[CandidateSet], pool_ids: Iterable[str], where: str):
        """Index `sets`; `where` opens error messages.

        Raises `LeverlabError` when a candidate is not in the pool or comes twice in a set, and when sets are missing,
        repeated or of unequal size.
        """
        pool, by_query, self._where = set(pool_ids), dict[str, dict[int, tuple[str, ...]]](), where
        size = None
        for item in sets:
            name = f"{where}: set {item.set_index} of query '{item.query_id}'"
            unknown = [demo for demo in item.candidates if demo not in pool]
            if unknown:
                raise LeverlabError(f"{name} holds '{unknown[0]}', a demo id that no pool has; run dvc repro prepare")
            size = len(item.candidates) if size is None else size
            if len(item.candidates) != size or len(set(item.candidates)) != size or not size:
                raise LeverlabError(f"{name} must hold {size} distinct demos as the others do; run dvc repro prepare")
            numbered = by_query.setdefault(item.query_id, {})
            if item.set_index in numbered:
                raise LeverlabError(f"{name} comes twice; run dvc repro prepare")
            numbered[item.set_index] = item.candidates
        for query_id, numbered in by_query.items():
            if sorted(numbered) != list(range(len(numbered))):
                raise LeverlabError(
                    f"{where}: query '{query_id}' has the sets {sorted(numbered)}, not 0, 1, …; run dvc repro prepare"
                )
        self._by_query = by_query

    def of(self, query_id: str, set_index: int) -> tuple[str, ...]:
        """Return the K candidates of a query in set `set_index`. Raises `LeverlabError` where there is no such set."""
        found = self._by_query.get(query_id, {}).get(set_index)
        if found is None:
            raise LeverlabError(
                f"{self._where} has {self.sets(query_id)} sets for query '{query_id}', none with number {set_index}"
            )
        return found

    def sets(self, query_id: str) -> int:
        """Return how many candidate sets a query has. Raises `LeverlabError` for an unknown query."""
        if query_id not in self._by_query:
            raise LeverlabError(f"{self._where} holds no candidates for query '{query_id}'; run dvc repro prepare")
        return len(self._by_query[query_id])


def write_candidates(path: Path, sets: Iterable[CandidateSet]) -> None:
    """Write `sets` as parquet: split, query_id, set, candidates."""
    rows = [
        {"split": item.split, "query_id": item.query_id, "set": item.set_index, "candidates": list(item.candidates)}
        for item in sets
    ]
    write_table(path, rows, _SCHEMA)


def read_candidates(path: Path, pool_ids: Iterable[str]) -> Candidates:
    """Return the candidates at `path`, all of them checked to be in the pool. Raises `LeverlabError` otherwise."""
    rows = read_table(path, _SCHEMA).to_pylist()
    sets = (CandidateSet(row["split"], row["query_id"], row["set"], tuple(row["candidates"] or ())) for row in rows)
    return Candidates(sets, pool_ids, str(path))
