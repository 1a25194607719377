"""The lists that every method shows, by hand on three questions, and the rows of answers."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pytest

from leverlab.evaluation.inference import (
    MethodLists,
    answer_rows,
    baseline_lists,
    oracle_lists,
    selector_lists,
)
from leverlab.evaluation.summary import ANSWER_SCHEMA
from leverlab.records import Example
from leverlab.selector.architecture import Architecture
from leverlab.selector.batches import QueryBatch, QueryData
from leverlab.selector.candidates import Candidates, CandidateSet
from leverlab.selector.features import FeatureTable
from leverlab.selector.inference import InferenceSelector, expected_shapes
from leverlab.vlm.scoring import ListScores
from leverlab.vlm.tries import DemoList

POOL = ("a", "b", "c", "d", "e", "f")
QUESTIONS = [
    Example(f"q{n}", b"i", f"image {n}", "What?", kind, ("no" if n == 1 else "yes",)) for n, kind in enumerate("xyx")
]
TYPES = {"a": "x", "b": "y", "c": "x", "d": "y", "e": "x", "f": "y", "q0": "x", "q1": "y", "q2": "x"}
SETS = {"q0": ("d", "a", "c", "b"), "q1": ("b", "c", "d", "a"), "q2": ("a", "b", "c", "d")}


def angles(*degrees: float) -> np.ndarray:
    """Vectors in the plane at the given angles, of different lengths."""
    radians = np.deg2rad(degrees)
    return (np.stack([np.cos(radians), np.sin(radians)], 1) * np.arange(1, 10)[:, None]).astype(np.float32)


@pytest.fixture(name="batch")
def build() -> QueryBatch:
    """Image angles of a to d: 10, 20, 30, 40; of their questions: 30, 1, 50, 5. q0 lies at 0 and 0, q1 at 42 and 55,
    q2 at 24 and 49."""
    image, text = angles(10, 20, 30, 40, 90, 90, 0, 42, 24), angles(30, 1, 50, 5, 90, 90, 0, 55, 49)
    answers = np.arange(9, dtype=np.float32)[:, None]
    table = FeatureTable((*POOL, "q0", "q1", "q2"), image, text, answers)
    sets = [CandidateSet("test", query, 0, candidates) for query, candidates in SETS.items()]
    return QueryData(table, Candidates(sets, POOL, "here")).batch(["q0", "q1", "q2"])


def baselines(batch: QueryBatch, fixed_seed: int = 0) -> dict[tuple[str, int], MethodLists]:
    found = baseline_lists(batch, TYPES, POOL, 3, 2, fixed_seed)
    return {(shown.method, shown.seed): shown for shown in found}


def words(*texts: str) -> list[DemoList]:
    return [tuple(text) for text in texts]


def test_the_methods_and_their_shot_counts(batch: QueryBatch) -> None:
    found = baselines(batch)
    names = ["zero_shot", "random", "random", "fixed", "image_sim", "text_sim", "mix", "type_sim"]
    assert list(found) == list(zip(names, [0, 0, 1, 0, 0, 0, 0, 0], strict=True))
    assert found["zero_shot", 0].lists == {0: [(), (), ()]}
    for (method, _), shown in found.items():
        if method != "zero_shot":
            assert list(shown.lists) == [1, 2, 3]
            assert all(len(demos) == len(set(demos)) == k for k, lists in shown.lists.items() for demos in lists)
            assert all(len(lists) == 3 for lists in shown.lists.values())


def test_retrieval_by_hand_with_the_best_demo_last(batch: QueryBatch) -> None:
    """Angles to q0: images 10, 20, 30, 40, questions 30, 1, 50, 5. To q1: images 32, 22, 12, 2, questions 25, 54, 5,
    50. To q2: images 14, 4, 6, 16, questions 19, 48, 1, 44. Means of cosines, a to d: q0 .925 .970 .754 .881, q1 .877
    .758 .987 .821, q2 .958 .833 .997 .840. Types: a and c are x, as q0 and q2 are; b and d are y, as q1 is."""
    found = {method: shown.lists for (method, _), shown in baselines(batch).items()}
    assert found["image_sim"][3] == words("cba", "bcd", "acb")
    assert found["text_sim"][3] == words("adb", "dac", "dac")
    assert found["mix"][3] == words("dab", "dac", "dac")
    assert found["type_sim"][3] == words("bca", "cbd", "bac")
    assert found["image_sim"][2] == words("ba", "cd", "cb")
    assert found["type_sim"][1] == words("a", "d", "c")


def test_random_lists_grow_and_depend_on_their_seed(batch: QueryBatch) -> None:
    found = baselines(batch)
    for seed in (0, 1):
        lists = found["random", seed].lists
        assert [demos[:2] for demos in lists[3]] == lists[2]
        assert all(set(demos) <= set(SETS[query]) for query, demos in zip(SETS, lists[3], strict=True))
    assert found["random", 0].lists != found["random", 1].lists
    assert baselines(batch)["random", 1].lists == found["random", 1].lists


def test_fixed_shows_one_list_of_the_pool_to_all(batch: QueryBatch) -> None:
    lists = baselines(batch)["fixed", 0].lists
    assert len(set(lists[3])) == 1
    assert set(lists[3][0]) <= set(POOL)
    assert [lists[2][0], lists[1][0]] == [lists[3][0][:2], lists[3][0][:1]]
    drawn = {baselines(batch, seed)["fixed", 0].lists[3][0] for seed in range(30)}
    assert len(drawn) > 10
    assert {demo for demos in drawn for demo in demos} == set(POOL)  # of the pool, not of the candidates


def test_a_selector_shows_the_prefixes_of_its_greedy_list(batch: QueryBatch) -> None:
    """All zero but answer, key, read and the bias of norm: demos come by falling answer feature, d, c, b, a."""
    architecture = Architecture(1, "gru", "dot", False, False)
    tensors = {name: np.zeros(shape, np.float32) for name, shape in expected_shapes((2, 2, 1), architecture).items()}
    tensors["norm.bias"] += 1
    for name in ("answer.weight", "key.weight", "read.weight"):
        tensors[name] += 1
    selector = InferenceSelector(tensors, {**asdict(architecture), "widths": [2, 2, 1]})
    shown = selector_lists(selector, batch, 3, "grpo", 7)
    assert (shown.method, shown.seed) == ("grpo", 7)
    assert shown.lists == {1: words("d", "d", "d"), 2: words("dc", "dc", "dc"), 3: words("dcb", "dcb", "dcb")}


class FakeScorer:
    """Scores as the scorer does: P(answer) by question and demos, right from 1/2 on."""

    @staticmethod
    def probability(question: str, demos: DemoList) -> float:
        rng = np.random.default_rng([int(question[1]), *map(ord, demos)])
        return float(rng.random())

    def score(
        self, questions: Sequence[str], lists: Sequence[DemoList], shots: Sequence[int], texts: bool = False
    ) -> ListScores:
        pairs = zip(questions, lists, strict=True)
        values = np.array([[self.probability(question, demos[:k]) for k in shots] for question, demos in pairs])
        answers = [["yes" if value >= 0.5 else "no" for value in row] for row in values.tolist()]
        return ListScores(values.astype(np.float32), values >= 0.5, answers if texts else None)

    def extend(self, question: str, prefixes: Sequence[DemoList], candidates: Sequence[str]) -> np.ndarray:
        rows = [
            [np.nan if demo in prefix else self.probability(question, (*prefix, demo)) for demo in candidates]
            for prefix in prefixes
        ]
        return np.array(rows, np.float32)


def test_the_oracle_takes_the_best_next_demo(batch: QueryBatch) -> None:
    """Brute force at every step: of all lists that begin as chosen so far, the best of one more demo."""
    shown = oracle_lists(FakeScorer(), batch, 4)  # type: ignore[arg-type]
    assert (shown.method, shown.seed, list(shown.lists)) == ("oracle", 0, [1, 2, 3, 4])
    for n, (query, candidates) in enumerate(SETS.items()):
        chosen: DemoList = ()
        for shots in (1, 2, 3, 4):
            longer = [demos for demos in itertools.permutations(candidates, shots) if demos[:-1] == chosen]
            chosen = max(longer, key=lambda demos, query=query: FakeScorer.probability(query, demos))  # type: ignore[misc]
            assert shown.lists[shots][n] == chosen


def test_answer_rows_are_complete() -> None:
    lists = {0: [()] * 3, 2: words("ab", "ca", "fe")}
    rows = answer_rows(FakeScorer(), QUESTIONS, MethodLists("sft", 3, lists))  # type: ignore[arg-type]
    assert [(row["shots"], row["question_id"]) for row in rows] == [(k, f"q{n}") for k in (0, 2) for n in range(3)]
    for row, demos in zip(rows, lists[0] + lists[2], strict=True):
        probability = FakeScorer.probability(str(row["question_id"]), demos)
        assert row["demos"] == list(demos)
        assert row["answer_prob"] == pytest.approx(probability, rel=1e-6)
        assert row["prediction"] == ("yes" if probability >= 0.5 else "no")
        assert row["vqa_accuracy"] == (row["prediction"] == ("no" if row["question_id"] == "q1" else "yes"))
        assert (row["method"], row["seed"]) == ("sft", 3)
        assert row["question_type"] == TYPES[str(row["question_id"])]
        assert list(row) == ANSWER_SCHEMA.names
    assert {row["vqa_accuracy"] for row in rows} == {0, 1}
    assert pa.Table.from_pylist(rows, schema=ANSWER_SCHEMA).num_rows == 6
