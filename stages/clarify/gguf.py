"""gguf: export the merged policy, prove that nothing was lost on the way, and hold the test dialogues in llama.cpp."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from leverlab.config.clarify_gguf import Kind, PolicyGgufParams, TurnParityParams, policy_file
from leverlab.config.dialogues import DialogueParams
from leverlab.config.gguf import RuntimeParams
from leverlab.deploy.llama_cpp import LlamaCppError
from leverlab.deploy.parity import Reference, as_record
from leverlab.errors import LeverlabError
from leverlab.files import write_text
from leverlab.lm.adapters import Base, load_base
from leverlab.lm.chat import Chat
from leverlab.lm.llama import TextLlamaCpp, roll_out_in_llama
from leverlab.lm.llama_parity import parity, references, turn_prompts
from leverlab.lm.quantised import compare_kind, export_kind
from leverlab.lm.questions import Question, read_questions
from leverlab.lm.records import DialogueRecord, read_records, record_of, write_records
from leverlab.lm.rollouts import Limits, Rollout, roll_out
from leverlab.lm.select import read_best
from leverlab.lm.stages import limits_of
from leverlab.lm.summary import plain
from leverlab.lm.validation import figures
from leverlab.parallel import run_tasks
from leverlab.stage import Stage, run_stage

TRANSFORMERS = "transformers float32"  # the engine that the others are compared with
FIGURES = ("success", "need_success", "over_clarification", "turns")
BATCH = 200  # dialogues of one batch in transformers
QUESTIONS_A_TASK = 400
MERGED, BEST, FILES = "recipes/clarify/models/merged", "recipes/clarify/models/best", "recipes/clarify/models/gguf"


class ExportedRecord(DialogueRecord):
    """A greedy dialogue of the merged policy. engine: `TRANSFORMERS`, or the kind of the file that said it in
    llama.cpp."""

    engine: str


@dataclass(frozen=True)
class Policy:
    """The merged policy: its folder, the seed and the step that it was trained to, and how long it may talk."""

    folder: Path
    seed: int
    step: int
    limits: Limits

    def record(self, rollout: Rollout, engine: str) -> ExportedRecord:
        """Return what it said in an engine."""
        said = record_of(rollout, "grpo", self.seed, self.step, 0.0)
        return ExportedRecord(**said.model_dump(), engine=engine)


@dataclass(frozen=True)
class Task:
    """Questions of the file `data` from position `start` on, for one exported file; `kept` is where dialogues are."""

    policy: Policy
    kind: Kind
    file: Path
    runtime: RuntimeParams
    data: Path
    start: int
    kept: Path


def body(stage: Stage) -> None:
    """Write one file a kind, every dialogue, and what was measured; fail when an export is not exact.

    All of it is kept in the state folder, so that what was finished before a kill is not done again. A runtime that is
    missing, dies or hangs is told in the kind's record and keeps the gates red; it fails nothing.
    """
    params = stage.section("gguf", PolicyGgufParams)
    merged, best = stage.dep(MERGED), read_best(stage.dep(BEST))
    policy = Policy(merged, best.seed, best.step, limits_of(stage.section("dialogues", DialogueParams)))
    files = {kind: stage.state_dir / policy_file(kind) for kind in params.kinds}
    for kind, path in files.items():
        if not path.exists():
            export_kind(merged, path, kind)
    contents = {kind: _contents(merged, path) for kind, path in files.items()}
    wrong = [kind for kind, found in contents.items() if found["values_beyond"]]
    if wrong:
        raise LeverlabError(f"{wrong} differ from the checkpoint by more than their types explain; the export is wrong")
    base = load_base(str(merged), "float32")
    compared = _parity(stage, params.parity, base, policy.limits, files)
    answers, records = _answers(stage, base, policy, files)
    found = {"files": contents, "parity": compared, "answers": answers}
    write_text(stage.out("recipes/clarify/reports/gguf.json"), json.dumps(found, indent=2) + "\n")
    write_records(stage.out("recipes/clarify/data/gguf_answers.jsonl"), records)
    stage.out(FILES).mkdir()
    for path in files.values():
        shutil.copyfile(
            path, stage.out(f"recipes/clarify/models/gguf/{path.name}")
        )  # not moved: a kill before the end would lose it


def _contents(merged: Path, path: Path) -> dict[str, Any]:
    """Return how the file's values compare with the checkpoint's."""
    tensors = compare_kind(merged, path)
    return {
        "bytes": path.stat().st_size,
        "tensors": len(tensors),
        "max_abs_error": max(tensor.max_abs_error for tensor in tensors),
        "values_beyond": sum(tensor.values_beyond for tensor in tensors),
    }


def _parity(
    stage: Stage, params: TurnParityParams, base: Base, limits: Limits, files: Mapping[Kind, Path]
) -> dict[str, dict[str, Any]]:
    """Return by kind the parity on turns of greedy dialogues, or the error that kept it from being measured."""
    kept = {kind: stage.state_dir / f"parity-{kind}.json" for kind in files}
    found = {kind: json.loads(path.read_text(encoding="utf-8")) for kind, path in kept.items() if path.exists()}
    questions = read_questions(stage.dep("recipes/clarify/data/questions") / "val.jsonl")[: params.prompts]
    runtime, missing = stage.section("runtime", RuntimeParams), [kind for kind in files if kind not in found]
    prompts, expected = list[list[int]](), list[Reference]()
    if missing:
        prompts = turn_prompts(roll_out(base.model, base.chat, questions, 1, limits, 0.0))[: params.prompts]
        stage.say(f"saying {len(prompts)} turns with transformers in float32")
        expected = references(base.model, base.chat.eos, prompts, limits.tokens)
    for kind in missing:
        try:
            with TextLlamaCpp(files[kind], runtime.context, runtime.threads, runtime.seconds, exact_cache=True) as said:
                measured = parity(said, base.chat.eos, prompts, expected, limits.tokens, params.likeliest)
        except LlamaCppError as error:
            found[kind] = _failed(stage, kind, _without_folder(error, files[kind]))
            continue
        found[kind] = as_record(measured)
        write_text(kept[kind], json.dumps(found[kind]))
    return {kind: found[kind] for kind in files}


def _answers(
    stage: Stage, base: Base, policy: Policy, files: Mapping[Kind, Path]
) -> tuple[dict[str, dict[str, Any]], list[ExportedRecord]]:
    """Return by engine the figures of its dialogues on the test questions, or its error, and all dialogues."""
    data, runtime = stage.dep("recipes/clarify/data/questions") / "test.jsonl", stage.section("runtime", RuntimeParams)
    questions = read_questions(data)
    tasks = [
        Task(policy, kind, path, runtime, data, start, stage.state_dir / f"{kind}-{start}.jsonl")
        for kind, path in files.items()
        for start in range(0, len(questions), QUESTIONS_A_TASK)
    ]
    expected = _in_transformers(base, policy, questions, stage.state_dir / "transformers.jsonl")
    said: dict[str, list[ExportedRecord]] = {TRANSFORMERS: expected} | {kind: [] for kind in files}
    errors: dict[str, str] = {}
    done = stage.progress(run_tasks(answer, tasks), f"tasks of {QUESTIONS_A_TASK} questions", len(tasks))
    for task, error in zip(tasks, done, strict=True):
        if error is None:
            said[task.kind] += read_records(task.kept, ExportedRecord)
        else:
            errors.setdefault(task.kind, error)
    found: dict[str, dict[str, Any]] = {}
    for engine, records in said.items():
        if engine in errors:
            found[engine] = _failed(stage, engine, errors[engine])
            continue
        found[engine] = engine_figures(records, expected, questions)
        stage.say(f"{engine}: " + ", ".join(f"{name} {found[engine][name]}" for name in (*FIGURES, "same_dialogues")))
    return found, [record for engine, records in said.items() if engine not in errors for record in records]


def _in_transformers(base: Base, policy: Policy, questions: Sequence[Question], kept: Path) -> list[ExportedRecord]:
    """Return the dialogues on the test questions in transformers; what is kept is not done again."""
    if not kept.exists():
        records = [
            policy.record(one, TRANSFORMERS)
            for start in range(0, len(questions), BATCH)
            for one in roll_out(base.model, base.chat, questions[start : start + BATCH], 1, policy.limits, 0.0)
        ]
        write_records(kept, records)
    return read_records(kept, ExportedRecord)


def answer(task: Task) -> str | None:
    """Write the dialogues of a task, unless they are there; return the error that kept the runtime from saying them."""
    if task.kept.exists():
        return None
    chat, runtime = Chat(AutoTokenizer.from_pretrained(task.policy.folder)), task.runtime
    records = []
    try:
        with TextLlamaCpp(task.file, runtime.context, runtime.threads, runtime.seconds) as model:
            for question in read_questions(task.data)[task.start : task.start + QUESTIONS_A_TASK]:
                said = roll_out_in_llama(model, chat, question, task.policy.limits)
                records.append(task.policy.record(said, task.kind))
    except LlamaCppError as error:
        return _without_folder(error, task.file)
    write_records(task.kept, records)
    return None


def engine_figures(
    records: Sequence[ExportedRecord], expected: Sequence[ExportedRecord], questions: Sequence[Question]
) -> dict[str, Any]:
    """Return `FIGURES` of an engine's dialogues, their number n, the share whose turns are those of `expected`
    (same_dialogues), and under `families` all of them by family; as JSON holds them.

    records, expected: one of each question, in the order of `questions`.
    """

    def over(family: str | None) -> dict[str, Any]:
        rows = [row for row in zip(records, expected, questions, strict=True) if family in (None, row[2].family)]
        # neither the cost of an ask nor a level of the proxy reward has a part in what is kept
        every = figures([record.dialogue(question) for record, _, question in rows], alpha=0.0, high=1.0)
        same = sum((found.turns, found.end) == (wanted.turns, wanted.end) for found, wanted, _ in rows)
        return {"n": len(rows), **{name: every[name] for name in FIGURES}, "same_dialogues": same / len(rows)}

    families = sorted({question.family for question in questions})
    found: dict[str, Any] = plain({**over(None), "families": {family: over(family) for family in families}})
    return found


def _failed(stage: Stage, engine: str, error: str) -> dict[str, Any]:
    stage.say(f"NOT MEASURED: {engine}: {error}")
    return {"error": error}


def _without_folder(error: LlamaCppError, file: Path) -> str:
    """Return the message without the state folder, whose name differs from run to run."""
    return str(error).replace(f"{file.parent}/", "")


if __name__ == "__main__":
    run_stage("gguf", body, home="recipes/clarify")
