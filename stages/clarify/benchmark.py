"""benchmark: speed and memory of the exported policies in llama.cpp, beside transformers in the same run."""

import json
import os
import platform
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from leverlab.config.clarify_gguf import PolicyGgufKinds, TurnBenchmarkParams, policy_file
from leverlab.config.dialogues import DialogueParams
from leverlab.config.gguf import RuntimeParams
from leverlab.deploy.benchmark import Run
from leverlab.deploy.llama_cpp import LlamaCppError
from leverlab.files import write_text
from leverlab.lm.chat import Chat
from leverlab.lm.llama_benchmark import medians, run_llama_cpp, run_transformers
from leverlab.lm.questions import read_questions
from leverlab.stage import Stage, run_stage

DTYPE = "float32"  # of transformers


def body(stage: Stage) -> None:
    """Write the medians of each engine; engines take turns in every run, so that a busy minute hits all of them."""
    params, tokens = stage.section("benchmark", TurnBenchmarkParams), stage.section("dialogues", DialogueParams).tokens
    kinds, runtime = stage.section("gguf", PolicyGgufKinds).kinds, stage.section("runtime", RuntimeParams)
    models, merged = stage.dep("recipes/clarify/models/gguf"), stage.dep("recipes/clarify/models/merged")
    files = {kind: models / policy_file(kind) for kind in kinds}
    chat = Chat(AutoTokenizer.from_pretrained(merged))
    questions = read_questions(stage.dep("recipes/clarify/data/questions") / "test.jsonl")[: params.questions]
    prompts = [chat.prompt(question.text) for question in questions]
    transformers, errors = f"transformers {DTYPE}", dict[str, str]()
    runs: dict[str, list[Run]] = {name: [] for name in (transformers, *kinds)}
    for _ in stage.progress(range(params.runs), "runs", params.runs):
        runs[transformers].append(run_transformers(str(merged), DTYPE, runtime.threads, prompts, tokens))
        for kind in (kind for kind in kinds if kind not in errors):
            try:
                run = run_llama_cpp(files[kind], runtime.context, runtime.threads, runtime.seconds, prompts, tokens)
                runs[kind].append(run)
            except LlamaCppError as error:
                errors[kind] = str(error)
                stage.say(f"NOT MEASURED: {kind}: {error}")
    loaded: dict[str, list[Path]] = {transformers: [*merged.glob("*.safetensors")]}
    loaded |= {kind: [path] for kind, path in files.items()}
    found: dict[str, Any] = {
        "deterministic": False,
        "machine": {"processor": platform.machine(), "cpus": os.cpu_count(), "threads": runtime.threads},
        "questions": len(prompts),
        "runs": params.runs,
        "engines": {
            name: {"error": errors[name]} if name in errors else {"file_mib": _mib(loaded[name])} | medians(of_engine)
            for name, of_engine in runs.items()
        },
    }
    write_text(stage.out("recipes/clarify/reports/benchmark.json"), json.dumps(found, indent=2) + "\n")


def _mib(files: list[Path]) -> float:
    """Return the size of what an engine loads."""
    return round(sum(file.stat().st_size for file in files) / 2**20, 3)


if __name__ == "__main__":
    run_stage("benchmark", body, home="recipes/clarify")
