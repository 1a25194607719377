"""Answers to a file of questions with a bundle, resumable."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from leverlab.deploy.answering import Engine
from leverlab.deploy.bundle import INFO, Bundle, digest_of
from leverlab.errors import LeverlabError
from leverlab.files import write_bytes
from leverlab.records import Example, read_table, write_table

COLUMNS = ("id", "image", "question")
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("question", pa.string()),
        ("demos", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float64())),
        ("answer", pa.string()),
    ]
)
Track = Callable[[Sequence[tuple[str, Example]], int], Iterable[tuple[str, Example]]]


def read_questions(path: Path, bundle: Bundle) -> list[tuple[str, Example]]:
    """Return the ids and questions of a parquet file with the columns id, image (bytes, or a struct with bytes) and
    question.

    Raises `LeverlabError` naming the row that is wrong: an id twice, no image, an image that cannot be decoded, or an
    empty question.
    """
    found: dict[str, Example] = {}
    for number, row in enumerate(read_table(path, COLUMNS).select(COLUMNS).to_pylist()):
        where = f"{path} row {number}"
        image = row["image"].get("bytes") if isinstance(row["image"], dict) else row["image"]
        if not isinstance(row["id"], str) or row["id"] in found:
            raise LeverlabError(f"{where}: the id {row['id']!r} is no text, or comes twice; give every row its own")
        if not isinstance(image, bytes) or not isinstance(row["question"], str):
            raise LeverlabError(f"{where} (id '{row['id']}') lacks the image's bytes or the question; add or drop it")
        try:
            found[row["id"]] = bundle.question(image, row["question"])
        except LeverlabError as error:
            raise LeverlabError(f"{where} (id '{row['id']}'): {error}") from None
    if not found:
        raise LeverlabError(f"{path} holds no questions")
    return list(found.items())


def predict(bundle: Bundle, engine: Engine, kind: str, questions: Path, out: Path, shots: int, track: Track) -> int:
    """Write the picks and the answers to `questions` to the parquet file `out`; return how many were computed now.

    kind: the engine's name. track: yields the questions that it is given, and shows progress from the number of those
    done before. Each answer is kept beside `out` as it comes, by its image and question, so that a run that was stopped
    goes on where it was, with other questions too. Raises `LeverlabError` as `read_questions`, naming the question that
    cannot be answered, and when what is kept there belongs to another bundle, engine or shot count.
    """
    if not out.absolute().parent.is_dir():
        raise LeverlabError(f"the folder {out.parent} of --out does not exist; make it")
    asked = read_questions(questions, bundle)
    _check_texts(engine, asked, questions)
    engine.check(bundle.pool if shots else (), ())
    of = hashlib.sha256(json.dumps([digest_of(bundle.folder / INFO), kind, shots]).encode()).hexdigest()
    kept = out.with_name(f"{out.name}.partial.jsonl")
    rows = _kept_rows(kept, of)
    left = [(name, question) for name, question in asked if question.id not in rows]
    with kept.open("a", encoding="utf-8") as file:
        if not rows and file.tell() == 0:
            file.write(json.dumps({"of": of}) + "\n")
        for name, question in track(left, len(rows)):
            try:
                rows[question.id] = _row(bundle, engine, question, shots)
            except LeverlabError as error:
                raise LeverlabError(
                    f"the question with id '{name}' of {questions} was not answered: {error}; or drop it: what was "
                    "answered before is kept"
                ) from None
            file.write(json.dumps(rows[question.id]) + "\n")
            file.flush()
    write_table(out, [rows[question.id] | {"id": name} for name, question in asked], SCHEMA)
    kept.unlink()
    return len(left)


def _check_texts(engine: Engine, asked: Sequence[tuple[str, Example]], questions: Path) -> None:
    """Raise `LeverlabError` naming the question that the engine cannot be given."""
    for name, question in asked:
        try:
            engine.check((), [question])
        except LeverlabError as error:
            raise LeverlabError(f"{questions} (id '{name}'): {error}") from None


def _row(bundle: Bundle, engine: Engine, question: Example, shots: int) -> dict[str, Any]:
    picks = bundle.pick(question, shots)
    return {
        "key": question.id,
        "question": question.question,
        "demos": [pick.demo.id for pick in picks],
        "scores": [pick.score for pick in picks],
        "answer": engine.answer([pick.demo for pick in picks], question),
    }


def _kept_rows(path: Path, of: str) -> dict[str, dict[str, Any]]:
    """Return the answers of an earlier run that was stopped. Its last line may be cut, and is left out then."""
    if not path.exists():
        return {}
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    try:
        lines = [json.loads(line) for line in whole.splitlines()]
        if lines and lines[0] != {"of": of}:
            raise LeverlabError(
                f"{path} belongs to a run with another bundle or other options; delete it, or give --out another name"
            )
        rows = {line["key"]: line for line in lines[1:]}
    except (ValueError, KeyError, TypeError) as error:
        raise LeverlabError(f"{path} is damaged ({error}); delete it and run again") from None
    write_bytes(path, whole + b"\n" if lines else b"")
    return rows
