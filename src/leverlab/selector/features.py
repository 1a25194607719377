"""Features of demos and questions: one row of vectors for each id, as a parquet file holds them."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from leverlab.errors import LeverlabError
from leverlab.records import read_table

Vectors = NDArray[np.float32]
_PARTS = ("image", "question", "answer")
_SCHEMA = pa.schema([("id", pa.string()), *((name, pa.list_(pa.float32())) for name in _PARTS)])


@dataclass(frozen=True)
class FeatureTable:
    """Vectors of N examples, float32; the width D may differ between image, question and answer.

    Raises `LeverlabError` for shapes that do not fit, a duplicate id, NaN or an infinite value. The answer vector of a
    query is known to prepare only because the question is labelled: a selector may look at the answers of demos, never
    at the query's.
    """

    ids: tuple[str, ...]
    image_ND: Vectors
    question_ND: Vectors
    answer_ND: Vectors

    def __post_init__(self) -> None:
        for name in _PARTS:
            vectors: Vectors = getattr(self, f"{name}_ND")
            if vectors.ndim != 2 or len(vectors) != len(self.ids) or vectors.dtype != np.float32:
                raise LeverlabError(
                    f"{name} features must be float32 of shape ({len(self.ids)} ids, D), not {vectors.dtype} of "
                    f"{vectors.shape}"
                )
            bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
            if len(bad):
                raise LeverlabError(
                    f"the {name} features of '{self.ids[bad[0]]}' hold NaN or infinity, and so do {len(bad) - 1} more; "
                    "look at the image and at the encoder's dtype"
                )
        if len(self._row_of) != len(self.ids):
            raise LeverlabError("features hold an id twice; ids must be unique")

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {identifier: row for row, identifier in enumerate(self.ids)}

    def rows(self, ids: Iterable[str]) -> NDArray[np.int64]:
        """Return the row of each id, int64. Raises `LeverlabError` for an id that has none."""
        try:
            return np.asarray([self._row_of[identifier] for identifier in ids], dtype=np.int64)
        except KeyError as error:
            raise LeverlabError(
                f"'{error.args[0]}' is a demo id that no pool has, nor is it a question's; the features were made from "
                "other data: run dvc repro prepare"
            ) from None


def write_features(path: Path, table: FeatureTable) -> None:
    """Write `table` as parquet: id, and image, question and answer as list<float>."""
    columns: dict[str, pa.Array] = {"id": pa.array(table.ids, pa.string())}
    for name in _PARTS:
        vectors: Vectors = getattr(table, f"{name}_ND")
        offsets = np.arange(len(table.ids) + 1, dtype=np.int32) * vectors.shape[1]
        columns[name] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(vectors.ravel()))
    pq.write_table(pa.table(columns), path, write_page_checksum=True)


def read_features(path: Path) -> FeatureTable:
    """Return the table at `path`. Raises `LeverlabError` when the file is missing, damaged, ragged or not finite."""
    table = read_table(path, _SCHEMA)
    ids = tuple(table["id"].to_pylist())
    vectors = []
    for name in _PARTS:
        column = table[name].combine_chunks()
        widths = pc.unique(pc.list_value_length(column)).to_pylist()
        if len(widths) != 1 or not widths[0] or column.flatten().null_count:
            raise LeverlabError(
                f"{path}: column '{name}' must hold lists of one length from 1 on without gaps, not of {widths}; run "
                "dvc repro prepare"
            )
        vectors.append(column.flatten().to_numpy().reshape(len(ids), widths[0]).copy())
    try:
        return FeatureTable(ids, *vectors)
    except LeverlabError as error:
        raise LeverlabError(f"{path}: {error}") from None
