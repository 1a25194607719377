"""The command of `leverlab` on recipes of language models: chat. The library is imported inside it."""

import contextlib
import io
import math
import sys
from pathlib import Path
from typing import Annotated

import typer

from leverlab.terminal import echo


def chat(
    folder: Annotated[Path, typer.Argument(help="Folder of the recipe, such as recipes/clarify.")],
    stage: Annotated[
        str, typer.Option(help="The stage whose policy speaks: sft, rce, grpo, dpo; base for none.")
    ] = "grpo",
    seed: Annotated[int, typer.Option(min=0, help="Seed of its training, and of all draws of this talk.")] = 0,
    split: Annotated[str, typer.Option(help="The questions to draw from: data/questions/SPLIT.jsonl.")] = "test",
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the most probable word, 1 draws.")] = 0.0,
) -> None:
    """Talk to a policy of a recipe: it asks, you answer, and the terms of its reward are shown."""
    if not math.isfinite(temperature):
        raise typer.BadParameter("the temperature must be a number from 0 on")
    from transformers.utils import logging

    from leverlab.console import SafeConsole
    from leverlab.lm.questions import read_questions
    from leverlab.lm.talk import Speaker, Talk, load_speaker, questions_file, read_recipe

    logging.disable_progress_bar()
    recipe, questions = read_recipe(folder), read_questions(questions_file(folder, split))
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # a pipe may bring any byte

    def load(policy: str) -> Speaker:
        return load_speaker(recipe, policy, seed)

    on_terminal = sys.stdout.isatty()
    console = SafeConsole(width=None if on_terminal else 200, markup=False, emoji=False, highlight=False)
    talk = Talk(questions, load, stage, recipe.limits, recipe.alpha, temperature, seed, _read, console)
    with contextlib.suppress(KeyboardInterrupt):
        talk.run()
    console.print()


def _read(prompt: str) -> str:
    """Return the next line. One from a pipe is printed: what is written then holds the whole talk."""
    line = input(prompt)
    if not sys.stdin.isatty():
        echo(line)
    return line
