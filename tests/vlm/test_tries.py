"""How the prompts of a request are laid into rows, against hand-made cases and against the lists themselves."""

import numpy as np
import pytest

from leverlab.vlm import tries
from leverlab.vlm.tries import DemoList, Trie, plant

QUESTION, DEMO = 3, 10  # tokens


def planted(
    lists: list[DemoList], shots: list[int], questions: list[str] | None = None
) -> tuple[list[Trie], np.ndarray]:
    return plant(questions or ["q"] * len(lists), lists, shots, lambda _: QUESTION, lambda _: DEMO)


def test_two_lists_that_part_after_their_first_demo() -> None:
    """Leaves in order: a, ab, ac. Tokens: three demos and three questions."""
    (trie,), leaf_NM = planted([("a", "b"), ("a", "c")], [1, 2])
    assert trie == Trie("q", ["a", "b", "c"], [-1, 0, 0], [0, 1, 2], 3 * DEMO + 3 * QUESTION)
    assert leaf_NM.tolist() == [[0, 1], [0, 2]]
    assert [trie.path(leaf) for leaf in range(3)] == [("a",), ("a", "b"), ("a", "c")]


def test_a_demo_is_another_one_behind_other_demos() -> None:
    (trie,), leaf_NM = planted([("a", "b"), ("b", "a")], [2])
    assert (trie.demos, trie.parents, trie.leaves) == (["a", "b", "b", "a"], [-1, 0, -1, 2], [1, 3])
    assert leaf_NM.tolist() == [[0], [1]]


def test_lists_that_begin_alike_stand_together_however_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for one list a row: the demos before a cut are repeated, the questions are not."""
    monkeypatch.setattr(tries, "LISTS_A_ROW", 1)
    found, leaf_NM = planted([("a", "b", "c"), ("x", "y", "z"), ("a", "b", "d")], [1, 2, 3])
    assert [trie.demos for trie in found] == [["a", "b", "d"], ["a", "b", "c"], ["x", "y", "z"]]
    assert [len(trie.leaves) for trie in found] == [1, 3, 3]
    assert [trie.tokens for trie in found] == [3 * DEMO + QUESTION, *[3 * DEMO + 3 * QUESTION] * 2]
    assert leaf_NM.tolist() == [[1, 2, 3], [4, 5, 6], [1, 2, 0]]


def test_no_demo_short_lists_and_several_questions() -> None:
    found, leaf_NM = planted([(), ("a",), ("a",)], [0, 3], ["q", "q", "r"])
    assert [(trie.question, trie.demos, trie.leaves) for trie in found] == [
        ("q", ["a"], [-1, 0]),
        ("r", ["a"], [-1, 0]),
    ]
    assert leaf_NM.tolist() == [[0, 0], [0, 1], [2, 3]]
    assert planted([], [1])[1].shape == (0, 1)


@pytest.mark.parametrize("room", [0.5, 1, 2, 50])
def test_every_prefix_of_a_question_has_one_leaf(room: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tries, "LISTS_A_ROW", room)
    rng = np.random.default_rng(0)
    lists = [tuple("abcde"[i] for i in rng.permutation(5)[: rng.integers(1, 5)]) for _ in range(60)]
    questions, shots = [f"q{n % 3}" for n in range(60)], [0, 1, 3, 4]
    found, leaf_NM = planted(lists, shots, questions)
    leaves = [(trie.question, trie.path(leaf)) for trie in found for leaf in range(len(trie.leaves))]
    for n, (question, demos) in enumerate(zip(questions, lists, strict=True)):
        for m, count in enumerate(shots):
            assert leaves[leaf_NM[n, m]] == (question, demos[:count])
    assert len(leaves) == len(set(leaves))
    for trie in found:
        assert trie.tokens == DEMO * len(trie.demos) + QUESTION * len(trie.leaves)
        assert len({(parent, demo) for parent, demo in zip(trie.parents, trie.demos, strict=True)}) == len(trie.demos)
    whole = dict.fromkeys(questions, 0)
    for question, demos in zip(questions, lists, strict=True):
        whole[question] = max(whole[question], DEMO * len(demos) + QUESTION * len(shots))
    assert all(trie.tokens <= max(room * whole[trie.question], 4 * DEMO + QUESTION) for trie in found)
    assert [trie.tokens for trie in found] == sorted(trie.tokens for trie in found)
