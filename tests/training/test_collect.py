"""Beams against all lists there are, InfoScore, groups by hand, and the lists of retrieval and chance."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from leverlab.selector.batches import QueryData
from leverlab.selector.candidates import Candidates, CandidateSet
from leverlab.selector.features import FeatureTable
from leverlab.training.collect import beam_search, build_group, random_lists, retrieval_lists

CANDIDATES = ("d4", "d0", "d3", "d1", "d2")


def brute_force(toy: Any, shots: int) -> list[tuple[float, tuple[str, ...]]]:
    """All ordered lists with their probability, best first."""
    lists = itertools.permutations(CANDIDATES, shots)
    return sorted(((toy.hashed("q0", demos), demos) for demos in lists), reverse=True)


@pytest.mark.parametrize(("shots", "width"), [(1, 5), (2, 20), (3, 20)])
def test_a_wide_search_finds_the_best_of_all_lists(toy: Any, shots: int, width: int) -> None:
    """5 candidates make 20 lists of two: a width of 20 drops nothing before the third pick."""
    beams = beam_search(toy.scorer(toy.hashed), "q0", CANDIDATES, width, shots)
    best = brute_force(toy, shots)[:width]
    assert [demos for demos, _ in beams] == [demos for _, demos in best]
    assert [scores[-1] for _, scores in beams] == pytest.approx([score for score, _ in best], rel=1e-6)


@pytest.mark.parametrize("width", [1, 3])
def test_a_narrow_search_equals_a_loop(toy: Any, width: int) -> None:
    """Each step: every list extended by every demo that it lacks, the `width` best kept."""
    kept: list[tuple[str, ...]] = [()]
    for _ in range(4):
        grown = [(*demos, demo) for demos in kept for demo in CANDIDATES if demo not in demos]
        kept = sorted(grown, key=lambda demos: -toy.hashed("q0", demos))[:width]
    beams = beam_search(toy.scorer(toy.hashed), "q0", CANDIDATES, width, 4)
    assert [demos for demos, _ in beams] == kept


def test_scores_are_those_of_every_prefix_so_that_infoscores_telescope(toy: Any) -> None:
    """The InfoScores of a list sum to P(answer | list) - P(answer | no demo)."""
    for demos, scores in beam_search(toy.scorer(toy.hashed), "q0", CANDIDATES, 4, 3):
        assert scores == pytest.approx([toy.hashed("q0", demos[: t + 1]) for t in range(3)], rel=1e-6)
        start = toy.hashed("q0", ())
        gains = [after - before for before, after in itertools.pairwise([start, *scores])]
        assert sum(gains) == pytest.approx(toy.hashed("q0", demos) - start, abs=1e-6)


def test_ties_go_to_the_earlier_beam_and_then_to_the_earlier_candidate(toy: Any) -> None:
    flat = toy.scorer(lambda question, demos: 0.5)
    lists = [demos for demos, _ in beam_search(flat, "q0", CANDIDATES, 6, 2)]
    assert lists == [("d4", "d0"), ("d4", "d3"), ("d4", "d1"), ("d4", "d2"), ("d0", "d4"), ("d0", "d3")]


def test_the_first_step_offers_no_more_lists_than_candidates(toy: Any) -> None:
    assert len(beam_search(toy.scorer(toy.hashed), "q0", CANDIDATES, 64, 1)) == 5


def test_a_search_wider_than_all_lists_repeats_no_demo(toy: Any) -> None:
    """3 candidates make 6 lists of two; a width of 9 has room for (a, a) too."""
    beams = beam_search(toy.scorer(toy.hashed), "q0", CANDIDATES[:3], 9, 2)
    assert all(len(set(demos)) == 2 for demos, _ in beams)
    assert not any(math.isnan(score) for _, scores in beams for score in scores)


def test_a_groups_terms_by_hand(toy: Any) -> None:
    """P is .1 without demos, and for the lists .6, .2 and .3, .9: right from 1/2 on, gains are P - .1. The question has
    ten answers, two of them "yes": the VQA accuracy of "yes" is the mean over annotators of min(1, others / 3), eight
    times 2/3 and twice 1/3, that is 6/10; "no" stands nowhere and gives 0."""
    table = {(): 0.1, ("a",): 0.6, ("a", "b"): 0.2, ("b",): 0.3, ("b", "a"): 0.9}
    question = toy.questions(1)[0]
    question = type(question)("q0", b"i", "image", "What?", "any", ("yes",) * 2 + ("maybe",) * 8)
    scorer = toy.scorer(lambda asked, demos: table[demos])
    vectors = np.eye(3, 2, dtype=np.float32) + 1
    sets = [CandidateSet("train", "q0", 0, ("a", "b"))]
    data = QueryData(FeatureTable(("a", "b", "q0"), vectors, vectors, vectors), Candidates(sets, ("a", "b"), "here"))
    batch = data.batch(["q0"])
    group = build_group(scorer, batch, question, [("a", "b"), ("b", "a")], ["beam", "random"])
    assert (group.query_id, group.lists, group.sources) == ("q0", (("a", "b"), ("b", "a")), ("beam", "random"))
    expected = {
        "answer_prob": [[0.6, 0.2], [0.3, 0.9]],
        "beam_score": [[0.5, 0.1], [0.2, 0.8]],
        "correct": [[1, 0], [0, 1]],
        "vqa_accuracy": [[0.6, 0], [0, 0.6]],
        "relevance": batch.relevance(torch.tensor([[[0, 1], [1, 0]]]))[0],
    }
    assert sorted(group.terms) == sorted(expected)
    for term, values in expected.items():
        np.testing.assert_allclose(group.terms[term], values, atol=1e-7)
        assert group.terms[term].dtype == np.float64


def angles(*degrees: float) -> np.ndarray:
    radians = np.deg2rad(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def test_retrieval_lists_by_hand() -> None:
    """The query lies at 0 degrees. Image angles of a, b, c, d: 10, 20, 30, 40; question angles 30, 0, 50, 5. The means
    of the cosines are .925, .970, .754, .881. Only c and d are of the query's type."""
    ids = ("a", "b", "c", "d", "q")
    image, question = angles(10, 20, 30, 40, 0), angles(30, 0, 50, 5, 0)
    sets = [CandidateSet("train", "q", 0, ("c", "a", "d", "b"))]
    data = QueryData(FeatureTable(ids, image, question, image), Candidates(sets, ids[:4], "here"))
    types = {"a": "colour", "b": "colour", "c": "number", "d": "number", "q": "number"}
    found = retrieval_lists(data.batch(["q"]), types, 3)
    assert found == {
        "image_sim": [("a", "b", "c")],
        "text_sim": [("b", "d", "a")],
        "mix": [("b", "a", "d")],
        "type_sim": [("c", "d", "a")],
    }
    assert retrieval_lists(data.batch(["q"]), types, 1)["type_sim"] == [("c",)]


def test_random_lists_are_distinct_candidates_fixed_by_the_seed(toy: Any) -> None:
    batch = toy.data(3).batch(["q0", "q1", "q2"])
    found = random_lists(batch, 4, 3, seed=0)
    assert [len(lists) for lists in found] == [4, 4, 4]
    for candidates, lists in zip(batch.candidate_ids, found, strict=True):
        assert all(len(demos) == len(set(demos)) == 3 and set(demos) <= set(candidates) for demos in lists)
        assert len(set(lists)) > 1
    assert random_lists(batch, 4, 3, seed=0) == found != random_lists(batch, 4, 3, seed=9)


def test_random_lists_are_uniform(toy: Any) -> None:
    """3,000 first picks among 5 candidates: 600 each, with a standard deviation of 22."""
    batch = toy.data(1).batch(["q0"])
    (lists,) = random_lists(batch, 3000, 2, seed=0)
    counts = [sum(demos[0] == candidate for demos in lists) for candidate in batch.candidate_ids[0]]
    assert max(abs(count - 600) for count in counts) < 80
