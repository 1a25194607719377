"""Medians of timings against hand-worked ones; no test measures speed."""

import json
import math
import os
from collections.abc import Sequence

import pytest

from leverlab.deploy import benchmark
from leverlab.deploy.benchmark import Run, Timing, _answer_all, run_transformers, summary
from leverlab.errors import LeverlabError
from leverlab.records import Example


def run(load: float, memory: float, seconds: dict[int, list[float]], rate: float = 10.0) -> Run:
    return Run(load, memory, {shots: [Timing(s, rate, 2 * rate) for s in own] for shots, own in seconds.items()})


def test_medians_are_over_runs() -> None:
    runs = [
        run(1.0, 50.0, {0: [0.001, 0.002, 0.003], 4: [0.01, 0.02, 0.03]}, rate=10),
        run(3.0, 70.0, {0: [0.004, 0.005, 0.006], 4: [0.04, 0.05, 0.06]}, rate=30),
        run(2.0, 60.0, {0: [0.007, 0.008, 0.009], 4: [0.07, 0.08, 0.09]}, rate=20),
    ]
    assert summary(runs) == {
        "load_seconds": 2.0,
        "resident_mib": 60.0,
        "prompt_per_second": 20.0,
        "predicted_per_second": 40.0,
        "latency_ms": {"shots_0": {"p50": 5.0, "p95": 5.9}, "shots_4": {"p50": 50.0, "p95": 59.0}},
    }


def test_rates_are_those_of_the_largest_shot_count() -> None:
    timings = {0: [Timing(1, 999, 999)], 2: [Timing(1, 5, 6), Timing(1, 7, 8), Timing(1, 9, 10)]}
    found = summary([Run(1, 1, timings)])
    assert (found["prompt_per_second"], found["predicted_per_second"]) == (7, 8)


def test_answers_of_one_token_have_no_rate() -> None:
    """transformers' clock gives NaN, llama.cpp 0; the others count, and without any there is no figure."""
    nothing, zero, known = Timing(1, 5, math.nan), Timing(1, 5, 0.0), Timing(1, 5, 8)
    assert summary([Run(1, 1, {1: [nothing, zero, known]})])["predicted_per_second"] == 8
    figures = summary([Run(1, 1, {1: [nothing, zero]})])
    assert figures["predicted_per_second"] is None
    json.dumps(figures, allow_nan=False)


def died(*_: object) -> Run:
    os._exit(9)


def test_a_process_of_transformers_that_dies_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "_transformers", died)
    with pytest.raises(LeverlabError, match="the process that ran somewhere in transformers and float32 died"):
        run_transformers("somewhere", "float32", 1, {}, 4)


def test_the_first_prompt_of_each_shot_count_is_answered_once_before() -> None:
    question = Example("q", b"", "", "?", "", ("a",))
    asked: list[int] = []

    def answer(demos: Sequence[Example], _: Example) -> Timing:
        asked.append(len(demos))
        return Timing(len(asked), 1, 1)

    prompts = {0: [((), question)] * 2, 1: [((question,), question)] * 2}
    found = _answer_all(answer, prompts)
    assert asked == [0, 0, 0, 1, 1, 1]
    assert {shots: [timing.seconds for timing in own] for shots, own in found.items()} == {0: [2, 3], 1: [5, 6]}
    assert pytest.approx(1) == found[0][0].prompt_per_second
