"""A talk at the terminal with a policy of the recipe `clarify`: it asks, you answer, and the reward is shown."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from leverlab.config.base import parse_section, read_params
from leverlab.config.dialogues import BaseModelParams, DialogueParams, DialogueRewardParams
from leverlab.errors import LeverlabError
from leverlab.lm.adapters import load_base, load_policy
from leverlab.lm.chat import Chat
from leverlab.lm.dialogues import WEIGHTS, Dialogue, reply, terms, verified_reward
from leverlab.lm.questions import Question
from leverlab.lm.reasons import reasons
from leverlab.lm.rollouts import Limits, roll_out
from leverlab.lm.turns import Turn, parse_turn
from leverlab.nearest import did_you_mean
from leverlab.terminal import printable
from leverlab.texts import normalised

BASE = "base"  # the base model without an adapter
POLICIES = (BASE, "sft", "rce", "grpo", "dpo")
HELP = f"""\
an empty line or /new   a question drawn from the split
/question ID            this question of the split
any other text          a question of your own
/policy NAME            talk to another policy: {", ".join(POLICIES)}
/help                   this list
/quit                   leave
When the policy asks, your line is the reply; an empty line lets the simulated user reply, as the brackets tell."""
_COMMANDS = ("/new", "/question", "/policy", "/help", "/quit")
_STYLES = {"thinks": "dim", "asks": "yellow", "answers": "bold", "says": "red"}


@dataclass(frozen=True)
class Speaker:
    """A policy that can be talked to."""

    name: str
    model: Any
    chat: Chat


@dataclass(frozen=True)
class Recipe:
    """What a talk needs of a recipe: its base (a folder or hub id), limits, what a needless ask costs at the end."""

    folder: Path
    source: str
    dtype: str
    limits: Limits
    alpha: float


def read_recipe(folder: Path) -> Recipe:
    """Return the recipe in `folder`, from the sections `base`, `dialogues` and `reward` of its params.yaml.

    A base that is a folder is counted from the root of the DVC repository around the recipe. Raises `LeverlabError`
    when a section is missing or not valid.
    """
    path, here = folder / "params.yaml", folder.resolve()
    data = read_params(path)
    base = parse_section(BaseModelParams, "base", data, str(path))
    limits = parse_section(DialogueParams, "dialogues", data, str(path))
    reward = parse_section(DialogueRewardParams, "reward", data, str(path))
    root = next((parent for parent in (here, *here.parents) if (parent / ".dvc").is_dir()), here)
    source = str(root / base.source) if (root / base.source).is_dir() else base.source
    return Recipe(folder, source, base.dtype, Limits(limits.turns, limits.tokens), reward.alpha)


def questions_file(folder: Path, split: str) -> Path:
    """Return where the questions of a split lie. Raises `LeverlabError` when there are other splits, but not this."""
    path = folder / "data" / "questions" / f"{split}.jsonl"
    splits = sorted(file.stem for file in path.parent.glob("*.jsonl"))
    if splits and split not in splits:
        hint = did_you_mean(split, splits)
        raise LeverlabError(f"{path} does not exist; the splits there are {', '.join(splits)}{hint}")
    return path


def adapter_folder(folder: Path, policy: str, seed: int) -> Path | None:
    """Return where the adapter of a policy lies; None for the base. That of `grpo` is the one that select-best chose.

    Raises `LeverlabError` when no policy has that name.
    """
    if policy not in POLICIES:
        raise LeverlabError(
            f"there is no policy '{policy}'; name one of {', '.join(POLICIES)}{did_you_mean(policy, POLICIES)}"
        )
    if policy == BASE:
        return None
    return folder / "models" / ("best" if policy == "grpo" else policy) / str(seed) / "adapter"


def load_speaker(recipe: Recipe, policy: str, seed: int) -> Speaker:
    """Return a policy of a recipe, on a GPU where there is one.

    The base is loaded every time, because an adapter changes it in place. Raises `LeverlabError` when base or adapter
    is missing, damaged, or they do not belong together.
    """
    adapter = adapter_folder(recipe.folder, policy, seed)
    base = load_base(recipe.source, recipe.dtype)
    model: Any = base.model if adapter is None else load_policy(base, adapter)
    return Speaker(policy, model.to("cuda" if torch.cuda.is_available() else "cpu"), base.chat)


def own_question(text: str) -> Question:
    """Return a question that was typed in: no answer to it is known, and no reply."""
    return Question(
        id="typed",
        family="typed",
        kind="typed",
        text=text,
        answer="not known",
        needs_ask=False,
        slot="",
        replies={},
        user="you",
        wording=0,
        thought="not known",
        thought_told="not known",
    )


def parts(turn: Turn) -> list[tuple[str, str]]:
    """Return what is in a turn as pairs of a verb and words; one that does not parse is one part, as it stands."""
    if not turn.parses:
        return [("says", turn.text)]
    act = ("answers", turn.final) if turn.ask is None else ("asks", turn.ask)
    return [(verb, words) for verb, words in (("thinks", turn.think), act) if words]


def reward_table(dialogue: Dialogue, alpha: float) -> Table:
    """Return the terms of the verified reward with the reason for each, and their sum, as a table to print."""
    found, why = terms(dialogue), reasons(dialogue)
    table = Table("term", "value", "weight", "reward", "reason")
    for name, weight in {**WEIGHTS, "needless": -alpha}.items():
        value = getattr(found, name)
        reward = weight * value + 0.0  # no -0
        table.add_row(name, f"{value:g}", f"{weight:g}", f"{reward:.2f}", printable(why[name]))
    table.add_row("total", "", "", f"{verified_reward(found, alpha):.2f}", f"at alpha {alpha:g}")
    return table


def ending(dialogue: Dialogue) -> str:
    """Return how a dialogue ended."""
    return {
        "final": f"the dialogue ends with an answer; asks: {len(dialogue.asks)}",
        "unparsed": "the dialogue ends: its last turn is neither an ask nor an answer",
        "cut": "the dialogue ends: its last turn was too long and was cut, so it says nothing",
        "turns": f"the dialogue ends without an answer: turn {len(dialogue.turns)} is the last one, and it asks",
    }[dialogue.end]


class _Heard(Chat):
    """A chat that passes each turn on as soon as it was said, before the user is asked for a reply."""

    def __init__(self, chat: Chat, hear: Callable[[Turn], None]):
        self.__dict__.update(chat.__dict__)
        self._hear = hear

    def text(self, ids: list[int]) -> str:
        said = super().text(ids)
        self._hear(parse_turn(said))
        return said


class _LeftError(Exception):
    """A command was given where a reply was due."""


class Talk:
    """A talk about the questions of a split, and others, with policies that `load` loads by name.

    alpha: what a needless ask costs. read: returns the next line of the user for a prompt, and raises EOFError when
    there is none. Draws of questions
    and of words depend on `seed` alone.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        load: Callable[[str], Speaker],
        policy: str,
        limits: Limits,
        alpha: float,
        temperature: float,
        seed: int,
        read: Callable[[str], str],
        console: Console,
    ):
        self._by_id = {question.id: question for question in questions}
        self._by_text = {question.text: question for question in questions}
        self._load, self._speaker = load, load(policy)
        self._limits, self._alpha, self._temperature = limits, alpha, temperature
        self._draws = random.Random(seed)
        self._generator = torch.Generator(self._speaker.model.device).manual_seed(seed)
        self._read, self._console = read, console

    def run(self) -> None:
        """Talk until the user quits or has no more lines. An error is told, and the talk goes on."""
        self._say(HELP)
        line: str | None = None  # one that is to be followed before the next is read
        while True:
            try:
                line = self._line(f"\n{self._speaker.name}, question or /help: ") if line is None else line
                if line.split()[:1] == ["/quit"]:
                    return
                self._follow(line)
                line = None
            except EOFError:
                return
            except _LeftError as left:
                line = str(left)
            except LeverlabError as error:
                self._say(f"leverlab: {error}", "red")
                line = None

    def _follow(self, line: str) -> None:
        command, _, argument = line.partition(" ")
        if command in ("", "/new"):
            self._play(self._draws.choice(list(self._by_id.values())))
        elif command == "/question":
            if argument not in self._by_id:
                hint = did_you_mean(argument, self._by_id)
                raise LeverlabError(
                    f"the split has no question '{argument}'{hint or f'; an id is {next(iter(self._by_id))}'}"
                )
            self._play(self._by_id[argument])
        elif command == "/policy":
            self._speaker = self._load(argument)
        elif command == "/help":
            self._say(HELP)
        elif command.startswith("/"):
            raise LeverlabError(_no_command(command))
        else:
            self._play(self._by_text.get(line) or own_question(line))

    def _play(self, question: Question) -> None:
        """Let the policy speak until the dialogue ends, and tell what it was worth."""
        self._say(f"question {question.id}: {question.text}")
        speaker = self._speaker
        heard = _Heard(speaker.chat, self._hear)
        (rollout,) = roll_out(
            speaker.model, heard, [question], 1, self._limits, self._temperature, self._generator, self._answer
        )
        dialogue = rollout.dialogue
        self._say(ending(dialogue))
        if question is not self._by_id.get(question.id):
            self._say("the right answer is not known: there is no reward")
            return
        self._say("success" if dialogue.success else "no success", "green" if dialogue.success else "red")
        self._console.print(reward_table(dialogue, self._alpha))
        if any(said != reply(question, ask) for ask, said in zip(dialogue.asks, dialogue.replies, strict=False)):
            self._say("you replied otherwise than the simulated user, for whose replies the right answer holds")

    def _hear(self, turn: Turn) -> None:
        for verb, words in parts(turn):
            self._say(f"{self._speaker.name} {verb}: {words}", _STYLES[verb])

    def _answer(self, question: Question, ask: str) -> str:
        """Return the reply of the user at the keyboard, or of the simulated one. Raises `_LeftError` at a command."""
        simulated = reply(question, ask)
        while True:
            line = self._line(f"reply [{simulated}]: ")
            command = line.split()[:1]
            if command == ["/help"]:
                self._say(HELP)
            elif command and command[0] in _COMMANDS:
                raise _LeftError(line)
            elif command and command[0].startswith("/"):
                self._say(_no_command(command[0]), "red")
            else:
                self._say(f"user: {line or simulated}")
                return line or simulated

    def _line(self, prompt: str) -> str:
        return normalised(" ".join(self._read(printable(prompt)).split()))

    def _say(self, text: str, style: str | None = None) -> None:
        self._console.print(printable(text), style=style, soft_wrap=True)


def _no_command(command: str) -> str:
    return f"there is no command '{command}'{did_you_mean(command, _COMMANDS, '/help')}"
