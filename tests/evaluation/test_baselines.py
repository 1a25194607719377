"""Retrieval orders on vectors whose cosines are known by hand."""

import numpy as np
import pytest

from leverlab.errors import LeverlabError
from leverlab.evaluation.baselines import (
    image_similarity,
    mixed,
    random_order,
    select,
    text_similarity,
    type_nearest,
)

QUERY = [[1.0, 0.0]]
# Cosines with the query: 0, 0.8, 1, -1, 0.6; lengths differ so that a dot product would order them otherwise.
CANDIDATES = [[[0.0, 9.0], [0.8, 0.6], [0.1, 0.0], [-5.0, 0.0], [6.0, 8.0]]]


def test_cosine_order_by_hand() -> None:
    assert image_similarity(QUERY, CANDIDATES).tolist() == [[2, 1, 4, 0, 3]]
    assert text_similarity(QUERY, CANDIDATES).tolist() == [[2, 1, 4, 0, 3]]


def test_order_equals_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    query, candidates = rng.normal(size=(4, 7)), rng.normal(size=(4, 9, 7))
    for n, order in enumerate(image_similarity(query, candidates)):
        cosines = [float(c @ query[n] / np.linalg.norm(c) / np.linalg.norm(query[n])) for c in candidates[n]]
        assert order.tolist() == sorted(range(9), key=lambda k: -cosines[k])


def test_order_follows_the_candidates_and_not_their_scale() -> None:
    rng = np.random.default_rng(1)
    query, candidates, shuffle = rng.normal(size=(3, 5)), rng.normal(size=(3, 8, 5)), rng.permutation(8)
    order = image_similarity(query, candidates)
    assert (shuffle[image_similarity(query, candidates[:, shuffle])] == order).all()
    assert (image_similarity(query * 3, candidates * rng.uniform(1, 9, size=(3, 8, 1))) == order).all()


def test_equal_candidates_keep_their_order() -> None:
    rng = np.random.default_rng(2)
    one = rng.normal(size=33)
    candidates = np.stack([one * scale for scale in (1, 3, 0.7, 11, 1 / 3, 5)])[None]
    assert image_similarity(rng.normal(size=(1, 33)), candidates).tolist() == [[0, 1, 2, 3, 4, 5]]


def test_mixed_is_the_mean_of_both_cosines() -> None:
    """Image cosines 1, .6, 0 and text cosines -1, .6, 1: means 0, .6, .5."""
    image = [[[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]]
    text = [[[0.0, 0.0, -1.0], [0.8, 0.0, 0.6], [0.0, 0.0, 1.0]]]
    assert mixed(QUERY, image, [[0.0, 0.0, 2.0]], text).tolist() == [[1, 2, 0]]
    assert mixed(QUERY, image, QUERY, image).tolist() == image_similarity(QUERY, image).tolist()


def test_type_nearest_puts_the_type_first() -> None:
    types = [["number", "colour", "colour", "number", "number"]]
    assert type_nearest(["number"], types, QUERY, CANDIDATES).tolist() == [[4, 0, 3, 2, 1]]
    assert type_nearest(["colour"], types, QUERY, CANDIDATES).tolist() == [[2, 1, 4, 0, 3]]
    assert type_nearest(["texture"], types, QUERY, CANDIDATES).tolist() == [[2, 1, 4, 0, 3]]


def test_random_orders_are_permutations_fixed_by_the_seed() -> None:
    orders = random_order(2000, 4, seed=3)
    assert (np.sort(orders, axis=1) == np.arange(4)).all()
    assert (orders == random_order(2000, 4, seed=3)).all()
    assert (orders != random_order(2000, 4, seed=4)).any()
    # Every candidate stands first in about a quarter of the queries: 4 standard errors are 0.039.
    assert np.bincount(orders[:, 0]) / 2000 == pytest.approx([0.25] * 4, abs=0.039)


def test_select_puts_the_best_last() -> None:
    order = image_similarity(QUERY, CANDIDATES)
    assert select(order, 1).tolist() == [[2]]
    assert select(order, 3).tolist() == [[4, 1, 2]]
    for shots in (0, 6):
        with pytest.raises(LeverlabError, match="out of 5 candidates"):
            select(order, shots)


def test_vectors_without_a_cosine_are_refused() -> None:
    with pytest.raises(LeverlabError, match=r"candidate vector at \(0, 1\)"):
        image_similarity(QUERY, [[[1.0, 0.0], [0.0, 0.0]]])
    with pytest.raises(LeverlabError, match="query vector"):
        image_similarity([[np.nan, 1.0]], CANDIDATES)
    with pytest.raises(LeverlabError, match=r"\(N, D\)"):
        image_similarity([[1.0, 0.0, 0.0]], CANDIDATES)
    with pytest.raises(LeverlabError, match="question vectors"):
        mixed(QUERY, CANDIDATES, QUERY, [CANDIDATES[0][:2]])
    with pytest.raises(LeverlabError, match="one type"):
        type_nearest(["a"], [["a", "b"]], QUERY, CANDIDATES)
