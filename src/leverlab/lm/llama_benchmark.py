"""Speed and memory of exported language models in llama.cpp, beside the checkpoint in transformers, in one run.

As `leverlab.deploy.benchmark`: one prompt at a time, each engine in a process of its own. What is measured differs
from run to run and from machine to machine.
"""

import multiprocessing
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import StoppingCriteriaList

from leverlab.deploy.benchmark import Run, Timing, _Clock, summary
from leverlab.errors import LeverlabError
from leverlab.lm.adapters import load_base
from leverlab.lm.llama import TextLlamaCpp
from leverlab.vlm.model import GREEDY

_ALL = 0  # prompts are not told apart by a shot count
Prompts = Sequence[Sequence[int]]


def run_llama_cpp(model: Path, context: int, threads: int, seconds: float, prompts: Prompts, most: int) -> Run:
    """Return a run of an exported file: the turn after each prompt, of at most `most` tokens.

    context, threads, seconds: as for `TextLlamaCpp`. Raises `LlamaCppError` when the runtime fails.
    """
    with TextLlamaCpp(model, context, threads, seconds) as engine:

        def answer(prompt: Sequence[int]) -> Timing:
            started = time.perf_counter()
            said = engine.complete(prompt, most)
            return Timing(time.perf_counter() - started, said.prompt_per_second, said.predicted_per_second)

        timings = _answer_all(answer, prompts)
        return Run(engine.load_seconds, engine.resident_mib(), {_ALL: timings})


def run_transformers(source: str, dtype: str, threads: int, prompts: Prompts, most: int) -> Run:
    """Return a run of the checkpoint in `source`, in a new process. Raises `LeverlabError` when that process dies."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_transformers, source, dtype, threads, prompts, most).result()
        except BrokenProcessPool:
            raise LeverlabError(
                f"the process that ran {source} in transformers and {dtype} died, probably for want of memory; free "
                "some, or lower the number of prompts of the benchmark"
            ) from None


def medians(runs: Iterable[Run]) -> dict[str, Any]:
    """Return the medians over runs: load_seconds, resident_mib, tokens per second of the prompt and of the turn (None
    where all turns have a single token), and as latency_ms the median (p50) and the 95th percentile (p95) of the
    milliseconds of a turn."""
    found = summary(runs)
    return found | {"latency_ms": found["latency_ms"][f"shots_{_ALL}"]}


def _answer_all(answer: Callable[[Sequence[int]], Timing], prompts: Prompts) -> list[Timing]:
    """Return the timings; the first prompt is answered once before, to warm up."""
    answer(prompts[0])
    return [answer(prompt) for prompt in prompts]


def _transformers(source: str, dtype: str, threads: int, prompts: Prompts, most: int) -> Run:
    torch.set_num_threads(threads)
    started = time.perf_counter()
    base = load_base(source, dtype)
    load_seconds = time.perf_counter() - started
    timings = _answer_all(lambda prompt: _generate(base.model, base.chat.eos, prompt, most), prompts)
    return Run(load_seconds, psutil.Process().memory_info().rss / 2**20, {_ALL: timings})


@torch.no_grad()
def _generate(model: Any, eos: int, prompt: Sequence[int], most: int) -> Timing:
    clock, started = _Clock(), time.perf_counter()
    ids = torch.tensor([list(prompt)], device=model.device)
    model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        **GREEDY,
        eos_token_id=eos,
        pad_token_id=eos,
        max_new_tokens=most,
        stopping_criteria=StoppingCriteriaList([clock]),
    )
    first, last = clock.times[0], clock.times[-1]
    return Timing(
        seconds=time.perf_counter() - started,
        prompt_per_second=len(prompt) / (first - started),
        predicted_per_second=(len(clock.times) - 1) / (last - first) if len(clock.times) > 1 else float("nan"),
    )
