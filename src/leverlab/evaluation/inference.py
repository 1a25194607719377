"""The test run: every method's demo lists for every question, and what the VLM answers after them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from leverlab.evaluation.baselines import random_order, retrieval_orders, select
from leverlab.evaluation.vqa_metric import vqa_accuracy
from leverlab.records import Example
from leverlab.selector.batches import QueryBatch
from leverlab.selector.inference import InferenceSelector
from leverlab.vlm.scoring import Scorer
from leverlab.vlm.tries import DemoList


@dataclass(frozen=True)
class MethodLists:
    """The demos that a method shows: shots → one list for each question."""

    method: str
    seed: int
    lists: Mapping[int, list[DemoList]]


def baseline_lists(
    batch: QueryBatch, types: Mapping[str, str], pool: Sequence[str], shots: int, random_seeds: int, fixed_seed: int
) -> list[MethodLists]:
    """Return the lists of the baselines for the questions of `batch`, on the same candidates that the selectors get.

    `fixed` shows one list of the pool to every question. Retrieval puts the most similar demo last, next to the
    question.
    """
    counts = range(1, shots + 1)
    found = [MethodLists("zero_shot", 0, {0: [()] * len(batch.query_ids)})]
    for seed in range(random_seeds):
        order_NK = random_order(len(batch.query_ids), len(batch.candidate_ids[0]), seed)
        found.append(MethodLists("random", seed, {k: _named(batch, order_NK[:, :k]) for k in counts}))
    fixed = tuple(np.random.default_rng(fixed_seed).permutation(np.asarray(pool))[:shots].tolist())
    found.append(MethodLists("fixed", 0, {k: [fixed[:k]] * len(batch.query_ids) for k in counts}))
    for method, order_NK in retrieval_orders(batch, types).items():
        found.append(MethodLists(method, 0, {k: _named(batch, select(order_NK, k)) for k in counts}))
    return found


def selector_lists(selector: InferenceSelector, batch: QueryBatch, shots: int, method: str, seed: int) -> MethodLists:
    """Return the prefixes of the selector's greedy list for every question."""
    picks_NT = selector.pick([part.numpy() for part in batch.query], [part.numpy() for part in batch.demos], shots)
    full = _named(batch, picks_NT)
    return MethodLists(method, seed, {k: [demos[:k] for demos in full] for k in range(1, shots + 1)})


def oracle_lists(scorer: Scorer, batch: QueryBatch, shots: int) -> MethodLists:
    """Return the greedy oracle: each next demo is the one that makes the question's own answer most probable."""
    full: list[DemoList] = []
    for question, candidates in zip(batch.query_ids, batch.candidate_ids, strict=True):
        demos: DemoList = ()
        for _ in range(shots):
            scores_K = scorer.extend(question, [demos], candidates)[0]
            demos = (*demos, candidates[int(np.nanargmax(scores_K))])
        full.append(demos)
    return MethodLists("oracle", 0, {k: [demos[:k] for demos in full] for k in range(1, shots + 1)})


def answer_rows(scorer: Scorer, questions: Sequence[Example], shown: MethodLists) -> list[dict[str, object]]:
    """Return one row an answer: the VLM's greedy answer after the method's demos, and its VQA accuracy."""
    rows: list[dict[str, object]] = []
    ids = [question.id for question in questions]
    for shots, lists in shown.lists.items():
        scores = scorer.score(ids, lists, [shots], texts=True)
        for n, (question, demos, texts) in enumerate(zip(questions, lists, scores.text_NM or [], strict=True)):
            rows.append(
                {
                    "method": shown.method,
                    "seed": shown.seed,
                    "shots": shots,
                    "question_id": question.id,
                    "question_type": question.question_type,
                    "demos": list(demos),
                    "prediction": texts[0],
                    "vqa_accuracy": vqa_accuracy(texts[0], question.answers),
                    "answer_prob": float(scores.answer_prob_NM[n, 0]),
                }
            )
    return rows


def _named(batch: QueryBatch, positions_NT: NDArray[np.int64]) -> list[DemoList]:
    return [demos for (demos,) in batch.ids(torch.from_numpy(positions_NT[:, None].copy()))]
