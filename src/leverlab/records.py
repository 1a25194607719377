"""Typed rows of the data files, and the checks that every row passes on the way in.

One schema serves every world: `id, image, image_id, question, question_type, answers`. Files are parquet, written
through `datasets` with an image column; a demo or question is known by its string id everywhere, a position exists only
inside a tensor.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from leverlab.errors import LeverlabError
from leverlab.images import decode_image, pixel_digest
from leverlab.library_errors import reason_of
from leverlab.texts import normalised

COLUMNS = ("id", "image", "image_id", "question", "question_type", "answers")
UNSCORABLE = (2, 3)  # numbers of answers with which VQA accuracy cannot reach 1; see `evaluation.vqa_metric`


@dataclass(frozen=True)
class Example:
    """A question about an image with its answers; in the pool it serves as a demo.

    Question, question type and answers are brought into the form of `leverlab.texts`, wherever they come from.
    """

    id: str
    image: bytes  # an encoded image file (PNG, JPEG, …)
    image_id: str  # what the image shows; examples of one image_id are never in two splits
    question: str
    question_type: str
    answers: tuple[str, ...]  # one, or the ten of the VQA data sets

    def __post_init__(self) -> None:
        for name in ("question", "question_type"):
            object.__setattr__(self, name, normalised(getattr(self, name)))
        object.__setattr__(self, "answers", tuple(map(normalised, self.answers)))

    @property
    def answer(self) -> str:
        """The reference answer: the most frequent one, the first among equals."""
        return max(self.answers, key=self.answers.count)

    def open_image(self) -> Image.Image:
        """Return the image as `decode_image` does. Raises the same errors, with the id."""
        try:
            image = decode_image(self.image)
        except LeverlabError as error:
            raise LeverlabError(f"example '{self.id}': {error}") from None
        self.__dict__["size"] = image.size  # what `size` caches: whoever asks next does not decode again
        return image

    @cached_property
    def size(self) -> tuple[int, int]:
        """Width and height of the decoded image, in pixels. Raises the errors of `open_image`."""
        return self.open_image().size

    @cached_property
    def pixels(self) -> str:
        """A digest of the decoded image, equal for equal pixels in any file. Raises the errors of `open_image`.

        It costs as much as decoding (2.4 ms for 640 x 480), so it is computed where it is asked for.
        """
        return pixel_digest(self.open_image())


def parse_example(row: dict[str, Any], where: str, with_pixels: bool = False) -> Example:
    """Return the checked `Example` of a raw row; `where` (file and row) opens every error message.

    The image is decoded once, for the check. with_pixels: whether that gives `Example.pixels`, too, for a reader that
    compares images.
    """
    identifier = _text(row, "id", where)
    where = f"{where} (id '{identifier}')"
    data = image_bytes(row.get("image"), where)
    answers = row.get("answers")
    if not isinstance(answers, Sequence) or isinstance(answers, str | bytes):
        raise LeverlabError(f"{where}: 'answers' must be a list of texts, not {answers!r}")
    if not answers or not all(map(_is_text, answers)):
        raise LeverlabError(f"{where}: 'answers' must hold at least one text and no empty one, not {list(answers)!r}")
    example = Example(
        id=identifier,
        image=data,
        image_id=_text(row, "image_id", where),
        question=_text(row, "question", where),
        question_type=_text(row, "question_type", where),
        answers=tuple(answers),
    )
    try:
        _ = example.pixels if with_pixels else example.size  # decodes the image
    except LeverlabError as error:
        raise LeverlabError(f"{where}: {error}") from None
    return example


def image_bytes(image: Any, where: str) -> bytes:
    """Return the encoded image of a cell: bytes, or a struct with `bytes` and `path`.

    Raises `LeverlabError`, which `where` opens, when it has none: a path alone names a file on another machine.
    """
    data = image.get("bytes") if isinstance(image, dict) else image
    if isinstance(data, bytes) and data:
        return data
    path = image.get("path") if isinstance(image, dict) else None
    named = f", only the path {path!r}: put the file's bytes into the column" if path else "; add the image"
    raise LeverlabError(f"{where} has no image bytes{named}, or remove the row")


def _text(row: dict[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not _is_text(value):
        raise LeverlabError(f"{where}: '{key}' must be a text that is not empty, not {value!r}")
    return value


def _is_text(value: object) -> bool:
    """Return whether `value` is a text that is not empty and can be written: JSON can hold halves of characters."""
    return isinstance(value, str) and bool(value.strip()) and not any("\ud800" <= sign <= "\udfff" for sign in value)


def check_unique(examples: Iterable[Example], where: str) -> None:
    """Raise `LeverlabError` when two examples share an id."""
    seen: set[str] = set()
    for example in examples:
        if example.id in seen:
            raise LeverlabError(f"{where} holds the id '{example.id}' twice; ids must be unique")
        seen.add(example.id)


def write_examples(path: Path, examples: Sequence[Example]) -> None:
    """Write `examples` as parquet with a `datasets` image column."""
    from datasets import Dataset, Features, List, Value
    from datasets import Image as ImageFeature

    text = Value("string")
    features = Features(
        {
            "id": text,
            "image": ImageFeature(),
            "image_id": text,
            "question": text,
            "question_type": text,
            "answers": List(text),
        }
    )
    rows = {
        "id": [example.id for example in examples],
        "image": [{"bytes": example.image, "path": None} for example in examples],
        "image_id": [example.image_id for example in examples],
        "question": [example.question for example in examples],
        "question_type": [example.question_type for example in examples],
        "answers": [list(example.answers) for example in examples],
    }
    Dataset.from_dict(rows, features=features).to_parquet(str(path), write_page_checksum=True)


def read_table(path: Path, columns: Sequence[str] | pa.Schema) -> pa.Table:
    """Return the parquet table at `path`.

    Raises `LeverlabError` when it is missing, damaged or lacks one of `columns`. A schema asks for more: these columns
    alone are returned, and a column of another type is an error, and a null or a number that is not finite outside of
    lists.
    """
    names = columns.names if isinstance(columns, pa.Schema) else columns
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        table.validate(full=True)
    except FileNotFoundError:
        raise LeverlabError(f"{path} does not exist; run the stage that writes it (dvc repro)") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        problem = reason_of(error)
        raise LeverlabError(
            f"{path} is damaged or not parquet ({problem}); restore it, or move it away and run dvc repro again"
        ) from None
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise LeverlabError(f"{path} lacks the columns {missing}; it holds {table.column_names}")
    if twice := [name for name in names if table.column_names.count(name) > 1]:
        raise LeverlabError(f"{path} holds the columns {twice} twice; write it again")
    if isinstance(columns, pa.Schema):
        table = table.select(names)
        for field in columns:
            _check_column(table[field.name], field, f"{path}: column '{field.name}'")
    return table


def _check_column(column: pa.ChunkedArray, field: pa.Field, where: str) -> None:
    if column.type != field.type:
        raise LeverlabError(f"{where} must hold {field.type}, not {column.type}; run the stage that writes it again")
    if pa.types.is_list(field.type):
        return
    if column.null_count:
        raise LeverlabError(f"{where} holds nulls; run the stage that writes it again")
    if pa.types.is_floating(column.type) and not pc.all(pc.is_finite(column), min_count=0).as_py():
        raise LeverlabError(f"{where} holds a value that is not a number; run the stage that writes it again")


def write_table(path: Path, rows: Sequence[dict[str, Any]], schema: pa.Schema) -> None:
    """Write `rows` as parquet with exactly the columns and types of `schema`."""
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path, write_page_checksum=True)


def read_examples(path: Path, with_pixels: bool = False) -> list[Example]:
    """Return the examples of a parquet file, every row checked by `parse_example`.

    Raises `LeverlabError` naming file and row.
    """
    table = read_table(path, COLUMNS).select(COLUMNS)
    try:
        rows = table.to_pylist()
    except (pa.ArrowException, ValueError, UnicodeDecodeError) as error:
        raise LeverlabError(f"{path} holds rows that cannot be read ({error}); write it again") from None
    examples = [parse_example(row, f"{path} row {index}", with_pixels) for index, row in enumerate(rows)]
    check_unique(examples, str(path))
    return examples
