"""Dialogues and what they were worth, as files (JSON lines): every figure is computed from these, and can be again."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from leverlab.errors import LeverlabError
from leverlab.files import write_text
from leverlab.lm.dialogues import Dialogue, End
from leverlab.lm.questions import Question
from leverlab.lm.rollouts import Rollout
from leverlab.lm.turns import Turn, parse_turn

Share = Annotated[float, Field(ge=0, le=1)]


class DialogueRecord(BaseModel):
    """What a policy and a user said to each other.

    question: its id. policy: the stage that trained it. step: of its training, or the number of the draw of several.
    temperature: 0 is greedy. confidence: the geometric mean of the probabilities of the policy's tokens. tokens: how
    many it said.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    question: str
    policy: str
    seed: int = Field(ge=0)
    step: int = Field(ge=0)
    temperature: float = Field(ge=0)
    turns: list[str] = Field(min_length=1)
    replies: list[str]
    end: End
    confidence: Share
    tokens: int = Field(ge=1)

    def dialogue(self, question: Question) -> Dialogue:
        """Return the dialogue, its turns read again.

        Raises `LeverlabError` when it is on another question.
        """
        if question.id != self.question:
            raise LeverlabError(f"the dialogue is on question '{self.question}', not on '{question.id}'")
        turns = [parse_turn(text) for text in self.turns]
        if self.end == "cut":  # a turn that did not end says nothing, whatever it holds
            turns[-1] = Turn(self.turns[-1])
        return Dialogue(question, tuple(turns), tuple(self.replies), self.end)


class RewardRecord(DialogueRecord):
    """A dialogue of training with its reward: the terms, the reason for each, and their weighted sum `total`."""

    prompt: str
    terms: dict[str, float]
    reasons: dict[str, str]
    alpha: float = Field(ge=0)
    total: float


class Taught(BaseModel):
    """What a teacher says on a question, and the replies between its turns."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    question: str
    turns: list[str] = Field(min_length=1)
    replies: list[str]


RecordT = TypeVar("RecordT", bound=BaseModel)


def record_of(rollout: Rollout, policy: str, seed: int, step: int, temperature: float) -> DialogueRecord:
    """Return the record of a rollout."""
    own = [logp for logp, said in zip(rollout.logps, rollout.own, strict=True) if said]
    return DialogueRecord(
        question=rollout.dialogue.question.id,
        policy=policy,
        seed=seed,
        step=step,
        temperature=temperature,
        turns=[turn.text for turn in rollout.dialogue.turns],
        replies=list(rollout.dialogue.replies),
        end=rollout.dialogue.end,
        confidence=rollout.confidence,
        tokens=len(own),
    )


def read_records(path: Path, model: type[RecordT]) -> list[RecordT]:
    """Return the records of a file. Raises `LeverlabError` naming file and line if it is missing, empty or damaged."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise LeverlabError(f"{path} does not exist; run the stage that writes it (dvc repro)") from None
    except UnicodeDecodeError as error:
        raise LeverlabError(f"{path} is not UTF-8 text ({error.reason}); run the stage that writes it again") from None
    if not text.endswith("\n"):
        raise LeverlabError(f"{path} is empty or cut in its last line; run the stage that writes it again")
    found = []
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):  # other ends of lines stand in texts
        try:
            found.append(model.model_validate_json(line))
        except ValidationError as error:
            problem = error.errors()[0]
            place = ".".join(map(str, problem["loc"])) or "the line"
            raise LeverlabError(
                f"{path} line {number}: {place}: {problem['msg']}; run the stage that writes it again"
            ) from None
    return found


def write_records(path: Path, records: Iterable[BaseModel]) -> None:
    """Write `records` as JSON lines, whole or not at all."""
    write_text(path, "".join(f"{record.model_dump_json()}\n" for record in records))
