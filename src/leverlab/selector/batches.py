"""Features and candidates of queries as tensors, and the way from demo ids to positions among the candidates and
back."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from leverlab.errors import LeverlabError
from leverlab.selector.candidates import Candidates
from leverlab.selector.features import FeatureTable
from leverlab.selector.network import FEATURES, Selector


@dataclass(frozen=True)
class QueryBatch:
    """B queries with K candidates each: what `Selector.encode` takes, and the candidates' ids."""

    query_ids: tuple[str, ...]
    candidate_ids: tuple[tuple[str, ...], ...]
    query: tuple[Tensor, Tensor]  # image and question features, (B, D)
    demos: tuple[Tensor, Tensor, Tensor]  # image, question and answer features, (B, K, D)

    def positions(self, lists_BG: Sequence[Sequence[Sequence[str]]], picks: int) -> Tensor:
        """Return the positions (B, G, picks) of lists of demo ids; K, for STOP, behind the end of a shorter one.

        Raises `LeverlabError` for a demo that is no candidate.
        """
        rows = []
        for query_id, candidates, lists in zip(self.query_ids, self.candidate_ids, lists_BG, strict=True):
            place = {demo: index for index, demo in enumerate(candidates)}
            unknown = [demo for demos in lists for demo in demos if demo not in place]
            if unknown:
                raise LeverlabError(
                    f"the demo '{unknown[0]}' stands in a list of query '{query_id}' but not among its candidates; "
                    "the lists were made for other candidates: run dvc repro"
                )
            stop = len(candidates)
            rows.append([[*(place[demo] for demo in demos), *[stop] * (picks - len(demos))] for demos in lists])
        return torch.tensor(rows, dtype=torch.long)

    def ids(self, picks_BGT: Tensor) -> list[list[tuple[str, ...]]]:
        """Return the demo ids of positions (B, G, T), up to STOP."""
        return [
            [tuple(candidates[pick] for pick in picks if pick < len(candidates)) for picks in lists]
            for candidates, lists in zip(self.candidate_ids, picks_BGT.tolist(), strict=True)
        ]

    def relevance(self, picks_BGT: Tensor) -> NDArray[np.float64]:
        """Return how similar the demos of every prefix of the lists are to the query, (B, G, T), in [0, 1].

        The mean over the demos of the mean cosine of image and question features, and 0 where that is negative. Behind
        the end of a list it stays what it was.
        """
        similar = [
            functional.cosine_similarity(query[:, None].double(), demos.double(), dim=-1)
            for query, demos in zip(self.query, self.demos[:2], strict=True)
        ]
        similar_BK = functional.pad((similar[0] + similar[1]) / 2, (0, 1))  # STOP adds nothing
        picked_BGT = similar_BK[:, None].expand(-1, picks_BGT.shape[1], -1).gather(2, picks_BGT)
        counts_BGT = (picks_BGT < similar_BK.shape[1] - 1).cumsum(-1)
        relevance: NDArray[np.float64] = (picked_BGT.cumsum(-1) / counts_BGT).clamp(0, 1).numpy()
        return relevance


class QueryData:
    """The features of all examples and the candidates of all queries."""

    def __init__(self, features: FeatureTable, candidates: Candidates):
        self._features = features
        self._candidates = candidates
        self._image, self._question, self._answer = (
            torch.from_numpy(np.ascontiguousarray(getattr(features, f"{name}_ND"))) for name in FEATURES
        )

    @property
    def widths(self) -> tuple[int, int, int]:
        """Return the widths of image, question and answer features."""
        return self._image.shape[1], self._question.shape[1], self._answer.shape[1]

    def sets(self, query_id: str) -> int:
        """Return how many candidate sets a query has."""
        return self._candidates.sets(query_id)

    def batch(self, query_ids: Sequence[str], set_index: int = 0) -> QueryBatch:
        """Return the batch of `query_ids` with their candidates of set `set_index`."""
        candidate_ids = tuple(self._candidates.of(query_id, set_index) for query_id in query_ids)
        rows_B = self._rows(query_ids)
        rows_BK = self._rows([demo for candidates in candidate_ids for demo in candidates]).view(len(query_ids), -1)
        demos = (self._image[rows_BK], self._question[rows_BK], self._answer[rows_BK])
        return QueryBatch(tuple(query_ids), candidate_ids, (self._image[rows_B], self._question[rows_B]), demos)

    def standardise(self, selector: Selector, demo_ids: Sequence[str], query_ids: Sequence[str]) -> None:
        """Give `selector` the feature statistics of the pool and the train questions; answers are the pool's alone."""
        both = self._rows([*demo_ids, *query_ids])
        selector.set_statistics("image", self._image[both])
        selector.set_statistics("question", self._question[both])
        selector.set_statistics("answer", self._answer[self._rows(demo_ids)])

    def vectors(self, name: str, ids: Sequence[str]) -> NDArray[np.float32]:
        """Return the feature `name` ('image', 'question', 'answer') of `ids`, (N, D)."""
        vectors: NDArray[np.float32] = getattr(self._features, f"{name}_ND")[self._features.rows(ids)]
        return vectors

    def _rows(self, ids: Sequence[str]) -> Tensor:
        return torch.from_numpy(self._features.rows(ids))
