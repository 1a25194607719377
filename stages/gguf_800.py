"""gguf-800: answer the test questions with the exported files in llama.cpp, after the demos that infer-800 showed."""

import json
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from leverlab.config.gguf import MMPROJ, GgufKinds, RuntimeParams, text_file
from leverlab.config.vlm import VlmAnswers
from leverlab.deploy.llama_cpp import LlamaCpp, LlamaCppError, Settings, chat_messages
from leverlab.evaluation.quantised import (
    SCHEMA,
    TRANSFORMERS,
    accuracy_table,
    agreement,
    differences_table,
    metrics,
    to_answer,
)
from leverlab.evaluation.summary import ANSWER_SCHEMA
from leverlab.evaluation.vqa_metric import vqa_accuracy
from leverlab.export.vision_part import image_limits
from leverlab.files import write_text
from leverlab.parallel import run_tasks
from leverlab.records import Example, read_examples, read_table, write_table
from leverlab.selector.inference import InferenceSelector
from leverlab.stage import Stage, run_stage
from leverlab.vlm.model import checkpoint_folder

PROMPTS_A_TASK = 1000
MODELS = Path("models/gguf")
PREPARED, ANSWERS, SELECTOR = Path("data/prepared"), Path("data/answers.parquet"), Path("models/selector")


@dataclass(frozen=True)
class Task:
    """Prompts from position `start` on, for one kind of file; `kept` is where the predictions are kept."""

    kind: str
    start: int
    kept: Path


class Worker:
    """One process: the prompts, what they show, and how they are answered."""

    prompts: pd.DataFrame
    demos: dict[str, Example]
    questions: dict[str, Example]
    settings: Settings
    max_new_tokens: int

    @classmethod
    def start(cls, settings: Settings, max_new_tokens: int) -> None:
        """Read everything, once in each process."""
        cls.settings, cls.max_new_tokens = settings, max_new_tokens
        cls.prompts = _prompts()
        cls.demos = {demo.id: demo for demo in read_examples(PREPARED / "pool.parquet")}
        cls.questions = {question.id: question for question in read_examples(PREPARED / "test.parquet")}


def predict(task: Task) -> dict[str, Any]:
    """Return the predictions of a task, or the error that kept the runtime from giving them."""
    if task.kept.exists():
        kept: dict[str, Any] = json.loads(task.kept.read_text(encoding="utf-8"))
        return kept
    prompts = Worker.prompts.iloc[task.start : task.start + PROMPTS_A_TASK]
    predictions = []
    try:
        with LlamaCpp(MODELS / text_file(task.kind), MODELS / MMPROJ, Worker.settings) as model:
            for question, shown in zip(prompts["question_id"], prompts["demos"], strict=True):
                demos = [Worker.demos[demo] for demo in shown]
                asked = Worker.questions[question]
                messages = chat_messages(demos, asked, Worker.settings.images, model.text_tokens)
                predictions.append(model.answer(messages, Worker.max_new_tokens).text)
    except LlamaCppError as error:
        return {"error": str(error)}
    write_text(task.kept, json.dumps({"predictions": predictions}))
    return {"predictions": predictions}


def _prompts() -> pd.DataFrame:
    """Return the prompts of the selector that is deployed, and what it is compared with."""
    chosen = InferenceSelector.load(SELECTOR).config
    return to_answer(read_table(ANSWERS, ANSWER_SCHEMA).to_pandas(), chosen["method"], chosen["seed"])


def body(stage: Stage) -> None:
    """Write all answers, their accuracy by kind, the paired differences, and the metrics.

    A kind whose runtime is missing, dies or hangs has an error in the metrics instead of figures.
    """
    kinds, vlm = stage.section("gguf", GgufKinds).kinds, stage.section("vlm", VlmAnswers)
    runtime = stage.section("runtime", RuntimeParams)
    for needed in (ANSWERS, MODELS, PREPARED, SELECTOR):
        stage.dep(str(needed))
    prompts = _prompts()
    settings = Settings(image_limits(checkpoint_folder(vlm.source)), runtime.context, runtime.threads, runtime.seconds)
    tasks = [
        Task(kind, start, stage.state_dir / f"{kind}-{start}.json")
        for kind, start in product(kinds, range(0, len(prompts), PROMPTS_A_TASK))
    ]
    done = run_tasks(predict, tasks, Worker.start, (settings, vlm.max_new_tokens))
    said: dict[str, list[str]] = {kind: [] for kind in kinds}
    errors: dict[str, str] = {}
    for task, found in zip(tasks, stage.progress(done, f"tasks of {PROMPTS_A_TASK} prompts", len(tasks)), strict=True):
        if "error" in found:
            errors.setdefault(task.kind, found["error"])
        else:
            said[task.kind] += found["predictions"]
    answers = _answers(prompts, {kind: texts for kind, texts in said.items() if kind not in errors})
    accuracy, differences = accuracy_table(answers), differences_table(answers)
    figures = metrics(accuracy, differences, agreement(answers))
    for kind, error in errors.items():
        stage.say(f"NOT MEASURED: {kind}: {error}")
        figures[kind] = {"error": error}
    write_table(stage.out("data/gguf_answers.parquet"), answers.to_dict("records"), SCHEMA)
    _write_csv(stage.out("reports/gguf_accuracy.csv"), accuracy)
    _write_csv(stage.out("reports/gguf_differences.csv"), differences)
    write_text(stage.out("reports/gguf_metrics.json"), json.dumps(figures, indent=2) + "\n")
    stage.say(f"{len(prompts)} prompts answered by {', '.join(kind for kind in kinds if kind not in errors) or 'none'}")


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table with six digits."""
    write_text(path, table.to_csv(index=False, float_format="%.6g"))


def _answers(prompts: pd.DataFrame, said: dict[str, list[str]]) -> pd.DataFrame:
    """Return the answers of the checkpoint, in transformers, and of each kind that was measured."""
    references = {question.id: question.answers for question in read_examples(PREPARED / "test.parquet")}
    columns = SCHEMA.names
    parts = [prompts.assign(kind=TRANSFORMERS)[columns]]
    for kind, predictions in said.items():
        scores = [
            vqa_accuracy(prediction, references[question])
            for prediction, question in zip(predictions, prompts["question_id"], strict=True)
        ]
        parts.append(prompts.assign(kind=kind, prediction=predictions, vqa_accuracy=scores)[columns])
    return pd.concat(parts, ignore_index=True)


if __name__ == "__main__":
    run_stage("gguf-800", body)
