"""Positions and ids, feature rows and statistics, on a table that can be read by hand."""

import numpy as np
import pytest
import torch

from leverlab.errors import LeverlabError
from leverlab.selector.batches import QueryData
from leverlab.selector.candidates import Candidates, CandidateSet
from leverlab.selector.features import FeatureTable
from leverlab.selector.network import Selector
from tests.selector.reference import PLAIN

POOL = ("d0", "d1", "d2", "d3")
IDS = (*POOL, "q0", "q1")
SETS = [
    CandidateSet("train", "q0", 0, ("d2", "d0", "d1")),
    CandidateSet("train", "q0", 1, ("d3", "d1", "d0")),
    CandidateSet("train", "q1", 0, ("d0", "d3", "d2")),
    CandidateSet("train", "q1", 1, ("d1", "d2", "d3")),
]


def column(*values: float) -> np.ndarray:
    return np.array(values, np.float32)[:, None]


@pytest.fixture(name="data")
def build() -> QueryData:
    """Row i has image (i, 7), question 10 i and answer i squared; the question of q1 (row 5) lies far out."""
    image = np.concatenate([column(0, 1, 2, 3, 4, 5), column(7, 7, 7, 7, 7, 7)], axis=1)
    table = FeatureTable(IDS, image, column(0, 10, 20, 30, 40, 500), column(0, 1, 4, 9, 1000, 1000))
    return QueryData(table, Candidates(SETS, POOL, "sets"))


def test_a_batch_holds_the_features_of_its_queries_and_candidates(data: QueryData) -> None:
    batch = data.batch(["q1", "q0"])
    assert batch.query_ids == ("q1", "q0")
    assert batch.candidate_ids == (("d0", "d3", "d2"), ("d2", "d0", "d1"))
    assert batch.query[0].tolist() == [[5, 7], [4, 7]]
    assert batch.query[1].tolist() == [[500], [40]]
    assert batch.demos[0][..., 0].tolist() == [[0, 3, 2], [2, 0, 1]]
    assert batch.demos[1][..., 0].tolist() == [[0, 30, 20], [20, 0, 10]]
    assert batch.demos[2][..., 0].tolist() == [[0, 9, 4], [4, 0, 1]]
    assert data.widths == (2, 1, 1)


def test_another_set_offers_other_candidates(data: QueryData) -> None:
    batch = data.batch(["q0", "q1"], 1)
    assert batch.candidate_ids == (("d3", "d1", "d0"), ("d1", "d2", "d3"))
    assert batch.demos[1][..., 0].tolist() == [[30, 10, 0], [10, 20, 30]]
    assert data.sets("q0") == 2
    with pytest.raises(LeverlabError, match="none with number 2"):
        data.batch(["q0"], 2)
    with pytest.raises(LeverlabError, match="no candidates for query 'd0'"):
        data.batch(["d0"])


def test_positions_are_those_among_the_querys_own_candidates(data: QueryData) -> None:
    batch = data.batch(["q0", "q1"])
    lists = [[("d0", "d1"), ("d2", "d0")], [("d0", "d2"), ("d3", "d0")]]
    positions_BGT = batch.positions(lists, 2)
    assert positions_BGT.tolist() == [[[1, 2], [0, 1]], [[0, 2], [1, 0]]]
    assert positions_BGT.dtype == torch.long
    assert batch.ids(positions_BGT) == lists


def test_a_demo_that_is_no_candidate_is_refused(data: QueryData) -> None:
    """d1 is a candidate of q0 but not of q1."""
    with pytest.raises(LeverlabError, match="'d1' stands in a list of query 'q1' but not among its candidates"):
        data.batch(["q0", "q1"]).positions([[("d1",)], [("d1",)]], 1)


def test_lists_for_another_number_of_queries_are_refused(data: QueryData) -> None:
    with pytest.raises(ValueError, match="shorter"):
        data.batch(["q0", "q1"]).positions([[("d1",)]], 1)


def test_statistics_are_of_pool_and_train_questions_and_of_pool_answers(data: QueryData) -> None:
    """Over d0..d3 and q0: image mean 2, deviation sqrt 2, question ten times that. Answers of the pool alone, 0, 1, 4
    and 9: mean 3.5, variance 98 / 4 - 3.5^2 = 12.25. The constant 7 is left unscaled. q1 was not asked for."""
    selector = Selector(data.widths, PLAIN, 0.0)
    data.standardise(selector, POOL, ["q0"])
    torch.testing.assert_close(selector.image_mean, torch.tensor([2.0, 7.0]))
    torch.testing.assert_close(selector.image_scale, torch.tensor([2.0**0.5, 1.0]))
    torch.testing.assert_close(selector.question_mean, torch.tensor([20.0]))
    torch.testing.assert_close(selector.question_scale, torch.tensor([200.0**0.5]))
    torch.testing.assert_close(selector.answer_mean, torch.tensor([3.5]))
    torch.testing.assert_close(selector.answer_scale, torch.tensor([3.5]))


def test_vectors_by_name(data: QueryData) -> None:
    assert data.vectors("answer", ["d3", "d1"]).tolist() == [[9], [1]]
    assert data.vectors("question", ["q1"]).tolist() == [[500]]
    with pytest.raises(LeverlabError, match="'z' is a demo id that no pool has"):
        data.vectors("image", ["z"])


def test_relevance_by_hand() -> None:
    """The query lies at 0 degrees in both features. Images of a, b, c at 0, 60 and 180, questions at 60, 60 and 180:
    cosines 1, .5, -1 and .5, .5, -1, so a is worth .75, b .5 and c -1. A prefix is worth their mean, and 0 at least."""

    def angles(*degrees: float) -> np.ndarray:
        radians = np.deg2rad(degrees)
        return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32) * 3

    table = FeatureTable(("a", "b", "c", "q"), angles(0, 60, 180, 0), angles(60, 60, 180, 0), angles(0, 0, 0, 0))
    data = QueryData(table, Candidates([CandidateSet("train", "q", 0, ("a", "b", "c"))], ("a", "b", "c"), "sets"))
    found = data.batch(["q"]).relevance(torch.tensor([[[0, 1, 2], [2, 1, 0], [1, 0, 2]]]))
    expected = [[0.75, 0.625, 0.25 / 3], [0, 0, 0.25 / 3], [0.5, 0.625, 0.25 / 3]]
    np.testing.assert_allclose(found[0], expected, atol=1e-6)
    assert found.dtype == np.float64
