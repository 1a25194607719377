"""Answers to a file of questions with a bundle, resumable."""

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

from leverlab.deploy.answer_file import AnswerFile, Row
from leverlab.deploy.answering import Engine
from leverlab.deploy.bundle import INFO, Bundle, digest_of
from leverlab.deploy.prompt_size import PromptSize
from leverlab.deploy.question_file import AskedRow, read_rows
from leverlab.errors import LeverlabError
from leverlab.evaluation.quantised import TRANSFORMERS
from leverlab.records import Example


class Progress(Protocol):
    """A bar: `tqdm` is one."""

    def update(self, n: int) -> Any:
        """Count `n` more."""


Track = Callable[[str, int | None, int], AbstractContextManager[Progress]]


@dataclass(frozen=True)
class Asked:
    """A checked row of the file. key: a digest of image and question. first: whether it is answered before others."""

    id: str
    where: str
    key: str
    first: bool


@dataclass(frozen=True)
class Summary:
    """How many questions a file has, and how many answers were computed now."""

    questions: int
    new: int


def predict(
    bundle: Bundle,
    kind: str,
    load: Callable[[], AbstractContextManager[Engine]],
    questions: Path,
    out: Path,
    shots: int,
    track: Track,
    overwrite: bool = False,
) -> Summary:
    """Write the picks and the answers to `questions` to the file `out`, whose suffix says its format.

    kind: the name of the engine that `load` returns; it is loaded once all questions are checked, if one has no answer
    yet. track: returns a progress bar for a label, a total (None: not known) and the number done. Answers are kept
    beside `out` as they come, by image and question, so that a run that was stopped goes on where it was, with other
    questions too. Prompts that may be too long come first. Raises `LeverlabError` as `AnswerFile` and `read_rows`,
    for a shot count that the selector does not pick, and for a question that cannot be answered, with its row.
    """
    bundle.check_shots(shots)
    read = [questions, bundle.folder / INFO, *(bundle.folder / name for name in bundle.info.files)]
    with AnswerFile(out, read, overwrite) as file:
        owner = hashlib.sha256(json.dumps([digest_of(bundle.folder / INFO), kind, shots]).encode()).hexdigest()
        rows = file.read_kept(owner)
        size = None if kind == TRANSFORMERS else PromptSize(bundle, shots)
        asked = check_questions(questions, bundle, size, track)
        left = {row.key for row in asked} - rows.keys()
        if left:
            total = len({row.key for row in asked})
            with load() as engine, track("questions", total, total - len(left)) as bar:
                for first in (True, False):
                    for group in _groups(questions, bundle, asked, first, engine.batch, rows):
                        for new in _answers(bundle, engine, shots, group):
                            file.keep(new)
                            rows |= {row["key"]: row for row in new}
                            bar.update(len(new))
        file.write([rows[row.key] | {"id": row.id} for row in asked])
    return Summary(len(asked), len(left))


def check_questions(path: Path, bundle: Bundle, size: PromptSize | None, track: Track) -> list[Asked]:
    """Return the rows of a file of questions, all checked; without `size` prompts may have any length.

    Raises `LeverlabError` naming the row that is wrong, also when its image cannot be decoded or is too thin, and when
    its question is empty or too long.
    """
    asked = []
    with track("checking questions", None, 0) as bar:
        for row in read_rows(path):
            question = _question(bundle, row)
            try:
                first = size is not None and size.may_be_too_long(question)
            except LeverlabError as error:
                raise LeverlabError(f"{row.where}: {error}") from None
            asked.append(Asked(row.id, row.where, question.id, first))
            bar.update(1)
    return asked


def _question(bundle: Bundle, row: AskedRow) -> Example:
    try:
        return bundle.question(row.image, row.question)
    except LeverlabError as error:
        raise LeverlabError(f"{row.where}: {error}") from None


def _groups(
    path: Path, bundle: Bundle, asked: Sequence[Asked], first: bool, batch: int, rows: Mapping[str, Row]
) -> Iterator[list[tuple[Asked, Example]]]:
    """Yield what has no row yet in groups of at most `batch`, read again from the file.

    first: whether to yield those that are answered before others, or the others. Groups are cut by the place in the
    file, whatever has a row: a run that goes on forms the groups that a stopped one had left. A group is smaller where
    some of it has rows: answered one by one after an error, or in another file of questions. Raises `LeverlabError`
    when the file is no longer the one that was checked.
    """
    places = sorted({row.key: place for place, row in enumerate(asked) if row.first == first}.values())
    group_of = {place: number // batch for number, place in enumerate(places)}
    left = {place for place in places if asked[place].key not in rows}
    found = _read_again(path, bundle, asked, left) if left else ()
    for _, group in groupby(found, lambda pair: group_of[pair[0]]):
        yield [(asked[place], question) for place, question in group]


def _read_again(
    path: Path, bundle: Bundle, asked: Sequence[Asked], places: Collection[int]
) -> Iterator[tuple[int, Example]]:
    """Yield the questions at `places` of a file whose rows are `asked`; raise `LeverlabError` when they are others."""
    changed = LeverlabError(f"{path} changed while it was read; run again: what was answered is kept")
    count = 0
    for place, row in enumerate(read_rows(path)):
        if place == len(asked) or row.id != asked[place].id:
            raise changed
        if place in places:
            question = _question(bundle, row)
            if question.id != asked[place].key:
                raise changed
            yield place, question
        count += 1
    if count != len(asked):
        raise changed


def _answers(bundle: Bundle, engine: Engine, shots: int, group: Sequence[tuple[Asked, Example]]) -> Iterator[list[Row]]:
    """Yield the rows of a group. Raises `LeverlabError` naming the question that has no answer, after the others."""
    try:
        picks = [bundle.pick(question, shots) for _, question in group]
        prompts = [([pick.demo for pick in found], asked[1]) for found, asked in zip(picks, group, strict=True)]
        answers = engine.answers(prompts)
    except LeverlabError as error:
        if len(group) > 1:
            for one in group:
                yield from _answers(bundle, engine, shots, [one])
            return
        raise LeverlabError(
            f"{group[0][0].where} was not answered: {error}; or drop it: what was answered before is kept"
        ) from None
    yield [
        {
            "key": question.id,
            "question": question.question,
            "demos": [pick.demo.id for pick in found],
            "scores": [pick.score for pick in found],
            "answer": answer,
        }
        for (_, question), found, answer in zip(group, picks, answers, strict=True)
    ]
