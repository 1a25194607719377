"""The scoring engine beside the naive way: scorings per CPU-second, and how far the log-probabilities differ.

`python -m benchmarks.scoring` measures all of them in turn, several times over, in one process on one thread, so that
other work on the machine hurts all alike: read the ratios. Every list of 4 demos is scored at 0 to 4 shots: the naive
way takes one `model(**inputs)` a prompt through the processor, `score` one tree-shaped row a list, with or without the
greedy answers, `score groups` the 16 lists that a policy samples for a question, which begin alike, and `extend` is the
beam search of the rl-data stage; these two score other prompts, and equal ones count as often as they are asked. It
writes nothing unless `--json` names a file, and exits with 1 when float32 log-probabilities differ from the naive way's
by more than 1e-4.
"""

import json
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from leverlab.records import Example
from leverlab.training.collect import beam_search
from leverlab.vlm.model import Vlm, load_vlm
from leverlab.vlm.scoring import Scorer
from leverlab.vlm.tries import DemoList
from leverlab.vlm.turns import TurnTable
from leverlab.worlds.digits import digits_world

SHOTS = range(5)
BEAM_WIDTH = 5
LIMIT = 1e-4  # of |Δ log-probability| in float32


@dataclass
class Row:
    """One way of scoring: what each repeat took, and the largest difference from the naive way."""

    name: str
    scorings: int = 0  # of one repeat
    cpu_seconds: list[float] = field(default_factory=list)
    max_difference: float = 0.0  # of mean log-probabilities an answer token, nats
    peak_mib: float = 0.0  # peak memory of the process up to the end of this row's first repeat

    @property
    def rate(self) -> float:
        """Scorings per CPU-second, median of the repeats."""
        return self.scorings / statistics.median(self.cpu_seconds)


def naive_log_probability(vlm: Vlm, demos: Sequence[Example], question: Example) -> float:
    """Return the mean log-probability of the tokens of `question`'s reference answer, from one plain forward.

    Everything goes through the processor and the model as their documentation shows it; nothing of leverlab's prompts,
    packing or decoder is used. The answer is what stands between the generation prompt and the end token.
    """
    messages = [message for example in (*demos, question) for message in _messages(example)]
    text = vlm.processor.apply_chat_template(messages, tokenize=False)
    prompt = vlm.processor.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    images = [example.open_image() for example in (*demos, question)]
    inputs = vlm.processor(text=[text], images=images, return_tensors="pt")
    tokenizer = vlm.processor.tokenizer
    completion = tokenizer(text[len(prompt) :], add_special_tokens=False).input_ids
    ids = inputs["input_ids"][0]
    first, answer = len(ids) - len(completion), completion.index(tokenizer.eos_token_id)
    if not text.startswith(prompt) or ids[first:].tolist() != completion:
        raise ValueError(f"the answer of '{question.id}' is not tokenised alone")
    with torch.no_grad():
        logits = vlm.model(**inputs.to(vlm.device)).logits[0].float()
    logp_AV = torch.log_softmax(logits[first - 1 : first - 1 + answer], dim=-1)
    return float(logp_AV[torch.arange(answer), ids[first : first + answer]].mean())


def _messages(example: Example) -> list[dict[str, Any]]:
    question = [{"type": "image"}, {"type": "text", "text": example.question}]
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": [{"type": "text", "text": example.answer}]},
    ]


class Bench:
    """The questions, the demos and the lists that every way of scoring gets."""

    def __init__(self, source: str, lists: int, searches: int):
        self.source = source
        world = digits_world(pool=64, train=lists, val=1, test=1, label_noise=0.0, seed=0)
        self.pool, self.questions = list(world.pool), list(world.train)
        self.examples = {example.id: example for example in (*self.pool, *self.questions)}
        rng = np.random.default_rng(0)
        self.lists: list[DemoList] = [
            tuple(self.pool[index].id for index in rng.permutation(len(self.pool))[: max(SHOTS)])
            for _ in self.questions
        ]
        # as the policy of a trained GRPO run: of 16 lists about 2, 5, 8 and 11 differ after 1, 2, 3 and 4 demos
        branches = np.array([[g % 2, g % 5, g % 8, g % 11] for g in range(16)]) + 16 * np.arange(max(SHOTS))
        self.groups = [
            (question.id, tuple(self.pool[(index + 7 * number) % len(self.pool)].id for index in row))
            for number, question in enumerate(self.questions[:searches])
            for row in branches.tolist()
        ]
        self.searched = [question.id for question in self.questions[:searches]]
        self.plain = load_vlm(source, "float32", "cpu")  # stays untouched by the engine's fused weights
        self.naive_logp: dict[tuple[str, DemoList], float] = {}
        self.found: dict[tuple[str, DemoList], float] = {}  # probabilities that the last run of the engine gave

    def scorer(self, dtype: str, batch_tokens: int) -> Scorer:
        """Return a scorer of all questions and demos, with an embedded table and no cache."""
        table = TurnTable(load_vlm(self.source, dtype, "cpu"))
        table.add_demos(self.pool)
        table.add_questions(self.questions)
        return Scorer(table, batch_tokens, max_new_tokens=4)

    def naive(self, question: str, demos: DemoList) -> float:
        """Return the naive log-probability, computed once."""
        asked = (question, demos)
        if asked not in self.naive_logp:
            found = naive_log_probability(self.plain, [self.examples[demo] for demo in demos], self.examples[question])
            self.naive_logp[asked] = found
        return self.naive_logp[asked]

    def run_naive(self) -> int:
        """Score every prefix of every list, one forward a prompt; return how many."""
        self.naive_logp.clear()
        self.found.clear()
        for question, demos in zip(self.questions, self.lists, strict=True):
            for shots in SHOTS:
                self.naive(question.id, demos[:shots])
        return len(self.naive_logp)

    def run_trees(self, scorer: Scorer, texts: bool) -> int:
        """Score the same prompts, all prefixes of a list in one row; return how many."""
        scores = scorer.score([question.id for question in self.questions], self.lists, SHOTS, texts=texts)
        self.found = {
            (question.id, demos[:shots]): float(scores.answer_prob_NM[n, m])
            for n, (question, demos) in enumerate(zip(self.questions, self.lists, strict=True))
            for m, shots in enumerate(SHOTS)
        }
        return len(self.found)

    def run_groups(self, scorer: Scorer) -> int:
        """Score groups of lists that begin alike at every shot count; return how many prompts were asked for."""
        questions, lists = zip(*self.groups, strict=True)
        scores = scorer.score(questions, lists, SHOTS)
        self.found = {
            (question, demos[:shots]): float(scores.answer_prob_NM[n, m])
            for n, (question, demos) in enumerate(self.groups)
            for m, shots in enumerate(SHOTS)
        }
        return len(self.groups) * len(SHOTS)

    def run_search(self, scorer: Scorer) -> int:
        """Search beams for a few questions; return how many prompts were scored on the way."""
        before, candidates = scorer.computed, [demo.id for demo in self.pool]
        beams = {
            question: beam_search(scorer, question, candidates, BEAM_WIDTH, max(SHOTS)) for question in self.searched
        }
        self.found = {
            (question, demos[: index + 1]): probability
            for question, lists in beams.items()
            for demos, probabilities in lists
            for index, probability in enumerate(probabilities)
        }
        return scorer.computed - before

    def difference(self) -> float:
        """Return max |Δ log-probability| between what the last run found and the naive way."""
        return max((abs(np.log(value) - self.naive(*asked)) for asked, value in self.found.items()), default=0.0)


def measure(bench: Bench, repeats: int, batch_tokens: int) -> tuple[list[Row], float]:
    """Return a row for each way of scoring, the naive one first, and the CPU-seconds that embedding an example takes
    once."""
    start = time.process_time()
    scorers = {dtype: bench.scorer(dtype, batch_tokens) for dtype in ("float32", "bfloat16")}
    embedding = (time.process_time() - start) / (len(bench.examples) * len(scorers))
    ways: dict[str, Callable[[], int]] = {"naive float32": bench.run_naive}
    for dtype, scorer in scorers.items():
        ways[f"score {dtype}"] = partial(bench.run_trees, scorer, texts=False)
        ways[f"score with answers {dtype}"] = partial(bench.run_trees, scorer, texts=True)
        ways[f"score groups {dtype}"] = partial(bench.run_groups, scorer)
        ways[f"extend {dtype}"] = partial(bench.run_search, scorer)
    rows = {name: Row(name) for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            row, start = rows[name], time.process_time()
            row.scorings = way()
            row.cpu_seconds.append(time.process_time() - start)
            row.max_difference = max(row.max_difference, bench.difference())
            row.peak_mib = row.peak_mib or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return list(rows.values()), embedding


def main(
    vlm: Annotated[str, typer.Option(help="Folder of the VLM, in the hub's format.")] = "worlds/digits/vlm",
    lists: Annotated[int, typer.Option(min=1, help="Lists of 4 demos, each scored at 0-4 shots.")] = 64,
    searches: Annotated[int, typer.Option(min=1, help="Questions to search beams for.")] = 2,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; the medians are reported.")] = 3,
    batch_tokens: Annotated[int, typer.Option(min=64, help="Tokens of one forward.")] = 4096,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file too.")] = None,
) -> None:
    """Measure the scoring engine beside the naive way."""
    torch.set_num_threads(1)
    bench = Bench(vlm, lists, searches)
    rows, embedding = measure(bench, repeats, batch_tokens)
    naive = rows[0].rate
    table = Table("way", "scorings", "a CPU-second", "ratio", "max |Δ logp|", "peak MiB")
    for row in rows:
        table.add_row(
            row.name,
            str(row.scorings),
            f"{row.rate:,.0f}",
            f"{row.rate / naive:.1f}",
            f"{row.max_difference:.1e}",
            f"{row.peak_mib:,.0f}",
        )
    console = Console()
    console.print(table)
    console.print(
        f"{vlm}: medians of {repeats} rounds, one thread, {batch_tokens} tokens a forward, no cache. Embedding an "
        f"example, once for all its scorings: {embedding * 1e3:.2f} CPU-milliseconds, not in the rates. Peak memory "
        "is that of the process so far."
    )
    if json_path is not None:
        figures = [{**asdict(row), "per_cpu_second": row.rate, "ratio_to_naive": row.rate / naive} for row in rows]
        content = {"vlm": vlm, "repeats": repeats, "embedding_cpu_seconds": embedding, "ways": figures}
        json_path.write_text(json.dumps(content, indent=2) + "\n")
    worst = max(row.max_difference for row in rows if "float32" in row.name)
    if not worst <= LIMIT:
        console.print(f"float32 log-probabilities differ from the naive way's by {worst:.1e}, more than {LIMIT:.0e}")
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
