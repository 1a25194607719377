"""Speed and memory of exported models in llama.cpp, beside the checkpoint in transformers, in one run.

transformers answers one prompt at a time through its processor, as a server without an engine of its own would. Each
engine has a process of its own, so that its memory is its own. What is measured differs from run to run and from
machine to machine.
"""

import math
import multiprocessing
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from leverlab.deploy.llama_cpp import LlamaCpp, Settings, chat_messages, require_plain_texts
from leverlab.errors import LeverlabError
from leverlab.records import Example
from leverlab.vlm.model import GREEDY, Vlm, load_vlm
from leverlab.vlm.prompt import PromptFormat

Prompts = Mapping[int, Sequence[tuple[Sequence[Example], Example]]]  # by shot count: demos and question


@dataclass(frozen=True)
class Timing:
    """One answer: seconds in all, tokens of the prompt per second, and of the answer."""

    seconds: float
    prompt_per_second: float
    predicted_per_second: float


@dataclass(frozen=True)
class Run:
    """One run of one engine: seconds to load, resident memory after the last answer in MiB, timings by shot count."""

    load_seconds: float
    resident_mib: float
    timings: Mapping[int, Sequence[Timing]]


def run_llama_cpp(model: Path, mmproj: Path, settings: Settings, prompts: Prompts, max_new_tokens: int) -> Run:
    """Return a run of an exported file. Raises `LlamaCppError` when the runtime fails, or cannot be given a text."""
    with LlamaCpp(model, mmproj, settings) as engine:
        for asked in prompts.values():
            demos = [demo for shown, _ in asked for demo in shown]
            require_plain_texts(demos, [question for _, question in asked], engine.text_tokens)

        def answer(demos: Sequence[Example], question: Example) -> Timing:
            started = time.perf_counter()
            messages = chat_messages(demos, question, settings.images, engine.text_tokens)
            said = engine.answer(messages, max_new_tokens)
            return Timing(time.perf_counter() - started, said.prompt_per_second, said.predicted_per_second)

        timings = _answer_all(answer, prompts)
        return Run(engine.load_seconds, engine.resident_mib(), timings)


def run_transformers(source: str, dtype: str, threads: int, prompts: Prompts, max_new_tokens: int) -> Run:
    """Return a run of the checkpoint in `source`, in a new process. Raises `LeverlabError` when that process dies."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_transformers, source, dtype, threads, prompts, max_new_tokens).result()
        except BrokenProcessPool:
            raise LeverlabError(
                f"the process that ran {source} in transformers and {dtype} died, probably for want of memory; free "
                "some, or lower benchmark.questions"
            ) from None


def summary(runs: Iterable[Run]) -> dict[str, Any]:
    """Return the medians over runs: load_seconds, resident_mib, tokens per second at the largest shot count (where
    prompts are longest; None where all answers have a single token), and by shot count the median (p50) and the 95th
    percentile (p95) of an answer's milliseconds, images and all."""
    kept = list(runs)
    largest = max(kept[0].timings)

    def over_runs(figure: Callable[[Run], float]) -> float | None:
        value = median(map(figure, kept))
        return None if math.isnan(value) else float(f"{value:.4g}")

    def rate(figure: Callable[[Timing], float]) -> Callable[[Run], float]:
        return lambda run: _median_rate(map(figure, run.timings[largest]))

    def milliseconds(shots: int, percent: float) -> Callable[[Run], float]:
        return lambda run: 1000 * float(np.percentile([timing.seconds for timing in run.timings[shots]], percent))

    return {
        "load_seconds": over_runs(lambda run: run.load_seconds),
        "resident_mib": over_runs(lambda run: run.resident_mib),
        "prompt_per_second": over_runs(rate(lambda timing: timing.prompt_per_second)),
        "predicted_per_second": over_runs(rate(lambda timing: timing.predicted_per_second)),
        "latency_ms": {
            f"shots_{shots}": {f"p{percent}": over_runs(milliseconds(shots, percent)) for percent in (50, 95)}
            for shots in kept[0].timings
        },
    }


def _median_rate(rates: Iterable[float]) -> float:
    """Return the median of tokens per second. An answer of one token has none: NaN here, 0 in llama.cpp."""
    known = [rate for rate in rates if rate > 0]
    return median(known) if known else math.nan


def _answer_all(answer: Callable[[Sequence[Example], Example], Timing], prompts: Prompts) -> dict[int, list[Timing]]:
    """Return the timings by shot count; the first prompt of each is answered once before, to warm up."""
    timings = {}
    for shots, asked in prompts.items():
        answer(*asked[0])
        timings[shots] = [answer(demos, question) for demos, question in asked]
    return timings


class _Clock(StoppingCriteria):
    """Notes the time at each token of an answer; stops nothing."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _transformers(source: str, dtype: str, threads: int, prompts: Prompts, max_new_tokens: int) -> Run:
    torch.set_num_threads(threads)
    started = time.perf_counter()
    vlm = load_vlm(source, dtype)
    load_seconds = time.perf_counter() - started
    form = PromptFormat(vlm.processor)
    timings = _answer_all(lambda demos, question: _generate(vlm, form, demos, question, max_new_tokens), prompts)
    return Run(load_seconds, psutil.Process().memory_info().rss / 2**20, timings)


def _generate(vlm: Vlm, form: PromptFormat, demos: Sequence[Example], question: Example, max_new_tokens: int) -> Timing:
    clock, started = _Clock(), time.perf_counter()
    inputs = form.inputs(demos, question).to(vlm.device)
    stops = StoppingCriteriaList([clock])
    vlm.model.generate(**inputs, **GREEDY, max_new_tokens=max_new_tokens, stopping_criteria=stops)
    first, last = clock.times[0], clock.times[-1]
    return Timing(
        seconds=time.perf_counter() - started,
        prompt_per_second=inputs["input_ids"].shape[1] / (first - started),
        predicted_per_second=(len(clock.times) - 1) / (last - first) if len(clock.times) > 1 else float("nan"),
    )
