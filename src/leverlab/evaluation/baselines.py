"""Retrieval baselines: the order in which they would take a query's candidates.

Every function returns `order_NK`: for each of N queries the positions 0..K-1 of its candidates, best first. Ties keep
the order of the candidate list. `select` turns an order into the demos of a prompt.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from leverlab.errors import LeverlabError
from leverlab.selector.batches import QueryBatch

Array = NDArray[np.float64]
Order = NDArray[np.int64]


def image_similarity(query_ND: ArrayLike, candidates_NKD: ArrayLike) -> Order:
    """Return `order_NK` by cosine similarity of image vectors.

    Raises `LeverlabError` for shapes that do not fit, NaN, or a vector of zeros (its cosine is undefined).
    """
    return _best_first(_cosine(query_ND, candidates_NKD))


def text_similarity(query_ND: ArrayLike, candidates_NKD: ArrayLike) -> Order:
    """Return `order_NK` by cosine similarity of question vectors. Raises as `image_similarity`."""
    return _best_first(_cosine(query_ND, candidates_NKD))


def mixed(
    query_image_ND: ArrayLike, candidates_image_NKD: ArrayLike, query_text_ND: ArrayLike, candidates_text_NKD: ArrayLike
) -> Order:
    """Return `order_NK` by the mean of the image cosine and the question cosine; the two may differ in D.

    Raises as `image_similarity`, and when images and questions do not have the same N and K.
    """
    image_NK = _cosine(query_image_ND, candidates_image_NKD)
    text_NK = _cosine(query_text_ND, candidates_text_NKD)
    if image_NK.shape != text_NK.shape:
        raise LeverlabError(f"image vectors are of {image_NK.shape} (N, K) and question vectors of {text_NK.shape}")
    return _best_first((image_NK + text_NK) / 2)


def type_nearest(
    query_types_N: ArrayLike, candidate_types_NK: ArrayLike, query_ND: ArrayLike, candidates_NKD: ArrayLike
) -> Order:
    """Return `order_NK`: candidates of the query's question type first, then the rest, by image cosine inside each.

    Raises as `image_similarity`, and when there is not one type for every query and candidate.
    """
    similarity_NK = _cosine(query_ND, candidates_NKD)
    query_types, candidate_types = np.asarray(query_types_N), np.asarray(candidate_types_NK)
    if candidate_types.shape != similarity_NK.shape or query_types.shape != similarity_NK.shape[:1]:
        raise LeverlabError(
            f"question types are of {query_types.shape} and {candidate_types.shape}, the vectors of "
            f"{similarity_NK.shape} (N, K); give one type for every query and every candidate"
        )
    other_NK = candidate_types != query_types[:, None]
    return np.lexsort((-similarity_NK, other_NK), axis=1).astype(np.int64)


def retrieval_orders(batch: QueryBatch, types: Mapping[str, str]) -> dict[str, Order]:
    """Return the order of every retrieval baseline; `types` gives the question type of each query and demo."""
    (query_image, query_text), (image, text, _) = (
        [part.numpy() for part in parts] for parts in (batch.query, batch.demos)
    )
    query_types = [types[query] for query in batch.query_ids]
    candidate_types = [[types[demo] for demo in candidates] for candidates in batch.candidate_ids]
    return {
        "image_sim": image_similarity(query_image, image),
        "text_sim": text_similarity(query_text, text),
        "mix": mixed(query_image, image, query_text, text),
        "type_sim": type_nearest(query_types, candidate_types, query_image, image),
    }


def random_order(n: int, k: int, seed: int) -> Order:
    """Return `order_NK`, an independent uniform shuffle of the candidates for each of `n` queries, fixed by `seed`."""
    return np.random.default_rng(seed).permuted(np.tile(np.arange(k, dtype=np.int64), (n, 1)), axis=1)


def select(order_NK: Order, shots: int) -> Order:
    """Return the `shots` best positions of every query in prompt order: the best stands last, closest to the question.

    Shape (N, shots). Raises `LeverlabError` unless 1 <= shots <= K.
    """
    if not 1 <= shots <= order_NK.shape[1]:
        raise LeverlabError(f"cannot take {shots} demos out of {order_NK.shape[1]} candidates; shots must be 1 to K")
    return order_NK[:, :shots][:, ::-1]


def _best_first(similarity_NK: Array) -> Order:
    return np.argsort(-similarity_NK, axis=1, kind="stable").astype(np.int64)


def _cosine(query_ND: ArrayLike, candidates_NKD: ArrayLike) -> Array:
    query, candidates = np.asarray(query_ND, dtype=np.float64), np.asarray(candidates_NKD, dtype=np.float64)
    if query.ndim != 2 or candidates.ndim != 3 or candidates.shape[::2] != query.shape:
        raise LeverlabError(
            f"vectors must be (N, D) for queries and (N, K, D) for candidates, got {query.shape} and {candidates.shape}"
        )
    norm_N, norm_NK = np.linalg.norm(query, axis=-1), np.linalg.norm(candidates, axis=-1)
    for name, norms in (("query", norm_N), ("candidate", norm_NK)):
        bad = np.argwhere(~(np.isfinite(norms) & (norms > 0)))
        if len(bad):
            raise LeverlabError(
                f"the {name} vector at {tuple(bad[0].tolist())} is zero, NaN or infinite, and so are "
                f"{len(bad) - 1} more; cosine similarity needs finite, non-zero vectors"
            )
    cosine_NK = np.einsum("nd,nkd->nk", query, candidates) / (norm_N[:, None] * norm_NK)
    # Equal vectors must tie whatever the rounding of their sums.
    rounded_NK: Array = np.round(cosine_NK, 12)
    return rounded_NK
