"""What picking demos for a new question takes with a bundle: milliseconds of CPU time, as a median.

`python -m benchmarks.picking` reads `models/bundle` and the validation questions, which `make repro` wrote. Each step
of `leverlab select` is measured, and the selector in three ways in turn, on one thread: numpy with the pool's demos
encoded once, as the bundle has it, numpy with the candidates encoded anew for each question, and the torch network of
training (the same architecture with random weights). It exits with 1 when the two numpy ways do not pick the same
demos.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
import typer
from rich.console import Console
from rich.table import Table

from leverlab.deploy.bundle import Bundle
from leverlab.records import read_examples
from leverlab.selector.architecture import Architecture
from leverlab.selector.decoding import greedy
from leverlab.selector.inference import InferenceSelector
from leverlab.selector.network import Selector

StepT = TypeVar("StepT")


def main(
    bundle: Annotated[Path, typer.Option(help="Folder of the bundle.")] = Path("models/bundle"),
    questions: Annotated[int, typer.Option(min=1, help="Validation questions to pick for.")] = 100,
    repeats: Annotated[int, typer.Option(min=1, help="Times that each question is asked.")] = 5,
) -> None:
    """Measure and print the table."""
    torch.set_num_threads(1)
    opened, selector = Bundle(bundle), InferenceSelector.load(bundle)
    shots, known = opened.info.shots, opened.features
    network = Selector(tuple(selector.config["widths"]), Architecture.read(selector.config), dropout=0.0).eval()
    times: dict[str, list[float]] = {}

    def timed(name: str, step: Callable[..., StepT], *arguments: Any) -> StepT:
        start = time.process_time()
        found = step(*arguments)
        times.setdefault(name, []).append(1000 * (time.process_time() - start))
        return found

    asked = read_examples(Path("data/prepared/val.parquet"))[:questions]
    opened.pick(opened.question(asked[0].image, asked[0].question), shots)  # decodes the vision part
    for example in asked * repeats:
        question = timed("image and question, checked", opened.question, example.image, example.question)
        vectors = timed("features", opened.vectors, question)
        offered = timed("candidates", opened.candidates, question, vectors)
        ours = timed("selector: numpy, pool encoded once", opened.selector.pick, vectors, offered, shots)
        rows = known.rows(offered)
        demos = [part[None, rows] for part in (known.image_ND, known.question_ND, known.answer_ND)]
        anew = timed("selector: numpy, candidates encoded anew", selector.pick, vectors, demos, shots)[0]
        if [demo for demo, _ in ours] != [offered[place] for place in anew.tolist()]:
            raise SystemExit(f"the two ways pick other demos for {example.id}")
        timed("selector: torch", pick_with_torch, network, vectors, demos, shots)
    table = Table("step", "median (ms)", "95th percentile (ms)", title=f"{len(asked)} questions, {repeats} times")
    for name, values in times.items():
        table.add_row(name, f"{statistics.median(values):.2f}", f"{statistics.quantiles(values, n=20)[-1]:.2f}")
    Console().print(table)


@torch.no_grad()
def pick_with_torch(network: Selector, vectors: tuple[Any, Any], demos: list[Any], shots: int) -> torch.Tensor:
    """Return the greedy picks of the network of training."""
    image, text = (torch.as_tensor(part) for part in vectors)
    first, second, third = (torch.as_tensor(part) for part in demos)
    return greedy(network, network.encode((image, text), (first, second, third)), shots)


if __name__ == "__main__":
    typer.run(main)
