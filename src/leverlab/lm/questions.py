"""Questions that may need a clarifying question before they can be answered, and their files (JSON lines)."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from leverlab.errors import LeverlabError
from leverlab.files import write_text
from leverlab.lm.turns import tag_in
from leverlab.texts import normalised

UNKNOWN = "unknown"  # the right answer when the fact that it needs cannot be had


def _no_edges(value: object) -> object:
    if isinstance(value, str) and value != value.strip():
        raise ValueError("must not begin or end with a space")
    return value


Normalised = Annotated[str, AfterValidator(normalised)]
Text = Annotated[Normalised, Field(min_length=1), BeforeValidator(_no_edges)]


class Question(BaseModel):
    """A question, what its answer needs, and what its user replies.

    text: what the policy is shown. needs_ask: whether more than one answer is possible without the fact in `slot`, the
    name of what the text leaves out (empty when nothing is). answer: the right one, when that fact is known; `UNKNOWN`
    when it is needed and the user cannot tell it. replies: slot → what the user says when asked for it.
    kind: how the question was made. twin: the id of the same question with nothing left out, where there is one.
    thought, thought_told: what leads to the answer, from the text alone and once the user has told what is missing; a
    teacher's words, which no policy is shown. guess: an answer that is possible without the missing fact, where there
    is one: what a teacher says that makes the fact up. All texts are in the form of `leverlab.texts`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    id: Text
    family: Text
    kind: Text
    text: Text
    answer: Text
    needs_ask: bool
    slot: Normalised
    replies: dict[Normalised, Text]
    user: Text
    wording: int = Field(ge=0)
    thought: Text
    thought_told: Text
    twin: Normalised = ""
    guess: Normalised = ""

    @model_validator(mode="after")
    def _can_be_said(self) -> "Question":
        """What a turn of the policy is made of must be readable in it; `text` and the replies may spell anything."""
        for text in (self.answer, self.guess, self.thought, self.thought_told, *self.replies):
            if (tag := tag_in(text)) is not None:
                raise ValueError(f"{text[:80]!r} spells the tag {tag}, so no turn of a policy can say it")
        return self

    @model_validator(mode="after")
    def _slot_is_answered(self) -> "Question":
        if self.needs_ask and not self.slot:
            raise ValueError("a question that needs an ask must name the slot to ask for")
        if self.slot and self.slot not in self.replies:
            raise ValueError(f"the user has no reply for the slot '{self.slot}'")
        return self


def read_questions(path: Path) -> list[Question]:
    """Return the questions of a file of JSON lines.

    Raises `LeverlabError` naming file, line and field when the file is missing, a line is no question, or an id stands
    twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")  # a text may hold other line ends
    except FileNotFoundError:
        raise LeverlabError(f"{path} does not exist; run the stage that writes it (dvc repro)") from None
    except UnicodeDecodeError as error:
        raise LeverlabError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); write it again"
        ) from None
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(Question.model_validate_json(line))
        except ValidationError as error:
            problem = error.errors()[0]
            place = ".".join(map(str, problem["loc"])) or "the line"
            raise LeverlabError(f"{path} line {number}: {place}: {problem['msg']}; mend or remove the line") from None
    check_questions(found, str(path))
    return found


def write_questions(path: Path, questions: Iterable[Question]) -> None:
    """Write `questions` as JSON lines."""
    write_text(path, "".join(f"{question.model_dump_json()}\n" for question in questions))


def check_questions(questions: Sequence[Question], where: str) -> None:
    """Raise `LeverlabError` when there is no question, or an id or a text stands twice."""
    if not questions:
        raise LeverlabError(f"{where} holds no question; raise the number of questions")
    for what, count in (("id", Counter(q.id for q in questions)), ("text", Counter(q.text for q in questions))):
        (value, times), *_ = count.most_common(1)
        if times > 1:
            raise LeverlabError(f"{where}: the {what} '{value}' stands {times} times; every {what} must be unique")


def need_rates(questions: Iterable[Question]) -> Mapping[str, float]:
    """Return family → share of its questions that need an ask."""
    grouped: dict[str, list[bool]] = {}
    for question in questions:
        grouped.setdefault(question.family, []).append(question.needs_ask)
    return {family: sum(needs) / len(needs) for family, needs in sorted(grouped.items())}
