"""A toy world for the training code: random features, and a scorer whose probabilities are a known function."""

import zlib
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from leverlab.records import Example
from leverlab.selector.architecture import Architecture
from leverlab.selector.batches import QueryData
from leverlab.selector.candidates import Candidates, CandidateSet
from leverlab.selector.features import FeatureTable
from leverlab.selector.network import Selector
from leverlab.vlm.scoring import ListScores
from leverlab.vlm.tries import DemoList

WIDTHS = (4, 3, 2)


class FakeScorer:
    """Scores as `leverlab.vlm.scoring.Scorer` does, by a given function of question and demo ids.

    An answer of probability 1/2 or more counts as right and reads "yes", any other reads "no".
    """

    def __init__(self, probability: Callable[[str, DemoList], float]):
        self.probability = probability
        self.asked: list[tuple[str, DemoList]] = []
        self.texts_asked: list[bool] = []

    def score(
        self, questions: Sequence[str], lists: Sequence[DemoList], shots: Sequence[int], texts: bool = False
    ) -> ListScores:
        self.asked += list(zip(questions, lists, strict=True))
        self.texts_asked.append(texts)
        values = [
            [self.probability(question, demos[:count]) for count in shots]
            for question, demos in zip(questions, lists, strict=True)
        ]
        right = np.asarray(values) >= 0.5
        words = [["yes" if hit else "no" for hit in row] for row in right] if texts else None
        return ListScores(np.asarray(values, np.float32), right, words)

    def extend(self, question: str, prefixes: Sequence[DemoList], candidates: Sequence[str]) -> np.ndarray:
        return np.array(
            [
                [np.nan if demo in prefix else self.probability(question, (*prefix, demo)) for demo in candidates]
                for prefix in prefixes
            ],
            np.float32,
        )


class Toy:
    """Makes the parts of a small run."""

    scorer = FakeScorer
    pool = tuple(f"d{index}" for index in range(8))

    @staticmethod
    def hashed(question: str, demos: DemoList) -> float:
        """A probability that is arbitrary, known, and different for every list and order."""
        return zlib.crc32(f"{question} {' '.join(demos)}".encode()) / 2**32

    @staticmethod
    def questions(count: int) -> list[Example]:
        return [Example(f"q{index}", b"i", f"image-{index}", "What?", "any", ("yes",)) for index in range(count)]

    @classmethod
    def data(cls, questions: int = 4, candidates: int = 5, sets: int = 1, seed: int = 0) -> QueryData:
        """Queries q0, q1, …; every set is a random draw in random order."""
        rng = np.random.default_rng(seed)
        ids = (*cls.pool, *(f"q{index}" for index in range(questions)))
        vectors = [rng.normal(size=(len(ids), width)).astype(np.float32) for width in WIDTHS]
        drawn = [
            CandidateSet("train", f"q{index}", number, tuple(rng.permutation(cls.pool)[:candidates].tolist()))
            for index in range(questions)
            for number in range(sets)
        ]
        return QueryData(FeatureTable(ids, *vectors), Candidates(drawn, cls.pool, "toy"))

    @staticmethod
    def selector(seed: int = 0, dropout: float = 0.0, sharpness: float = 1.0, stop: bool = False) -> Selector:
        """A random selector; `sharpness` scales its logits."""
        torch.manual_seed(seed)
        selector = Selector(WIDTHS, Architecture(16, "gru", "dot", False, stop), dropout)
        with torch.no_grad():
            selector.read.weight.mul_(sharpness)
        return selector


@pytest.fixture
def toy() -> type[Toy]:
    return Toy
