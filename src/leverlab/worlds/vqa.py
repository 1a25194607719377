"""OK-VQA and VQAv2: ten answers a question, images of COCO.

`source` is either a folder with the official files (questions and annotations as JSON, a folder of COCO images), or a
data set that `datasets.load_dataset` reads: a hub id, or a local copy of one. Splits are made by image, with a seed.

OK-VQA: Marino et al. 2019, arXiv:1906.00067. VQAv2: Goyal et al. 2017, arXiv:1612.00837.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from leverlab.errors import LeverlabError
from leverlab.library_errors import reason_of
from leverlab.records import Example, parse_example
from leverlab.worlds.hub import check_no_times, load_splits
from leverlab.worlds.world import World

_IMAGE_TERMS = "images: COCO, under the Flickr terms of use"
_COLUMNS = ("question_id", "question", "image", "answers")
_TRAIN_NAMES = ("train", "train2014")
_VALIDATION_NAMES = ("validation", "val", "val2014", "validation2014")


@dataclass(frozen=True)
class _Row:
    """A question whose image has not been read yet: only chosen rows cost their image."""

    id: str
    image_id: str
    question: Any
    question_type: Any
    answers: Any
    read_image: Callable[[], bytes | None]
    where: str


def okvqa_world(source: str, pool: int, train: int, val: int, test: int, seed: int) -> World:
    """Return OK-VQA from `source`; sizes in questions. See `_vqa_world` for splits and errors."""
    licence = f"questions and answers: as published at okvqa.allenai.org; {_IMAGE_TERMS}"
    return _vqa_world("okvqa", "OK-VQA", "", licence, source, pool, train, val, test, seed)


def vqav2_world(source: str, pool: int, train: int, val: int, test: int, seed: int) -> World:
    """Return VQAv2 from `source`; sizes in questions. See `_vqa_world` for splits and errors."""
    licence = f"questions and answers: VQA Consortium, CC BY 4.0; {_IMAGE_TERMS}"
    return _vqa_world("vqav2", "VQAv2", "v2_", licence, source, pool, train, val, test, seed)


def _vqa_world(
    name: str, title: str, prefix: str, licence: str, source: str, pool: int, train: int, val: int, test: int, seed: int
) -> World:
    """Return the world in `source`.

    The pool and train come from the train split, test and val from the validation split. Data sets that have no train
    split (the copies of lmms-lab) give all four from validation; the description says so. No image is in two splits,
    whatever its id: where an earlier split has equal pixels, an image is left out. The test questions depend on `seed`
    and the size of test alone. Raises `LeverlabError` for a missing file or column, a bad row, or fewer questions than
    asked for.
    """
    folder = Path(source)
    if any(_question_file(folder, prefix, part).exists() for part in ("train2014", "val2014")):
        train_rows, validation_rows = (_official_rows(folder, prefix, part) for part in ("train2014", "val2014"))
    else:
        train_rows, validation_rows = _hub_rows(source, title, _question_file(Path(), prefix, "train2014").name)
    split_of: dict[str, str] = {}
    if train_rows:
        chosen = _split_by_image(validation_rows, {"test": test, "val": val}, seed, split_of)
        chosen |= _split_by_image(train_rows, {"pool": pool, "train": train}, seed, split_of)
        origin = "the pool and train come from its train split, val and test from its validation split"
    else:
        chosen = _split_by_image(
            validation_rows, {"test": test, "val": val, "pool": pool, "train": train}, seed, split_of
        )
        origin = "it has no train split here: all four splits come from its validation split"
    return World(
        name=name,
        **chosen,
        licence=licence,
        description=f"{title}, ten answers a question; {origin}. Split by image.",
    )


def _example(row: _Row) -> Example:
    raw = {"id": row.id, "image": row.read_image(), "image_id": row.image_id, "question": row.question}
    return parse_example(
        raw | {"question_type": row.question_type, "answers": row.answers}, row.where, with_pixels=True
    )


def _split_by_image(
    rows: list[_Row], sizes: dict[str, int], seed: int, split_of: dict[str, str]
) -> dict[str, tuple[Example, ...]]:
    """Return `sizes[name]` examples for each name, filled in turn with whole images in random order.

    The questions of the last image that a split does not need are left out, so that no other split shows that image.
    split_of: digest of pixels → split that shows them, of the splits made before; those made here are added. An image
    with pixels of another split is left out.
    """
    by_image: dict[str, list[_Row]] = {}
    seen: set[str] = set()
    for row in rows:
        if row.id in seen:
            raise LeverlabError(f"{row.where}: the question id '{row.id}' comes twice; ids must be unique")
        seen.add(row.id)
        by_image.setdefault(row.image_id, []).append(row)
    images = sorted(by_image)
    order = iter(np.random.default_rng(seed).permutation(len(images)))
    chosen = {}
    for name, size in sizes.items():
        taken: list[Example] = []
        while len(taken) < size:
            image = next(order, None)
            if image is None:
                raise LeverlabError(
                    f"data.{name} = {size}, but only {len(taken)} of {len(rows)} questions are left for it, since "
                    f"{' and '.join(sizes)} share no image; lower the sizes"
                )
            examples = [_example(row) for row in by_image[images[image]][: size - len(taken)]]
            if {split_of.setdefault(example.pixels, name) for example in examples} == {name}:
                taken += examples
        chosen[name] = tuple(taken)
    return chosen


def _answers(value: Any) -> Any:
    """Return the texts of a list of texts, of records with an `answer`, or of columns; anything else as it is."""
    if isinstance(value, dict) and "answer" in value:
        return value["answer"]
    if isinstance(value, list):
        return [item["answer"] if isinstance(item, dict) and "answer" in item else item for item in value]
    return value


def _question_file(folder: Path, prefix: str, part: str) -> Path:
    return folder / f"{prefix}OpenEnded_mscoco_{part}_questions.json"


def _official_rows(folder: Path, prefix: str, part: str) -> list[_Row]:
    question_file = _question_file(folder, prefix, part)
    annotation_file = folder / f"{prefix}mscoco_{part}_annotations.json"
    needed = {"question_id", "image_id"}
    annotations = {record["question_id"]: record for record in _read_records(annotation_file, "annotations", needed)}
    rows = []
    for record in _read_records(question_file, "questions", needed):
        annotation = annotations.get(record["question_id"])
        where = f"{question_file} question {record['question_id']}"
        if annotation is None:
            raise LeverlabError(f"{where} has no annotation in {annotation_file}; fetch both files of one release")
        image_file = f"COCO_{part}_{record['image_id']:012d}.jpg"
        rows.append(
            _Row(
                id=str(record["question_id"]),
                image_id=image_file.removesuffix(".jpg"),
                question=record.get("question"),
                question_type=annotation.get("question_type", "any"),
                answers=_answers(annotation.get("answers")),
                read_image=partial(_read_image, folder, part, image_file),
                where=where,
            )
        )
    return rows


def _read_records(path: Path, key: str, needed: set[str]) -> Iterable[dict[str, Any]]:
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise LeverlabError(f"{path} does not exist; data.source must hold the official files of both splits") from None
    except (ValueError, OSError, RecursionError) as error:
        raise LeverlabError(f"{path} cannot be read as JSON ({error}); fetch it again") from None
    records = data.get(key) if isinstance(data, dict) else None
    if not isinstance(records, list):
        raise LeverlabError(f"{path} must hold an object with a list '{key}'; fetch the official file")
    seen: set[int] = set()
    for index, record in enumerate(records):
        if not isinstance(record, dict) or not all(type(record.get(name)) is int for name in needed):
            raise LeverlabError(
                f"{path}: entry {index} of '{key}' must have whole numbers as {sorted(needed)}, not {str(record)[:100]}"
            )
        if record["question_id"] in seen:
            raise LeverlabError(f"{path}: the question id '{record['question_id']}' comes twice; ids must be unique")
        seen.add(record["question_id"])
    return records


def _read_image(folder: Path, part: str, name: str) -> bytes:
    places = [folder / part, folder / "images" / part, folder / "images", folder]
    for place in places:
        if (place / name).is_file():
            return (place / name).read_bytes()
    raise LeverlabError(f"the image {name} is in none of {', '.join(map(str, places))}; unpack the COCO images there")


def _hub_rows(source: str, title: str, official_name: str) -> tuple[list[_Row], list[_Row]]:
    """Return the rows of the train split (none where there is no such split) and of the validation split."""
    try:
        data = load_splits(source)
    except LeverlabError:
        raise
    except Exception as error:  # the library raises errors of many kinds, its own and those of the network
        problem = reason_of(error)
        raise LeverlabError(
            f"{title} cannot be loaded from '{source}' ({problem}); data.source must be a hub id that datasets can "
            f"load or a folder with the official files ({official_name}, …)"
        ) from error
    train = next((name for name in _TRAIN_NAMES if name in data), None)
    validation = next((name for name in _VALIDATION_NAMES if name in data), None)
    if validation is None:
        raise LeverlabError(f"'{source}' has the splits {sorted(data)}; one of {list(_VALIDATION_NAMES)} is needed")
    train_rows = _dataset_rows(data[train], f"{source} {train}") if train else []
    return train_rows, _dataset_rows(data[validation], f"{source} {validation}")


def _dataset_rows(data: Any, where: str) -> list[_Row]:
    from datasets import Image

    missing = [column for column in _COLUMNS if column not in data.column_names]
    if missing:
        raise LeverlabError(f"'{where}' lacks the columns {missing}; it holds {data.column_names}")
    check_no_times(data, ["question", "answers"], f"'{where}'")
    try:
        data = data.cast_column("image", Image(decode=False))
    except Exception as error:  # the library raises errors of many kinds
        problem = reason_of(error)
        raise LeverlabError(f"'{where}': the column 'image' holds no images ({problem}); store their files") from None
    texts = data.remove_columns("image")
    return [_dataset_row(data, index, record, f"{where} row {index}") for index, record in enumerate(texts)]


def _dataset_row(data: Any, index: int, record: dict[str, Any], where: str) -> _Row:
    if record["question_id"] is None:
        raise LeverlabError(f"{where} has no question_id; give every question its own")
    image = record.get("image_id")
    without = image is None or image == ""
    return _Row(
        id=_identifier(record["question_id"], "question_id", where),
        image_id=f"image-{_image_digest(data, index, where) if without else _identifier(image, 'image_id', where)}",
        question=record["question"],
        question_type=record.get("question_type") or "any",
        answers=_answers(record["answers"]),
        read_image=partial(_dataset_image, data, index, where),
        where=where,
    )


def _identifier(value: Any, column: str, where: str) -> str:
    """Return an id as text. Raises `LeverlabError` for NaN, which many rows may share, and for what is no id at all."""
    sound = bool(value.strip()) if isinstance(value, str) else isinstance(value, int | float) and math.isfinite(value)
    if not sound or isinstance(value, bool):
        raise LeverlabError(
            f"{where}: {column} is {value!r:.100}, and must be a text or a number; write the id, or remove the row"
        )
    return str(value)


def _dataset_image(data: Any, index: int, where: str) -> bytes | None:
    image = data[index]["image"] or {}
    if image.get("bytes") is None and image.get("path"):
        try:
            return Path(image["path"]).read_bytes()
        except (OSError, ValueError) as error:
            raise LeverlabError(
                f"{where}: the image {image['path']!r} cannot be read ({getattr(error, 'strerror', None) or error}); "
                "put the files' bytes into the column, or remove the row"
            ) from None
    content: bytes | None = image.get("bytes")
    return content


def _image_digest(data: Any, index: int, where: str) -> str:
    # without an image_id equal bytes are the same image
    return hashlib.sha256(_dataset_image(data, index, where) or b"").hexdigest()[:16]
