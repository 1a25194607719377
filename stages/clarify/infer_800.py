"""infer-800: the dialogues of every policy on the test questions, held-out words and the red team; each one is kept."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from leverlab.config.dialogue_inference import DialogueInferParams
from leverlab.config.dialogues import BaseModelParams, DialogueParams, DialogueRewardParams
from leverlab.files import write_text
from leverlab.lm import acceptance, summary
from leverlab.lm.adapters import load_base, load_policy
from leverlab.lm.questions import Question, read_questions
from leverlab.lm.records import DialogueRecord, read_records, record_of, write_records
from leverlab.lm.rollouts import Limits, roll_out
from leverlab.lm.stages import limits_of, seeds_of, write_rows
from leverlab.lm.validation import figures
from leverlab.parallel import run_tasks
from leverlab.stage import Stage, run_stage

ADAPTERS = {"sft": "sft/{seed}", "rce": "rce/{seed}", "grpo": "best/{seed}", "dpo": "dpo/{seed}"}
SPLITS = ("test", "ood", "red_team")


@dataclass(frozen=True)
class Task:
    """All dialogues of one policy: what a process needs to hold them."""

    policy: str
    seed: int
    adapter: Path
    source: BaseModelParams
    data: Path
    limits: Limits
    params: DialogueInferParams
    out: Path


def answer(task: Task) -> Path:
    """Write the dialogues of one policy on all splits, and return their file; what is there is not done again."""
    if task.out.exists():
        return task.out
    base = load_base(task.source.source, task.source.dtype)
    policy = load_policy(base, task.adapter)
    records: list[DialogueRecord] = []
    for number, split in enumerate(SPLITS):
        questions = read_questions(task.data / f"{split}.jsonl")
        for temperature in task.params.temperatures:
            for start in range(0, len(questions), task.params.batch):
                drawn = np.random.SeedSequence([task.params.seed, task.seed, number, start]).generate_state(1)
                generator = torch.Generator(policy.device).manual_seed(int(drawn[0]))
                part = questions[start : start + task.params.batch]
                rollouts = roll_out(policy, base.chat, part, 1, task.limits, temperature, generator)
                records += [record_of(one, task.policy, task.seed, 0, temperature) for one in rollouts]
    write_records(task.out, records)
    return task.out


def body(stage: Stage) -> None:
    """Write all dialogues and what they come to."""
    source, params = stage.section("base", BaseModelParams), stage.section("infer", DialogueInferParams)
    limits, seeds = limits_of(stage.section("dialogues", DialogueParams)), seeds_of(stage.value("seeds"))
    data = stage.dep("recipes/clarify/data/questions")
    for folder in ("sft", "rce", "best", "dpo"):
        stage.dep(f"recipes/clarify/models/{folder}")
    models = Path("recipes/clarify/models")
    tasks = [
        Task(
            policy,
            seed,
            models / where.format(seed=seed) / "adapter",
            source,
            data,
            limits,
            params,
            stage.state_dir / f"{policy}-{seed}.jsonl",
        )
        for policy, where in ADAPTERS.items()
        for seed in seeds
    ]
    records = [record for path in run_tasks(answer, tasks) for record in read_records(path, DialogueRecord)]
    write_records(stage.out("recipes/clarify/data/answers/answers.jsonl"), records)
    questions: dict[str, list[Question]] = {split: read_questions(data / f"{split}.jsonl") for split in SPLITS}
    found = summary.outcomes(records, questions)
    write_figures(
        stage, found, format_exploit(records, questions["test"], stage.section("reward", DialogueRewardParams))
    )


def write_figures(stage: Stage, found: pd.DataFrame, exploit: float) -> None:
    """Write tables, comparisons and metrics."""
    tables = stage.out("recipes/clarify/reports/answers")
    write_rows(tables / "splits.csv", summary.table(found, ("policy", "temperature", "split")).to_dict("records"))
    families = summary.table(found, ("policy", "temperature", "split", "family"))
    write_rows(tables / "families.csv", families.to_dict("records"))
    compared = acceptance.comparisons(found)
    write_rows(tables / "comparisons.csv", compared.to_dict("records"))
    wins = acceptance.dpo_win_rate(found)
    write_text(tables / "win_rate.json", json.dumps(summary.plain(asdict(wins)), indent=2) + "\n")
    measured = acceptance.metrics(found, compared, exploit)
    write_text(stage.out("recipes/clarify/reports/metrics.json"), json.dumps(summary.plain(measured), indent=2) + "\n")
    for policy in ADAPTERS:
        test = measured[policy]["test"]
        names = ("need_success", "over_clarification", "success", "turns")
        stage.say(f"{policy}: " + ", ".join(f"{name} {test[name]:.3f}" for name in names))


def format_exploit(records: list[DialogueRecord], questions: list[Question], reward: DialogueRewardParams) -> float:
    """Return the share of GRPO's greedy dialogues on the test questions that are wrong or ungrounded, and paid well."""
    known = {question.id: question for question in questions}
    greedy = [one for one in records if one.policy == "grpo" and one.temperature == 0 and one.question in known]
    dialogues = [one.dialogue(known[one.question]) for one in greedy]
    return float(figures(dialogues, reward.alpha, reward.high)["format_exploit"])


if __name__ == "__main__":
    run_stage("infer-800", body, home="recipes/clarify")
