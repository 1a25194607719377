"""What the rl-data stage collects: beams by InfoScore, and groups of trajectories with their reward terms."""

from collections.abc import Mapping, Sequence

import numpy as np

from leverlab.errors import LeverlabError
from leverlab.evaluation.baselines import random_order, retrieval_orders
from leverlab.evaluation.vqa_metric import vqa_accuracy
from leverlab.records import Example
from leverlab.selector.batches import QueryBatch
from leverlab.training.groups import Group
from leverlab.vlm.scoring import Scorer
from leverlab.vlm.tries import DemoList

Beams = list[tuple[DemoList, list[float]]]


def beam_search(scorer: Scorer, question: str, candidates: Sequence[str], width: int, shots: int) -> Beams:
    """Return the `width` best lists of `shots` demos, best first, with P(answer) after every prefix.

    A list grows by the demo with the largest InfoScore(c | x, S) = P(y | x, S + c) - P(y | x, S) (Lever-LM, arXiv
    2312.10104). Over a list these gains telescope to P(y | x, list), so that is what beams are ranked by. Ties go to
    the earlier beam, then to the earlier candidate. The search looks at the question's own answer: an oracle, for train
    questions.
    """
    if shots > len(candidates):
        raise LeverlabError(
            f"lists of {shots} demos need as many candidates, not {len(candidates)}; raise prepare.candidates"
        )
    beams: Beams = [((), [])]
    for _ in range(shots):
        scores_BK = scorer.extend(question, [demos for demos, _ in beams], candidates)
        order = np.argsort(-scores_BK.ravel(), kind="stable")  # NaN, a demo that the list holds already, comes last
        ranked = order[: min(width, int(np.isfinite(scores_BK).sum()))]
        beams = [
            ((*beams[b][0], candidates[k]), [*beams[b][1], float(scores_BK[b, k])])
            for b, k in zip(*np.unravel_index(ranked, scores_BK.shape), strict=True)
        ]
    return beams


def retrieval_lists(batch: QueryBatch, types: Mapping[str, str], shots: int) -> dict[str, list[tuple[str, ...]]]:
    """Return for each retrieval method the best-first list of every query."""
    return {
        name: [
            tuple(candidates[k] for k in order[:shots])
            for candidates, order in zip(batch.candidate_ids, order_NK, strict=True)
        ]
        for name, order_NK in retrieval_orders(batch, types).items()
    }


def build_group(
    scorer: Scorer, batch: QueryBatch, question: Example, lists: Sequence[DemoList], sources: Sequence[str]
) -> Group:
    """Return the group of `lists`: every prefix scored under every reward term. `batch` is that of the question alone.

    `beam_score` is the summed InfoScore of a prefix, P(answer | prefix) - P(answer | no demo).
    """
    shots = range(len(lists[0]) + 1)
    scores = scorer.score([question.id] * len(lists), lists, shots, texts=True)
    vqa_GM = np.asarray([[vqa_accuracy(text, question.answers) for text in texts] for texts in scores.text_NM or []])
    probability_GM = scores.answer_prob_NM.astype(np.float64)
    terms = {
        "beam_score": probability_GM[:, 1:] - probability_GM[:, :1],
        "correct": scores.correct_NM[:, 1:].astype(np.float64),
        "vqa_accuracy": vqa_GM[:, 1:],
        "answer_prob": probability_GM[:, 1:],
        "relevance": batch.relevance(batch.positions([lists], len(lists[0])))[0],
    }
    return Group(question.id, tuple(lists), tuple(sources), terms)


def random_lists(batch: QueryBatch, lists: int, shots: int, seed: int) -> list[list[tuple[str, ...]]]:
    """Return `lists` random lists for each query of `batch`."""
    candidates = len(batch.candidate_ids[0])
    orders = [random_order(len(batch.query_ids), candidates, seed + index) for index in range(lists)]
    return [
        [tuple(ids[k] for k in order_NK[row][:shots]) for order_NK in orders]
        for row, ids in enumerate(batch.candidate_ids)
    ]
