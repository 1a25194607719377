"""benchmark: speed and memory of the exported files in llama.cpp, beside transformers in the same run."""

import json
import os
import platform
from pathlib import Path
from typing import Any

from leverlab.config.benchmark import BenchmarkParams
from leverlab.config.gguf import KINDS, MMPROJ, GgufKinds, RuntimeParams, text_file
from leverlab.config.vlm import VlmAnswers
from leverlab.deploy.benchmark import Prompts, Run, run_llama_cpp, run_transformers, summary
from leverlab.deploy.llama_cpp import LlamaCppError, Settings
from leverlab.evaluation.quantised import RANDOM, to_answer
from leverlab.evaluation.summary import ANSWER_SCHEMA
from leverlab.export.vision_part import image_limits
from leverlab.files import write_text
from leverlab.records import read_examples, read_table
from leverlab.selector.inference import InferenceSelector
from leverlab.stage import Stage, run_stage
from leverlab.vlm.model import checkpoint_folder

DTYPES = ("float32", "bfloat16")  # of transformers


def body(stage: Stage) -> None:
    """Write the medians of each engine; engines take turns in every run, so that a busy minute hits all of them."""
    params, vlm = stage.section("benchmark", BenchmarkParams), stage.section("vlm", VlmAnswers)
    kinds, runtime = stage.section("gguf", GgufKinds).kinds, stage.section("runtime", RuntimeParams)
    models, prompts = stage.dep("models/gguf"), _prompts(stage, params.questions)
    settings = Settings(image_limits(checkpoint_folder(vlm.source)), runtime.context, runtime.threads, runtime.seconds)
    runs: dict[str, list[Run]] = {name: [] for name in (*(f"transformers {dtype}" for dtype in DTYPES), *kinds)}
    errors: dict[str, str] = {}
    for _ in stage.progress(range(params.runs), "runs", params.runs):
        for dtype in DTYPES:
            runs[f"transformers {dtype}"].append(
                run_transformers(vlm.source, dtype, runtime.threads, prompts, vlm.max_new_tokens)
            )
        for kind in (kind for kind in kinds if kind not in errors):
            try:
                run = run_llama_cpp(models / text_file(kind), models / MMPROJ, settings, prompts, vlm.max_new_tokens)
                runs[kind].append(run)
            except LlamaCppError as error:
                errors[kind] = str(error)
                stage.say(f"NOT MEASURED: {kind}: {error}")
    figures: dict[str, Any] = {
        "deterministic": False,
        "machine": {"processor": platform.machine(), "cpus": os.cpu_count(), "threads": runtime.threads},
        "questions": params.questions,
        "runs": params.runs,
        "engines": {
            name: {"error": errors[name]}
            if name in errors
            else {"file_mib": _mib(models, checkpoint_folder(vlm.source), name)} | summary(found)
            for name, found in runs.items()
        },
    }
    write_text(stage.out("reports/benchmark.json"), json.dumps(figures, indent=2) + "\n")


def _prompts(stage: Stage, questions: int) -> Prompts:
    """Return the first test questions with the demos of the selector that is deployed, by shot count."""
    data, chosen = stage.dep("data/prepared"), InferenceSelector.load(stage.dep("models/selector")).config
    demos = {demo.id: demo for demo in read_examples(data / "pool.parquet")}
    asked = read_examples(data / "test.parquet")[:questions]
    answers = read_table(stage.dep("data/answers.parquet"), ANSWER_SCHEMA).to_pandas()
    shown = to_answer(answers, chosen["method"], chosen["seed"])
    lists = shown[shown["method"] != RANDOM].set_index(["shots", "question_id"])["demos"]
    return {
        int(shots): [([demos[demo] for demo in lists[shots, question.id]], question) for question in asked]
        for shots in sorted(set(lists.index.get_level_values("shots")))
    }


def _mib(models: Path, checkpoint: Path, name: str) -> float:
    """Return the size of what an engine loads: an exported text file, or the whole checkpoint."""
    files = [models / text_file(name)] if name in KINDS else checkpoint.glob("*.safetensors")
    return round(sum(file.stat().st_size for file in files) / 2**20, 3)


if __name__ == "__main__":
    run_stage("benchmark", body)
