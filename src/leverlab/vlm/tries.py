"""Demo lists as tries: what the lists of one question have in common is computed once.

Lists that are sampled from one policy, or kept by one beam search, begin alike. A trie holds each common beginning
once, and asks the question once behind each prefix, however many lists share it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

DemoList = tuple[str, ...]
Length = Callable[[str], int]
LISTS_A_ROW = 2  # a row grows to the tokens of so many whole lists; attention is quadratic in them


@dataclass
class Trie:
    """One row of a batch: a question behind some prefixes of demo lists.

    `demos[i]` follows `demos[parents[i]]`, and -1 stands for the head of the prompt; so does `leaves[m]`, the demo that
    the m-th copy of the question follows. `tokens` counts demos and questions.
    """

    question: str
    demos: list[str] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    leaves: list[int] = field(default_factory=list)
    tokens: int = 0

    def path(self, leaf: int) -> DemoList:
        """Return the demos that a leaf stands behind, the first one first."""
        path, place = [], self.leaves[leaf]
        while place >= 0:
            path.append(self.demos[place])
            place = self.parents[place]
        return tuple(reversed(path))


def plant(
    questions: Sequence[str],
    lists: Sequence[DemoList],
    shots: Sequence[int],
    question_length: Length,
    demo_length: Length,
) -> tuple[list[Trie], NDArray[np.int64]]:
    """Return tries that hold every list at every shot count (a shorter list is asked whole), and where: the leaf (N,
    M), counted over all tries.

    A question's prefixes stand in as few rows as `LISTS_A_ROW` allows; where a row ends inside a common beginning, the
    next one repeats its demos. Tries of like size stand together, the smallest first, so that batches need little
    padding. The result depends on the request alone.
    """
    by_question: dict[str, list[DemoList]] = {}
    for question, demos in zip(questions, lists, strict=True):
        by_question.setdefault(question, []).append(demos)
    tries: list[Trie] = []
    place_of: dict[tuple[str, DemoList], tuple[int, int]] = {}  # which trie, which of its leaves
    for question, asked in by_question.items():
        own = question_length(question)
        whole = max(sum(map(demo_length, demos[: max(shots)])) for demos in asked) + len(shots) * own
        places: dict[DemoList, int] = {}
        trie = None
        for prefix in _in_order(demos[:count] for demos in asked for count in shots):
            missing = [prefix[:end] for end in range(1, len(prefix) + 1) if prefix[:end] not in places]
            cost = own + sum(demo_length(part[-1]) for part in missing)
            if trie is None or trie.tokens + cost > LISTS_A_ROW * whole:
                trie, places = Trie(question), {(): -1}
                tries.append(trie)
                missing = [prefix[:end] for end in range(1, len(prefix) + 1)]
                cost = own + sum(map(demo_length, prefix))
            for part in missing:
                places[part] = len(trie.demos)
                trie.demos.append(part[-1])
                trie.parents.append(places[part[:-1]])
            place_of[question, prefix] = len(tries) - 1, len(trie.leaves)
            trie.leaves.append(places[prefix])
            trie.tokens += cost
    order = sorted(range(len(tries)), key=lambda index: tries[index].tokens)
    before, first_leaf = 0, [0] * len(tries)
    for index in order:
        first_leaf[index] = before
        before += len(tries[index].leaves)
    leaf_NM = np.zeros((len(lists), len(shots)), np.int64)
    for row, (question, demos) in enumerate(zip(questions, lists, strict=True)):
        for column, count in enumerate(shots):
            index, leaf = place_of[question, demos[:count]]
            leaf_NM[row, column] = first_leaf[index] + leaf
    return [tries[index] for index in order], leaf_NM


def _in_order(prefixes: Iterable[DemoList]) -> list[DemoList]:
    """Return the distinct prefixes: those that go on from one right behind it, in the order in which they came."""
    rank: dict[DemoList, list[int]] = {(): []}
    distinct = dict.fromkeys(prefixes)
    for prefix in distinct:
        for end in range(1, len(prefix) + 1):
            if prefix[:end] not in rank:
                rank[prefix[:end]] = [*rank[prefix[: end - 1]], len(rank)]
    return sorted(distinct, key=lambda prefix: rank[prefix])
