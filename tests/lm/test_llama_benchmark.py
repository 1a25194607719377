"""Medians of timings against hand-worked ones, and runs of both engines; no test measures speed."""

import os
from pathlib import Path

import pytest

from leverlab.deploy.benchmark import Run, Timing
from leverlab.errors import LeverlabError
from leverlab.lm import llama_benchmark
from leverlab.lm.llama_benchmark import _answer_all, medians, run_llama_cpp, run_transformers
from tests.lm.exported import QUESTIONS, Taught, taught


def test_medians_are_over_runs() -> None:
    """Of three runs of three turns; 95 % of the way from 4 to 6 ms in the steps of numpy is 5.9."""
    runs = [
        Run(load, 50 + load, {0: [Timing(ms / 1000, 10 * load, 20 * load) for ms in times]})
        for load, times in ((1.0, (1, 2, 3)), (3.0, (4, 5, 6)), (2.0, (7, 8, 9)))
    ]
    assert medians(runs) == {
        "load_seconds": 2.0,
        "resident_mib": 52.0,
        "prompt_per_second": 20.0,
        "predicted_per_second": 40.0,
        "latency_ms": {"p50": 5.0, "p95": 5.9},
    }


def test_the_first_prompt_is_answered_once_before() -> None:
    asked = []

    def answer(prompt: list[int]) -> Timing:
        asked.append(prompt[0])
        return Timing(float(prompt[0]), 1.0, 1.0)

    timings = _answer_all(answer, [[1], [2], [3]])  # type: ignore[arg-type]
    assert asked == [1, 1, 2, 3]
    assert [timing.seconds for timing in timings] == [1.0, 2.0, 3.0]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Taught:
    return taught(tmp_path_factory.mktemp("taught"), 0)


def test_both_engines_are_measured(policy: Taught, tmp_path: Path) -> None:
    prompts = [policy.chat.prompt(one.text) for one in QUESTIONS]
    ours = run_llama_cpp(policy.export("f16", tmp_path), 256, 1, 60.0, prompts, 6)
    theirs = llama_benchmark._transformers(str(policy.folder), "float32", 1, prompts, 6)
    for run in (ours, theirs):
        assert [len(timings) for timings in run.timings.values()] == [3]
        assert 0 < run.load_seconds < 60
        assert 10 < run.resident_mib < 10_000
        for timing in run.timings[0]:
            assert timing.seconds > 0
            # the six tokens and the prompt take no longer than all
            assert 5 / timing.predicted_per_second < timing.seconds
            assert timing.prompt_per_second > len(prompts[0]) / timing.seconds / 2


def died(*_: object) -> Run:
    os._exit(9)


def test_a_process_of_transformers_that_dies_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_benchmark, "_transformers", died)
    with pytest.raises(LeverlabError, match="the process that ran somewhere in transformers and float32 died"):
        run_transformers("somewhere", "float32", 1, [], 4)
