"""What the rl-data stage collects: beams by InfoScore, and groups of trajectories with their reward terms."""

from collections.abc import Sequence

import numpy as np

from leverlab.errors import LeverlabError
from leverlab.evaluation.baselines import image_similarity, mixed, random_order, text_similarity, type_nearest
from leverlab.evaluation.vqa_metric import vqa_accuracy
from leverlab.records import Example
from leverlab.selector.batches import QueryBatch, QueryData
from leverlab.training.groups import Group
from leverlab.vlm.scoring import DemoList, Scorer

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


def retrieval_lists(
    data: QueryData, batch: QueryBatch, types: dict[str, str], shots: int
) -> dict[str, list[tuple[str, ...]]]:
    """Return for each retrieval method the best-first list of every query."""
    image = [part.numpy() for part in (batch.query[0], batch.demos[0])]
    text = [part.numpy() for part in (batch.query[1], batch.demos[1])]
    query_types = np.array([types[query] for query in batch.query_ids])
    demo_types = np.array([[types[demo] for demo in candidates] for candidates in batch.candidate_ids])
    orders = {
        "image_sim": image_similarity(image[0], image[1]),
        "text_sim": text_similarity(text[0], text[1]),
        "mix": mixed(image[0], image[1], text[0], text[1]),
        "type_sim": type_nearest(query_types, demo_types, image[0], image[1]),
    }
    return {
        name: [
            tuple(candidates[k] for k in order[:shots])
            for candidates, order in zip(batch.candidate_ids, order_NK, strict=True)
        ]
        for name, order_NK in orders.items()
    }


def build_group(scorer: Scorer, question: Example, lists: Sequence[DemoList], sources: Sequence[str]) -> Group:
    """Return the group of `lists`: every prefix scored under every reward term.

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
