"""Data sets that `datasets` loads, from the hub or a local copy, with every text as it was written."""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from leverlab.errors import LeverlabError

_JSON = (".json", ".jsonl", ".ndjson")


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


def json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of a file of JSON lines, or of one JSON list, each with its file and line (or entry).

    A byte order mark is left out. Raises `LeverlabError` naming the place when the file is not UTF-8, not JSON, or
    holds something else than objects.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise LeverlabError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it so") from None
    lines = enumerate(text.split("\n"), start=1)  # not splitlines: texts may hold other line breaks
    places = ((f"{path} line {number}", line) for number, line in lines if line.strip())
    if re.match(r"\s*\[\s*\{", text):
        rows = ((f"{path} entry {number}", row) for number, row in enumerate(_parsed(text, str(path))))
    else:
        rows = ((where, _parsed(line, where)) for where, line in places)
    for where, row in rows:
        if not isinstance(row, dict):
            raise LeverlabError(f"{where} must be a JSON object, not {str(row)[:100]}")
        yield where, row


def _is_plain_json(file: Path) -> bool:
    """Return whether a file is on this machine, and not compressed: the library unpacks those."""
    return file.is_file() and file.suffix in _JSON


def _of_json(files: list[Path]) -> Any:
    from datasets import Dataset

    rows = [row for file in files for _, row in json_rows(file)]
    if not rows:
        raise ValueError("it holds no rows")
    columns = dict.fromkeys(key for row in rows for key in row)  # `from_list` takes those of the first row alone
    return Dataset.from_dict({column: [row.get(column) for row in rows] for column in columns})


def check_no_times(data: Any, columns: list[str], where: str) -> None:
    """Raise `LeverlabError` when one of `columns` of a data set holds times where its source may have had texts."""
    for column in columns:
        if any(word in str(data.features[column]) for word in ("timestamp", "date32", "date64")):
            raise LeverlabError(
                f"{where}: column '{column}' was read as times, so texts like '1999-01-01' are lost; download the "
                "files and name their folder, or store the column as text"
            )


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LeverlabError(f"{where} is not JSON ({error}); write one object a line, or one list of them") from None
