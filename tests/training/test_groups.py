"""The files of rl-data: what is written is read back, and a bad row is named."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from leverlab.errors import LeverlabError
from leverlab.records import write_table
from leverlab.training.groups import (
    BEAM_SCHEMA,
    GROUP_SCHEMA,
    TERMS,
    Group,
    read_beams,
    read_groups,
    write_beams,
    write_groups,
)


def group(query_id: str, lists: int = 3, shots: int = 2) -> Group:
    rng = np.random.default_rng(len(query_id))
    demos = tuple(tuple(f"d{g + t}" for t in range(shots)) for g in range(lists))
    terms = {term: rng.random((lists, shots)).astype(np.float32).astype(np.float64) for term in TERMS}
    return Group(query_id, demos, ("beam", "retrieval", "random")[:lists], terms)


def test_groups_read_back_in_their_order(tmp_path: Path) -> None:
    written = [group("zebra"), group("ant"), group("mouse!")]
    write_groups(tmp_path / "groups.parquet", written)
    read = read_groups(tmp_path / "groups.parquet", 2)
    assert [found.query_id for found in read] == ["zebra", "ant", "mouse!"]
    for found, wanted in zip(read, written, strict=True):
        assert (found.lists, found.sources) == (wanted.lists, wanted.sources)
        assert sorted(found.terms) == sorted(TERMS)
        for term in TERMS:
            assert found.terms[term].dtype == np.float64
            np.testing.assert_array_equal(found.terms[term], wanted.terms[term])


def test_lists_stop_where_the_answer_is_most_probable_and_stay_there() -> None:
    terms = {
        "answer_prob": np.array([[0.2, 0.9, 0.3], [0.5, 0.5, 0.5], [0.1, 0.2, 0.3]]),
        "correct": np.array([[0.0, 1.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 1.0]]),
    }
    whole = Group("q", (("a", "b", "c"), ("d", "e", "f"), ("c", "b", "a")), ("beam", "beam", "random"), terms)
    stopped = whole.stopped()
    assert stopped.lists == (("a", "b"), ("d",), ("c", "b", "a"))
    assert stopped.terms["answer_prob"].tolist() == [[0.2, 0.9, 0.9], [0.5, 0.5, 0.5], [0.1, 0.2, 0.3]]
    assert stopped.terms["correct"].tolist() == [[0.0, 1.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    assert (stopped.query_id, stopped.sources) == (whole.query_id, whole.sources)


def test_beams_stop_where_the_answer_is_most_probable(tmp_path: Path) -> None:
    path = tmp_path / "beams.parquet"
    write_beams(path, {"q": [(("a", "b", "c"), [0.1, 0.8, 0.8]), (("b", "a", "c"), [0.3, 0.2, 0.9])]})
    assert read_beams(path, 3) == {"q": [("a", "b", "c"), ("b", "a", "c")]}
    assert read_beams(path, 3, stop=True) == {"q": [("a", "b"), ("b", "a", "c")]}
    for scores in ([0.1, float("nan"), 0.2], [0.1, 0.2], None):
        row = {"query_id": "q", "rank": 0, "demos": ["a", "b", "c"], "beam_score": scores}
        write_table(path, [row], BEAM_SCHEMA)
        assert read_beams(path, 3) == {"q": [("a", "b", "c")]}
        with pytest.raises(LeverlabError, match="row 0: 'beam_score' must hold 3 numbers"):
            read_beams(path, 3, stop=True)


def rows(**changes: Any) -> list[dict[str, Any]]:
    """Two groups of two rows; `changes` are made to row 3."""
    found = [
        {"query_id": query, "source": "beam", "demos": ["a", "b"]} | {term: [0.25, 0.5] for term in TERMS}
        for query in ("q0", "q0", "q1", "q1")
    ]
    found[3] |= changes
    return found


def test_unchanged_rows_are_read(tmp_path: Path) -> None:
    """So that what the tests below refuse is refused for its change."""
    write_table(tmp_path / "groups.parquet", rows(), GROUP_SCHEMA)
    assert [len(found.lists) for found in read_groups(tmp_path / "groups.parquet", 2)] == [2, 2]


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("demos", ["a"], "must hold 2 values"),
        ("demos", None, "must hold 2 values"),
        ("correct", [1.0, 0.0, 1.0], "must hold 2 values"),
        ("beam_score", [], "must hold 2 values"),
        ("answer_prob", [0.5, float("nan")], "not a number"),
        ("vqa_accuracy", [float("inf"), 0.5], "not a number"),
        ("beam_score", [0.5, None], "not a number"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, name: str, value: Any, problem: str) -> None:
    path = tmp_path / "groups.parquet"
    write_table(path, rows(**{name: value}), GROUP_SCHEMA)
    with pytest.raises(LeverlabError, match=f"row 3: '{name}'.*{problem}") as error:
        read_groups(path, 2)
    assert str(path) in str(error.value)


def test_another_number_of_shots_is_refused(tmp_path: Path) -> None:
    write_table(tmp_path / "groups.parquet", rows(), GROUP_SCHEMA)
    with pytest.raises(LeverlabError, match="row 0: 'demos' must hold 4 values"):
        read_groups(tmp_path / "groups.parquet", 4)


def test_groups_of_unequal_size_are_refused(tmp_path: Path) -> None:
    write_table(tmp_path / "groups.parquet", rows(query_id="q0"), GROUP_SCHEMA)
    with pytest.raises(LeverlabError, match="groups of different sizes"):
        read_groups(tmp_path / "groups.parquet", 2)


@pytest.mark.parametrize("reader", [read_groups, read_beams])
def test_missing_cut_and_foreign_files_are_refused(tmp_path: Path, reader: Any) -> None:
    path = tmp_path / "file.parquet"
    with pytest.raises(LeverlabError, match="does not exist"):
        reader(path, 2)
    write_table(path, rows(), GROUP_SCHEMA)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(LeverlabError, match="damaged"):
        reader(path, 2)
    pq.write_table(pa.table({"query_id": ["q0"]}), path)
    with pytest.raises(LeverlabError, match="lacks the columns"):
        reader(path, 2)


def test_beams_read_back_best_first(tmp_path: Path) -> None:
    beams = {"q1": [(("a", "b"), [0.1, 0.9]), (("c", "a"), [0.2, 0.8])], "q0": [(("b", "c"), [0.3, 0.4])]}
    write_beams(tmp_path / "beams.parquet", beams)
    read = read_beams(tmp_path / "beams.parquet", 2)
    assert read == {"q1": [("a", "b"), ("c", "a")], "q0": [("b", "c")]}
    assert list(read) == ["q1", "q0"]
    stored = pq.read_table(tmp_path / "beams.parquet").to_pylist()
    assert [row["rank"] for row in stored] == [0, 1, 0]
    assert stored[1]["beam_score"] == pytest.approx([0.2, 0.8])


@pytest.mark.parametrize("changes", [{"rank": 0}, {"rank": 2}, {"demos": ["a"]}, {"demos": None}])
def test_a_bad_beam_is_named(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "beams.parquet"
    good = {"query_id": "q0", "demos": ["a", "b"], "beam_score": [0.1, 0.2]}
    write_table(path, [good | {"rank": 0}, good | {"rank": 1} | changes], BEAM_SCHEMA)
    with pytest.raises(LeverlabError, match="row 1: expected rank 1 with 2 demos") as error:
        read_beams(path, 2)
    assert str(path) in str(error.value)
