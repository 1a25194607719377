"""Data sets that `datasets` loads, from the hub or a local copy, with every text as it was written."""

import itertools
from pathlib import Path
from typing import Any

import pyarrow as pa

from leverlab.errors import LeverlabError
from leverlab.worlds.json_rows import json_rows

_JSON = (".json", ".jsonl", ".ndjson")
BATCH = 200  # rows that become Arrow at once


def load_splits(source: str, config: str | None = None) -> dict[str, Any]:
    """Return split → `datasets.Dataset` of a hub id or a folder, or of one JSON or parquet file (split "train").

    Plain JSON files on this machine are read here: the library's own reader makes a time of a text that looks like a
    date, so that the answer "1999-01-01" is lost. Raises `LeverlabError` when a JSON file cannot be read, `ValueError`
    when it is empty, and whatever `datasets` raises.
    """
    from datasets import load_dataset, load_dataset_builder
    from datasets.packaged_modules.json.json import Json

    path = Path(source)
    if path.is_file():
        if path.suffix == ".parquet":
            return dict(load_dataset("parquet", data_files=source))
        return {"train": _of_json([path])}
    builder = load_dataset_builder(source, config)
    files = {str(split): list(map(Path, names)) for split, names in (builder.config.data_files or {}).items()}
    if isinstance(builder, Json) and all(map(_is_plain_json, itertools.chain(*files.values()))):
        return {split: _of_json(of_split) for split, of_split in files.items()}
    return dict(load_dataset(source, config))


def _is_plain_json(file: Path) -> bool:
    """Return whether a file is on this machine, and not compressed: the library unpacks those."""
    return file.is_file() and file.suffix in _JSON


def _of_json(files: list[Path]) -> Any:
    """Return the data set in JSON files. Only a batch of rows is in memory as Python objects, the others as Arrow."""
    from datasets import Dataset
    from datasets.fingerprint import generate_random_fingerprint

    rows = (row for file in files for _, row in json_rows(file))
    batches = iter(lambda: list(itertools.islice(rows, BATCH)), [])
    tables = [_of_rows(batch) for batch in batches]
    if not tables:
        raise ValueError("it holds no rows")
    table = pa.concat_tables(tables, promote_options="permissive")
    return Dataset(table, fingerprint=generate_random_fingerprint())  # the default pickles the whole table


def _of_rows(rows: list[dict[str, Any]]) -> pa.Table:
    columns = dict.fromkeys(key for row in rows for key in row)
    return pa.table({column: [row.get(column) for row in rows] for column in columns})


def check_no_times(data: Any, columns: list[str], where: str) -> None:
    """Raise `LeverlabError` when one of `columns` of a data set holds times where its source may have had texts."""
    for column in columns:
        if any(word in str(data.features[column]) for word in ("timestamp", "date32", "date64")):
            raise LeverlabError(
                f"{where}: column '{column}' was read as times, so texts like '1999-01-01' are lost; download the "
                "files and name their folder, or store the column as text"
            )
