"""Our batched rollout beside the ways that TRL's users have: dialogues per CPU-second with a simulated user.

`python -m benchmarks.dialogues` lets all of them hold dialogues on the same questions in turn, several times over, in
one process on one thread, so that other work on the machine hurts all alike: read the ratios. `roll_out` keeps one
cache over all turns, computes once what dialogues on a question have in common, and folds the adapter in. TRL's plain
way completes all prompts of a turn in one left-padded `generate` of transformers, reads the whole dialogue again in the
next, and has the adapter beside the weights, as `GRPOTrainer` does. The naive way does so for one dialogue at a time,
on fewer questions. All draw at temperature 1 and give log-probabilities. Before, both ways hold greedy dialogues, which
must be the same but for ties: it exits with 1 when more than 2 % differ.
"""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from leverlab.lm.adapters import load_base, load_policy
from leverlab.lm.chat import Chat
from leverlab.lm.questions import Question, read_questions
from leverlab.lm.rollouts import Limits, Rollout, roll_out
from leverlab.lm.turn_rollouts import generate_engine, roll_out_by_turns

DIFFERENT = 0.02  # largest share of greedy dialogues that may differ
TEMPERATURE = 1.0


@dataclass
class Row:
    """One way of holding dialogues, and what each repeat took."""

    name: str
    dialogues: int = 0  # of all repeats
    turns: int = 0
    tokens: int = 0  # of the policy
    cpu_seconds: list[float] = field(default_factory=list)  # a dialogue, of each repeat

    @property
    def rate(self) -> float:
        """Dialogues per CPU-second, median of the repeats."""
        return 1 / statistics.median(self.cpu_seconds)

    def add(self, found: Sequence[Rollout], seconds: float) -> None:
        """Take a repeat."""
        self.dialogues += len(found)
        self.turns += sum(len(one.dialogue.turns) for one in found)
        self.tokens += sum(sum(one.own) for one in found)
        self.cpu_seconds.append(seconds / len(found))


class Bench:
    """The policy and the questions that every way gets."""

    def __init__(self, model: Any, chat: Chat, questions: Sequence[Question], copies: int, limits: Limits, naive: int):
        self.model, self.chat, self.questions = model, chat, questions
        self.copies, self.limits, self.naive = copies, limits, naive

    def batched(self, temperature: float = TEMPERATURE) -> list[Rollout]:
        """Hold all dialogues in one batch, its cache kept over the turns."""
        return roll_out(self.model, self.chat, self.questions, self.copies, self.limits, temperature)

    def by_turns(self, temperature: float = TEMPERATURE) -> list[Rollout]:
        """Hold them turn by turn, all of a turn in one `generate`."""
        say = generate_engine(self.model, self.chat, self.limits, temperature)
        return roll_out_by_turns(say, self.chat, self.questions, self.copies, self.limits)

    def one_by_one(self) -> list[Rollout]:
        """Hold one dialogue on each of a few questions, one prompt a `generate`."""
        say = generate_engine(self.model, self.chat, self.limits, TEMPERATURE)
        return [
            one
            for question in self.questions[: self.naive]
            for one in roll_out_by_turns(say, self.chat, [question], 1, self.limits)
        ]

    def different(self) -> float:
        """Return the share of greedy dialogues that are not the same batched and turn by turn."""
        pairs = zip(self.batched(0.0)[:: self.copies], self.by_turns(0.0)[:: self.copies], strict=True)
        return statistics.mean(one.completion != other.completion for one, other in pairs)


def measure(bench: Bench, repeats: int) -> list[Row]:
    """Return a row for each way, the naive one first; they take turns, and draw from the same seeds."""
    ways: dict[str, Callable[[], list[Rollout]]] = {
        "prompt by prompt": bench.one_by_one,
        "TRL's plain generate": bench.by_turns,
        "roll_out": bench.batched,
    }
    rows = {name: Row(name) for name in ways}
    for repeat in range(repeats):
        for name, way in ways.items():
            torch.manual_seed(repeat)
            start = time.process_time()
            found = way()
            rows[name].add(found, time.process_time() - start)
    return list(rows.values())


def main(
    base: Annotated[str, typer.Option(help="Folder of the base, in the hub's format.")] = "worlds/clarify/base",
    adapter: Annotated[Path, typer.Option(help="Folder of an adapter on it: the policy.")] = Path(
        "recipes/clarify/models/rce/0/adapter"
    ),
    data: Annotated[Path, typer.Option(help="Questions.")] = Path("recipes/clarify/data/questions/train.jsonl"),
    questions: Annotated[int, typer.Option(min=1, help="Questions of a batch.")] = 24,
    copies: Annotated[int, typer.Option(min=1, help="Dialogues on each.")] = 8,
    turns: Annotated[int, typer.Option(min=1, help="Most turns of the policy.")] = 4,
    tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a turn.")] = 32,
    naive: Annotated[int, typer.Option(min=1, help="Dialogues that are held prompt by prompt.")] = 12,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; the medians are reported.")] = 5,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file too.")] = None,
) -> None:
    """Measure the batched rollout beside TRL's plain way and the naive one."""
    torch.set_num_threads(1)
    loaded = load_base(base)
    model: Any = load_policy(loaded, adapter)
    bench = Bench(model, loaded.chat, read_questions(data)[:questions], copies, Limits(turns, tokens), naive)
    different = bench.different()
    rows = measure(bench, repeats)
    table = Table("way", "dialogues", "turns each", "tokens each", "a CPU-second", "ratio to TRL's")
    for row in rows:
        table.add_row(
            row.name,
            str(row.dialogues),
            f"{row.turns / row.dialogues:.2f}",
            f"{row.tokens / row.dialogues:.1f}",
            f"{row.rate:,.1f}",
            f"{row.rate / rows[1].rate:.2f}",
        )
    console = Console()
    console.print(table)
    console.print(
        f"{adapter}: medians of {repeats} rounds, one thread, {questions} questions x {copies} dialogues at "
        f"temperature {TEMPERATURE:g}. Greedy dialogues that differ between roll_out and TRL's way: {different:.1%}."
    )
    if json_path is not None:
        figures = [{**asdict(row), "per_cpu_second": row.rate, "ratio": row.rate / rows[1].rate} for row in rows]
        content = {"policy": str(adapter), "repeats": repeats, "different": different, "ways": figures}
        json_path.write_text(json.dumps(content, indent=2) + "\n")
    if different > DIFFERENT:
        console.print(f"{different:.1%} of the greedy dialogues differ, more than {DIFFERENT:.0%}")
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
