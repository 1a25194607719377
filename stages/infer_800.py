"""infer-800: answer the test questions at every shot count for every method, and keep every answer."""

import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from leverlab.config.infer import InferParams
from leverlab.config.vlm import EvalParams, VlmParams
from leverlab.evaluation.inference import answer_rows, baseline_lists, oracle_lists, selector_lists
from leverlab.evaluation.summary import ANSWER_SCHEMA, SELECTORS, metrics, shots_table
from leverlab.files import write_text
from leverlab.parallel import run_tasks
from leverlab.records import write_table
from leverlab.selector.batches import QueryData
from leverlab.selector.inference import InferenceSelector
from leverlab.stage import Stage, run_stage, workspace_store
from leverlab.training.prepared import Prepared, features_of
from leverlab.vlm.scoring import Scorer

QUESTIONS_A_TASK = 100  # fixed, so that batches do not depend on the number of workers


@dataclass(frozen=True)
class Settings:
    """What a worker needs to know."""

    vlm: VlmParams
    infer: InferParams
    shots: int
    seeds: tuple[int, ...]


class Worker:
    """One process: the prepared data, a scorer of the test questions, and the converted selectors."""

    settings: Settings
    data: Prepared
    scorer: Scorer
    selectors: dict[tuple[str, int], tuple[InferenceSelector, QueryData]]

    @classmethod
    def start(cls, settings: Settings) -> None:
        """Open everything, once in each process."""
        cls.settings = settings
        cls.data = Prepared(Path("data/prepared"), ["test"])
        cls.scorer = cls.data.scorer(cls.data.splits["test"], workspace_store() / "scores.sqlite", settings.vlm)
        cls.selectors = {
            (method, seed): cls.selector(Path(f"models/selectors/{method}-{seed}"))
            for method in SELECTORS
            for seed in settings.seeds
        }

    @classmethod
    def selector(cls, folder: Path) -> tuple[InferenceSelector, QueryData]:
        """Return a converted selector and the features that it reads."""
        return InferenceSelector.load(folder), cls.data.queries_with(features_of(folder))


def answer(start: int) -> list[dict[str, object]]:
    """Return the answers of every method to the questions from position `start` on."""
    data, settings = Worker.data, Worker.settings
    questions = data.splits["test"][start : start + QUESTIONS_A_TASK]
    ids = [question.id for question in questions]
    batch = data.queries.batch(ids)
    shown = baseline_lists(
        batch,
        data.question_types(),
        [demo.id for demo in data.pool],
        settings.shots,
        settings.infer.random_seeds,
        settings.infer.fixed_seed,
    )
    for (method, seed), (selector, queries) in Worker.selectors.items():
        shown.append(selector_lists(selector, queries.batch(ids), settings.shots, method, seed))
    shown.append(oracle_lists(Worker.scorer, batch, settings.shots))
    return [row for lists in shown for row in answer_rows(Worker.scorer, questions, lists)]


def body(stage: Stage) -> None:
    """Write all answers, the shots table and the metrics."""
    for needed in ("data/prepared", "models/selectors"):
        stage.dep(needed)
    settings = Settings(
        stage.section("vlm", VlmParams),
        stage.section("infer", InferParams),
        stage.section("eval", EvalParams).shots,
        tuple(int(seed) for seed in stage.value("seeds")),
    )
    questions = len(Prepared(stage.dep("data/prepared"), ["test"]).splits["test"])
    starts = list(range(0, questions, QUESTIONS_A_TASK))
    done = run_tasks(answer, starts, Worker.start, (settings,))
    rows = [row for part in stage.progress(done, f"tasks of {QUESTIONS_A_TASK} questions", len(starts)) for row in part]
    answers = pd.DataFrame(rows).sort_values(["method", "seed", "shots", "question_id"], ignore_index=True)
    write_table(stage.out("data/answers.parquet"), answers.to_dict("records"), ANSWER_SCHEMA)
    write_text(stage.out("reports/shots.csv"), shots_table(answers).to_csv(index=False, float_format="%.6g"))
    write_text(stage.out("reports/metrics.json"), json.dumps(metrics(answers), indent=2) + "\n")
    stage.say(f"{len(rows)} answers to {questions} questions")


if __name__ == "__main__":
    run_stage("infer-800", body)
