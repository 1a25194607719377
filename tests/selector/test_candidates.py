"""Samplers by hand-made vectors, and the file that one pool shares with training and inference."""

from dataclasses import replace

import numpy as np
import pytest

from leverlab.errors import LeverlabError
from leverlab.records import Example
from leverlab.selector.candidates import (
    SAMPLERS,
    Candidates,
    CandidateSet,
    draw_candidates,
    read_candidates,
    unit_vectors,
    write_candidates,
)
from leverlab.selector.features import FeatureTable
from tests.pictures import png

POOL = [Example(f"d{index:02d}", png(index), f"image-{index}", "What?", "any", ("yes",)) for index in range(40)]
QUERIES = [Example(f"q{index}", png(index), f"image-{index}", "What?", "any", ("yes",)) for index in range(3)]


def angles(degrees: list[float]) -> np.ndarray:
    """Vectors in the plane at the given angles; their lengths differ, since a cosine must not see them."""
    radians = np.deg2rad(degrees)
    lengths = np.linspace(0.5, 3.0, len(degrees))[:, None]
    return (lengths * np.stack([np.cos(radians), np.sin(radians)], axis=1)).astype(np.float32)


# demo i lies at 2i degrees by image and at 80 - 2i by question; query j lies at 0 in both
IMAGE = [2.0 * index for index in range(40)] + [0.0] * 3
TEXT = [80.0 - 2.0 * index for index in range(40)] + [0.0] * 3
FEATURES = FeatureTable(tuple(row.id for row in (*POOL, *QUERIES)), angles(IMAGE), angles(TEXT), angles(TEXT))


def draw(sampler: str, candidates: int = 4, sets: int = 1, seed: int = 0, **changes) -> list[CandidateSet]:
    arguments = {"queries": QUERIES, "pool": POOL, "features": FEATURES} | changes
    return draw_candidates(sampler, "train", candidates=candidates, sets=sets, seed=seed, **arguments)


def test_unit_vectors_multiply_to_cosines():
    """(3, 4) and (4, 3) have the cosine 24 / 25, (3, 4) and (-4, 3) have 0."""
    units = unit_vectors(np.asarray([[3, 4], [8, 6], [-4, 3]], np.float32))
    np.testing.assert_allclose(units @ units[0], [1.0, 0.96, 0.0], atol=1e-12)


def test_a_vector_of_zeros_is_refused():
    with pytest.raises(LeverlabError, match="all zeros"):
        unit_vectors(np.zeros((2, 3), np.float32))


def test_set_0_of_a_similarity_sampler_is_the_k_most_similar():
    """Query q0 shows image-0, so that d00 is left out: by image d01..d04 are nearest, by question d39..d36."""
    assert set(draw("image_sim")[0].candidates) == {"d01", "d02", "d03", "d04"}
    assert set(draw("text_sim")[0].candidates) == {"d39", "d38", "d37", "d36"}
    assert set(draw("image_sim")[2].candidates) == {"d00", "d01", "d03", "d04"}


def test_mix_is_half_text_and_half_image():
    assert set(draw("mix")[0].candidates) == {"d39", "d38", "d01", "d02"}
    assert set(draw("mix", candidates=5)[0].candidates) == {"d39", "d38", "d37", "d01", "d02"}


def test_mix_fills_what_comes_twice_with_random_demos():
    """With equal vectors for both, the halves coincide: two nearest demos, and two others at random."""
    features = FeatureTable(FEATURES.ids, angles(IMAGE), angles(IMAGE), angles(TEXT))
    seen = set()
    for seed in range(20):
        chosen = set(draw("mix", features=features, seed=seed)[0].candidates)
        assert len(chosen) == 4
        assert {"d01", "d02"} <= chosen
        seen |= chosen
    assert len(seen) > 10


def test_later_sets_come_from_the_four_k_most_similar():
    sets = [set(item.candidates) for item in draw("image_sim", sets=30) if item.query_id == "q0"]
    allowed = {f"d{index:02d}" for index in range(1, 17)}
    assert sets[0] == {"d01", "d02", "d03", "d04"}
    assert all(chosen <= allowed for chosen in sets)
    assert set().union(*sets) == allowed
    assert len({frozenset(chosen) for chosen in sets}) > 20


def test_random_draws_every_eligible_demo_about_equally():
    """3,000 sets of 4 of 39 demos: each is drawn 308 times on average, with a standard deviation below 17."""
    counts = dict.fromkeys((demo.id for demo in POOL), 0)
    for item in draw("random", sets=3000, queries=QUERIES[:1]):
        for demo in item.candidates:
            counts[demo] += 1
    assert counts.pop("d00") == 0
    assert max(abs(count - 3000 * 4 / 39) for count in counts.values()) < 85


def test_ties_are_broken_at_random():
    """All questions alike: without it every query would get the first demos of the pool."""
    equal = FeatureTable(FEATURES.ids, angles(IMAGE), angles([7.0] * 43), angles(TEXT))
    seen = {demo for seed in range(90) for demo in draw("text_sim", features=equal, seed=seed)[0].candidates}
    assert len(seen) == 39


def test_position_tells_nothing_about_similarity():
    """The nearest demo stands at each of 4 positions in about a quarter of 400 sets (standard deviation 8.7)."""
    first = [draw("image_sim", queries=QUERIES[:1], seed=seed)[0].candidates.index("d01") for seed in range(400)]
    assert np.abs(np.bincount(first, minlength=4) - 100).max() < 45


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sets_are_whole_distinct_and_never_show_the_querys_own_image(sampler):
    for item in draw(sampler, candidates=11, sets=3):
        assert len(set(item.candidates)) == 11
        assert f"d0{item.query_id[1]}" not in item.candidates


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_demo_with_the_querys_pixels_is_no_candidate_whatever_its_image_id(sampler):
    """d01 shows the picture of q0, under an id of its own: it is never offered to q0, and is to q1 and q2."""
    pool = [replace(demo, image=png(0), image_id="again") if demo.id == "d01" else demo for demo in POOL]
    offered = {query.id: set() for query in QUERIES}
    for item in draw(sampler, candidates=38, sets=3, pool=pool):
        offered[item.query_id] |= set(item.candidates)
    assert "d01" not in offered["q0"]
    assert "d01" in offered["q1"] & offered["q2"]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_set_depends_on_seed_query_and_number_alone(sampler):
    drawn = draw(sampler, sets=4)
    assert draw(sampler, sets=4) == drawn
    assert draw(sampler, sets=2, queries=QUERIES[::-1])[-2:] == drawn[:2]
    assert draw(sampler, sets=4, seed=1) != drawn
    assert len({item.candidates for item in drawn}) == len(drawn)


def test_fewer_eligible_demos_than_k_names_query_and_counts():
    with pytest.raises(LeverlabError, match=r"query 'q0' has 39 eligible demos in the pool of 40.*candidates = 40"):
        draw("random", candidates=40)
    assert len(draw("mix", candidates=39)[0].candidates) == 39


def test_an_unknown_sampler_or_id_is_refused():
    with pytest.raises(LeverlabError, match="sampler = 'best'"):
        draw("best")
    with pytest.raises(LeverlabError, match="'new' is a demo id that no pool has"):
        draw("random", pool=[*POOL, Example("new", png(99), "x", "What?", "any", ("yes",))])


def test_a_written_file_reads_back(tmp_path):
    path = tmp_path / "candidates.parquet"
    drawn = draw("random", sets=3)
    write_candidates(path, drawn)
    candidates = read_candidates(path, [demo.id for demo in POOL])
    assert {query.id: candidates.sets(query.id) for query in QUERIES} == {"q0": 3, "q1": 3, "q2": 3}
    assert [candidates.of(item.query_id, item.set_index) for item in drawn] == [item.candidates for item in drawn]


def test_a_file_of_another_pool_is_refused(tmp_path):
    path = tmp_path / "candidates.parquet"
    write_candidates(path, draw("image_sim"))
    with pytest.raises(LeverlabError, match=r"parquet: set 0 of query 'q0' holds 'd0.', a demo id that no pool has"):
        read_candidates(path, ["d01"])


def test_a_lookup_of_what_is_not_there_is_refused():
    candidates = Candidates([CandidateSet("train", "q", 0, ("a", "b"))], ["a", "b"], "here")
    with pytest.raises(LeverlabError, match="no candidates for query 'z'"):
        candidates.of("z", 0)
    with pytest.raises(LeverlabError, match="no candidates for query 'z'"):
        candidates.sets("z")
    with pytest.raises(LeverlabError, match="1 sets for query 'q', none with number 1"):
        candidates.of("q", 1)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ([("q", 0, "ab"), ("q", 0, "ba")], "comes twice"),
        ([("q", 0, "ab"), ("q", 2, "ab")], "has the sets"),
        ([("q", 0, "ab"), ("r", 0, "abc")], "must hold 2 distinct"),
        ([("q", 0, "aa")], "must hold 2 distinct"),
        ([("q", 0, "")], "must hold 0 distinct"),
    ],
)
def test_a_bad_file_is_refused(sets, message):
    with pytest.raises(LeverlabError, match=message):
        Candidates([CandidateSet("val", query, index, tuple(demos)) for query, index, demos in sets], "abc", "here")
