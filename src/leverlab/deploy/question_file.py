"""Files of questions about images: parquet, CSV and JSON lines, read row by row."""

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from leverlab.errors import LeverlabError
from leverlab.files import path_inside
from leverlab.library_errors import reason_of
from leverlab.terminal import one_line

COLUMNS = ("id", "image", "question")
_ROWS, _BUFFER = 16, 1 << 20  # rows of parquet that are decoded at once, bytes that are read at once
Record = tuple[str, dict[str, Any]]  # the row or line, and its values


@dataclass(frozen=True)
class AskedRow:
    """A question about an encoded image (PNG, JPEG …). where: file, row and id, for messages."""

    where: str
    id: str
    image: bytes
    question: str


def read_rows(path: Path) -> Iterator[AskedRow]:
    """Yield the rows of a file with the columns id, image and question.

    One row is in memory at once, and of parquet a page: at most a row group, whose size its writer chose.
    In parquet an image is bytes, or a struct with bytes; in CSV and JSON lines the name of a file, counted from the
    folder of `path` and inside it. Raises `LeverlabError` naming the row that is wrong: an id twice or none, no image,
    no question.
    """
    if path.suffix.lower() not in _READERS:
        raise LeverlabError(f"the questions {path} must be a file {', '.join(_READERS)}; convert it")
    try:
        seen: set[str] = set()
        for place, record in _READERS[path.suffix.lower()](path):
            row = _checked(path, place, record)
            if row.id in seen:
                raise _no_id(path, place, row.id)
            seen.add(row.id)
            yield row
    except (pa.ArrowException, csv.Error, OSError, ValueError) as error:  # ValueError: encodings, and parquet's own
        problem = error.strerror if isinstance(error, OSError) and error.strerror else reason_of(error)
        raise LeverlabError(f"the questions {path} cannot be read ({problem}); write the file again") from None
    if not seen:
        raise LeverlabError(f"{path} holds no questions")


def _checked(path: Path, place: str, record: dict[str, Any]) -> AskedRow:
    name, image, question = (record.get(column) for column in COLUMNS)
    if not isinstance(name, str) or not name or not _can_be_written(name):
        raise _no_id(path, place, name)
    where = f"{path} {place} (id '{one_line(name)}')"
    if isinstance(image, dict):
        image = image.get("bytes")
    if isinstance(image, str) and image and path.suffix.lower() != ".parquet":
        image = _image(path.parent, image, where)
    if not isinstance(image, bytes) or not isinstance(question, str):
        what = "bytes" if path.suffix.lower() == ".parquet" else "file"
        raise LeverlabError(f"{where} lacks the image's {what} or the question; add or drop it")
    return AskedRow(where, name, image, question)


def _no_id(path: Path, place: str, name: object) -> LeverlabError:
    return LeverlabError(f"{path} {place}: the id {name!r:.200} is no text, or comes twice; give every row its own")


def _can_be_written(text: str) -> bool:
    return not any("\ud800" <= sign <= "\udfff" for sign in text)  # JSON can hold halves of characters


def _image(folder: Path, name: str, where: str) -> bytes:
    try:
        path = path_inside(folder, name)
        if not path.is_file():
            raise LeverlabError(f"the image {name!r:.200} is no file in {folder}; add it, or drop the row")
        return path.read_bytes()
    except LeverlabError as error:
        raise LeverlabError(f"{where}: {error}") from None
    except OSError as error:
        raise LeverlabError(f"{where}: the image {name!r:.200} cannot be read ({error.strerror})") from None


def _check_columns(path: Path, names: list[str]) -> None:
    if missing := [name for name in COLUMNS if name not in names]:
        raise LeverlabError(f"{path} lacks the columns {missing}; it holds {names}")
    if twice := [name for name in COLUMNS if names.count(name) > 1]:
        raise LeverlabError(f"{path} holds the columns {twice} twice; write it again")


def _parquet(path: Path) -> Iterator[Record]:
    with pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False, page_checksum_verification=True) as file:
        _check_columns(path, file.schema_arrow.names)
        number = 0
        for batch in file.iter_batches(_ROWS, columns=list(COLUMNS), use_threads=False):
            batch.validate(full=True)
            for record in batch.to_pylist():
                yield f"row {number}", record
                number += 1


def _csv(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        names = next(reader, [])
        _check_columns(path, names)
        for values in reader:
            if values and len(values) != len(names):
                raise LeverlabError(
                    f"{path} line {reader.line_num} has {len(values)} fields, not the {len(names)} of its head; quote "
                    "texts with commas"
                )
            if values:
                yield f"line {reader.line_num}", dict(zip(names, values, strict=True))


def _jsonl(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise LeverlabError(f"{path} line {number} is not JSON ({error}); write one object a line") from None
            if not isinstance(record, dict):
                raise LeverlabError(f"{path} line {number} must be a JSON object, not {line.strip():.100}")
            if missing := [name for name in COLUMNS if name not in record]:
                raise LeverlabError(f"{path} line {number} lacks {missing}; it holds {list(record)}")
            yield f"line {number}", record


_READERS: dict[str, Callable[[Path], Iterator[Record]]] = {".parquet": _parquet, ".csv": _csv, ".jsonl": _jsonl}
