"""What the stages of language-model recipes share: the parts of a policy from params, files by id, rows as files."""

import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch

from leverlab.config.dialogue_training import UpdateParams
from leverlab.config.dialogues import DialogueParams
from leverlab.dvcfile import Declaration, read_declaration
from leverlab.errors import LeverlabError
from leverlab.files import write_text
from leverlab.lm.chat import Chat
from leverlab.lm.questions import Question, read_questions
from leverlab.lm.records import DialogueRecord
from leverlab.lm.rollouts import Limits
from leverlab.lm.tokens import Tokens, dialogue_tokens
from leverlab.lm.trainers import Settings
from leverlab.stage import Stage, run_stage


def limits_of(params: DialogueParams) -> Limits:
    """Return how long dialogues may become."""
    return Limits(params.turns, params.tokens)


def settings_of(params: UpdateParams, key: str, seed: int) -> Settings:
    """Return the settings of a trainer from the section `key`."""
    return Settings(**params.model_dump(include=set(Settings.__dataclass_fields__)), seed=seed, key=key)


def questions_by_id(path: Path) -> dict[str, Question]:
    """Return the questions of a file by their ids, in its order."""
    return {question.id: question for question in read_questions(path)}


def question_of(questions: Mapping[str, Question], name: str, where: Path) -> Question:
    """Return the question `name`. Raises `LeverlabError` when there is none."""
    if name not in questions:
        raise LeverlabError(f"{where} speaks of the question '{name}', which is in no split; run dvc repro")
    return questions[name]


def tokens_of(chat: Chat, record: DialogueRecord, questions: Mapping[str, Question], where: Path) -> Tokens:
    """Return the tokens of a stored dialogue, and which of them the policy said."""
    text = question_of(questions, record.question, where).text
    return dialogue_tokens(chat, text, record.turns, record.replies, cut=record.end == "cut")


def seeds_of(value: object) -> list[int]:
    """Return the seeds of params. Raises `LeverlabError` unless they are a list of whole numbers."""
    if not isinstance(value, list) or not value or not all(type(seed) is int for seed in value):
        raise LeverlabError(f"params.yaml: 'seeds' must be a list of whole numbers, not {value!r}")
    return value


def write_rows(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows as CSV, numbers with six digits."""
    write_text(path, pd.DataFrame(rows).to_csv(index=False, float_format="%.6g"))


def say_every(stage: Stage, every: int) -> Callable[[Mapping[str, float]], None]:
    """Return a listener that tells the loss of every so manieth step."""

    def listen(row: Mapping[str, float]) -> None:
        if int(row["step"]) % every == 0:
            stage.say(f"step {int(row['step'])}: loss {row['loss']:.4f}")

    return listen


class Follower(Stage):
    """A run beside the one that publishes: it computes along, and what it writes is thrown away."""

    def __init__(self, declaration: Declaration, home: str, staging: Path):
        """Write to `staging` instead; the state folder is shared."""
        super().__init__(declaration, home)
        self._staging = staging
        self.state_dir.mkdir(parents=True, exist_ok=True)

    def say(self, text: str) -> None:
        """Say nothing: the other run does."""


def run_seed(stage: str, body: Callable[[Stage, int], None], home: str) -> None:
    """Run a stage of a matrix over seeds, whose seed is the last word of the command line.

    Of several processes (torchrun) the first runs the stage, and the others follow; it ends when all have ended.
    """
    seed = sys.argv[-1]
    if not seed.isdecimal():
        raise SystemExit(f"leverlab: stage {stage}: give its seed, a whole number; run it with dvc repro {stage}")

    def together(run: Stage) -> None:
        body(run, int(seed))
        if torch.distributed.is_initialized():
            torch.distributed.barrier()

    if os.environ.get("RANK", "0") == "0":
        run_stage(stage, together, {"seed": seed}, home)
    else:
        with tempfile.TemporaryDirectory() as folder:
            together(Follower(read_declaration(Path(home) / "dvc.yaml", stage, {"seed": seed}), home, Path(folder)))
