"""Imitation against a loop over single picks, its weights, its order, and that it learns."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from leverlab.errors import LeverlabError
from leverlab.rl.losses import rce_weights
from leverlab.selector.batches import QueryData
from leverlab.selector.network import Selector
from leverlab.training.imitation import imitation_losses, uniform_weights, updates_per_epoch

SHOTS = 3
Lists = dict[str, list[tuple[str, ...]]]


def lists_of(data: QueryData, questions: int, lists: int) -> Lists:
    """For query j the lists that start at candidate j, j + 1, … and go round."""
    found: Lists = {}
    for j in range(questions):
        candidates = data.batch([f"q{j}"]).candidate_ids[0]
        found[f"q{j}"] = [
            tuple(candidates[(j + g + t * (g + 1)) % len(candidates)] for t in range(SHOTS)) for g in range(lists)
        ]
    return found


@torch.no_grad()
def slow_logp(selector: Selector, data: QueryData, query: str, demos: Sequence[str]) -> float:
    """Log-probability of a list, one pick at a time, with one query in the batch."""
    batch = data.batch([query])
    encoded = selector.encode(batch.query, batch.demos)
    state, left, total = encoded.state_BW[:, None], list(batch.candidate_ids[0]), 0.0
    for demo in demos:
        logits = selector.logits(encoded, state, torch.zeros(1, 1, 0, dtype=torch.long))[0, 0]
        scores = {name: float(logits[batch.candidate_ids[0].index(name)].exp()) for name in left}
        total += float(torch.tensor(scores[demo] / sum(scores.values())).log())
        state = selector.advance(encoded, state, torch.tensor([[batch.candidate_ids[0].index(demo)]]))
        left.remove(demo)
    return total


def all_losses(
    selector: Selector, data: QueryData, lists: Lists, weights: Any, batch: int, epoch: int = 1, seed: int = 0
) -> list[Any]:
    closures = list(imitation_losses(selector, data, lists, weights, 2, batch, seed)(epoch, []))
    return [closure()[0] for closure in closures]


def test_sft_equals_a_slow_loop(toy: Any) -> None:
    """Two lists a query in one batch of three queries: minus the mean log-probability of six lists."""
    data, selector = toy.data(3), toy.selector(sharpness=4)
    lists = lists_of(data, 3, 2)
    expected = -sum(slow_logp(selector, data, query, demos) for query in lists for demos in lists[query]) / 6
    (loss,) = all_losses(selector, data, lists, uniform_weights(2), batch=3)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)


def test_a_list_that_ends_teaches_its_end(toy: Any) -> None:
    """One list of one demo where two could be picked: the demo, then STOP."""
    data, selector = toy.data(1), toy.selector(sharpness=4, stop=True)
    batch = data.batch(["q0"])
    logits = selector.list_logits(selector.encode(batch.query, batch.demos), torch.tensor([[[2, 5]]]))[0, 0]
    expected = -(logits[0].log_softmax(-1)[2] + logits[1].log_softmax(-1)[5]).detach()
    lists = {"q0": [(batch.candidate_ids[0][2],)]}
    (loss,) = all_losses(selector, data, lists, uniform_weights(1), batch=1)
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-5)


def test_weights_go_to_their_own_query_and_list(toy: Any) -> None:
    """The weight of list g of query j is (1 + j) / 10 for g = 0 and the rest of 1 for g = 1."""
    data, selector = toy.data(3), toy.selector(sharpness=4)
    lists = lists_of(data, 3, 2)
    first = {f"q{j}": (1 + j) / 10 for j in range(3)}

    orders = set()

    def weights(query_ids: Sequence[str], epoch: int) -> Tensor:
        orders.add((epoch, *query_ids))
        return torch.tensor([[first[query], 1 - first[query]] for query in query_ids], dtype=torch.float64)

    expected = 0.0
    for query, (one, two) in lists.items():
        expected -= first[query] * slow_logp(selector, data, query, one) / 3
        expected -= (1 - first[query]) * slow_logp(selector, data, query, two) / 3
    for epoch in range(1, 6):
        (loss,) = all_losses(selector, data, lists, weights, batch=3, epoch=epoch)
        assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    assert {order[0] for order in orders} == {1, 2, 3, 4, 5}
    assert len({order[1:] for order in orders}) > 1


def test_rce_with_a_high_temperature_is_uniform_and_with_a_low_one_keeps_the_best(toy: Any) -> None:
    data, selector = toy.data(3), toy.selector(sharpness=4)
    lists, rewards = lists_of(data, 3, 2), torch.tensor([[0.2, 0.9]], dtype=torch.float64)

    def rce(tau: float) -> Any:
        return lambda query_ids, epoch: rce_weights(rewards.expand(len(query_ids), -1), tau)

    (hot,) = all_losses(selector, data, lists, rce(1e9), batch=3)
    (cold,) = all_losses(selector, data, lists, rce(1e-3), batch=3)
    (uniform,) = all_losses(selector, data, lists, uniform_weights(2), batch=3)
    best = -sum(slow_logp(selector, data, query, lists[query][1]) for query in lists) / 3
    assert float(hot.detach()) == pytest.approx(float(uniform.detach()), rel=1e-6)
    assert float(cold.detach()) == pytest.approx(best, rel=1e-5)
    assert float(hot.detach()) != pytest.approx(best, rel=1e-2)


def test_uniform_weights_sum_to_one() -> None:
    assert uniform_weights(4)(["a", "b"], 1).tolist() == [[0.25] * 4] * 2


def test_every_query_is_seen_once_an_epoch_in_an_order_of_the_epoch(toy: Any) -> None:
    """5 queries in batches of 2: three updates, the last of one query."""
    data, selector = toy.data(5), toy.selector()
    lists, seen = lists_of(data, 5, 1), list[tuple[str, ...]]()

    def weights(query_ids: Sequence[str], epoch: int) -> Tensor:
        seen.append(tuple(query_ids))
        return torch.ones(len(query_ids), 1)

    orders = []
    for epoch in (1, 2, 1):
        seen.clear()
        all_losses(selector, data, lists, weights, batch=2, epoch=epoch)
        assert [len(part) for part in seen] == [2, 2, 1]
        orders.append([query for part in seen for query in part])
    assert [sorted(order) for order in orders] == [[f"q{j}" for j in range(5)]] * 3
    assert orders[0] == orders[2] != orders[1]


def test_the_order_of_the_file_does_not_matter_and_the_seed_does(toy: Any) -> None:
    data, selector = toy.data(5), toy.selector()
    lists = lists_of(data, 5, 1)
    backward = dict(reversed(lists.items()))
    for epoch in (1, 2, 3):
        first, second = (all_losses(selector, data, given, uniform_weights(1), 2, epoch) for given in (lists, backward))
        assert first == second
        assert all_losses(selector, data, lists, uniform_weights(1), 2, epoch, seed=8) != first


def test_dropout_is_on(toy: Any) -> None:
    data, selector = toy.data(2), toy.selector(dropout=0.5).eval()
    lists = lists_of(data, 2, 1)
    first, second = (float(all_losses(selector, data, lists, uniform_weights(1), 2)[0].detach()) for _ in range(2))
    assert selector.training
    assert first != second


def test_updates_of_an_epoch() -> None:
    assert [updates_per_epoch(queries, 4) for queries in (1, 4, 5, 8)] == [1, 1, 2, 2]


@pytest.mark.parametrize("lists", [{"q0": [("d0",)], "q1": [("d0",), ("d1",)]}, {}])
def test_unequal_or_no_lists_are_refused(toy: Any, lists: Lists) -> None:
    with pytest.raises(LeverlabError, match="different numbers of lists"):
        imitation_losses(toy.selector(), toy.data(2), lists, uniform_weights(1), 2, 2, 0)


def test_a_list_of_demos_that_are_no_candidates_is_refused(toy: Any) -> None:
    data = toy.data(1)
    stranger = next(demo for demo in toy.pool if demo not in data.batch(["q0"]).candidate_ids[0])
    with pytest.raises(LeverlabError, match=f"'{stranger}' stands in a list of query 'q0'"):
        all_losses(toy.selector(), data, {"q0": [(stranger,)]}, uniform_weights(1), 1)


def test_one_list_is_learned_by_heart(toy: Any) -> None:
    data, selector = toy.data(1), toy.selector()
    lists = lists_of(data, 1, 1)
    optimizer = torch.optim.AdamW(selector.parameters(), 0.01)
    before = slow_logp(selector, data, "q0", lists["q0"][0])
    for epoch in range(1, 61):
        (loss,) = all_losses(selector, data, lists, uniform_weights(1), 1, epoch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert before < -3
    assert slow_logp(selector.eval(), data, "q0", lists["q0"][0]) > -0.01
