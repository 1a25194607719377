"""Imitation of scored lists: SFT on the best beams, and RCE on whole groups weighted by reward."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from leverlab.errors import LeverlabError
from leverlab.rl.losses import sequence_cross_entropy
from leverlab.rl.sampling import batches, epoch_order
from leverlab.selector.batches import QueryData
from leverlab.selector.network import Selector
from leverlab.training.loop import Loss, Row

Lists = Sequence[tuple[str, ...]]


def updates_per_epoch(queries: int, batch: int) -> int:
    """Return how many batches an epoch has; the last one may be short."""
    return -(-queries // batch)


def imitation_losses(
    selector: Selector,
    data: QueryData,
    lists: Mapping[str, Lists],
    weights: Callable[[Sequence[str], int], Tensor],
    picks: int,
    batch: int,
    seed: int,
) -> Callable[[int, Sequence[Row]], Iterator[Callable[[], Loss]]]:
    """Return the losses of an epoch: cross-entropy of every query's `lists`, weighted.

    `weights(query_ids, epoch)` gives the weights (B, G) of the lists of a batch's queries; they sum to 1 for each
    query. Lists have `picks` demos, or end with STOP before. The selector is in training mode (dropout on). Raises
    `LeverlabError` when queries have different numbers of lists.
    """
    queries = sorted(lists)
    if len({len(lists[query]) for query in queries}) != 1:
        raise LeverlabError("queries have different numbers of lists to imitate; run dvc repro rl-data")

    def epoch_losses(epoch: int, _: Sequence[Row]) -> Iterator[Callable[[], Loss]]:
        for positions in batches(epoch_order(len(queries), seed, epoch), batch):
            query_ids = [queries[position] for position in positions]
            yield lambda query_ids=query_ids: batch_loss(query_ids, epoch)  # type: ignore[misc]

    def batch_loss(query_ids: Sequence[str], epoch: int) -> Loss:
        selector.train()
        inputs = data.batch(query_ids)
        picks_BGT = inputs.positions([lists[query] for query in query_ids], picks)
        logp_BG = selector.list_logp(selector.encode(inputs.query, inputs.demos), picks_BGT).sum(-1)
        return sequence_cross_entropy(logp_BG, weights(query_ids, epoch).to(logp_BG.dtype))

    return epoch_losses


def uniform_weights(lists: int) -> Callable[[Sequence[str], int], Tensor]:
    """Return equal weights for each of `lists` lists of a query."""
    return lambda query_ids, epoch: torch.full((len(query_ids), lists), 1 / lists)
