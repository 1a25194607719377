"""A policy that may end its list: STOP is one candidate more, behind the last one."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from leverlab.export.selector import inference_tensors
from leverlab.rl.kl import categorical_entropy, categorical_kl
from leverlab.selector.architecture import Architecture
from leverlab.selector.batches import QueryBatch
from leverlab.selector.checkpoints import load_selector, save_selector
from leverlab.selector.decoding import greedy, sample
from leverlab.selector.inference import InferenceSelector, save_inference
from tests.selector.reference import PLAIN, STOPPING, SlowSelector
from tests.selector.test_network import CANDIDATES, QUERIES, WIDTHS, Selector, build, draw

STOP = CANDIDATES
each_stopping = pytest.mark.parametrize("architecture", STOPPING, ids=str)


@each_stopping
def test_logits_equal_a_slow_loop(architecture: Architecture) -> None:
    selector, (query, demos) = build(architecture), draw()
    picks = [[4, 0, STOP], [1, STOP, STOP], [2, 1, 4]]
    logits_BGTK = selector.list_logits(selector.encode(query, demos), torch.tensor(picks)[:, None])
    slow = SlowSelector(selector)
    for b in range(QUERIES):
        candidates = [[part[b, k].numpy() for part in demos] for k in range(CANDIDATES)]
        expected = slow.logits([part[b].numpy() for part in query], candidates, picks[b])
        np.testing.assert_allclose(logits_BGTK[b, 0].detach().numpy(), expected, rtol=1e-9)


def lists_with_an_end(length: int) -> list[list[int]]:
    """Every list of 1 to `length` distinct demos, filled up with STOP."""
    whole = (itertools.permutations(range(CANDIDATES), size) for size in range(1, length + 1))
    return [[*demos, *[STOP] * (length - len(demos))] for lists in whole for demos in lists]


@each_stopping
def test_probabilities_of_all_lists_sum_to_one(architecture: Architecture) -> None:
    selector, (query, demos) = build(architecture), draw()
    picks_BGT = torch.tensor(lists_with_an_end(3)).expand(QUERIES, -1, -1)
    probability_BG = selector.list_logp(selector.encode(query, demos), picks_BGT).sum(-1).exp()
    torch.testing.assert_close(probability_BG.sum(1), torch.ones(QUERIES, dtype=torch.float64))
    unlike = torch.tensor([[[STOP, 0, 1], [0, STOP, 1], [0, 0, 1]]]).expand(QUERIES, -1, -1)
    impossible = selector.list_logp(selector.encode(query, demos), unlike)
    assert (impossible.min(-1).values == -torch.inf).all()


def test_after_its_end_a_list_has_neither_entropy_nor_divergence_nor_gradient() -> None:
    selector, (query, demos) = build(STOPPING[0]), draw()
    other = build(replace(STOPPING[0], state="gated"))
    picks = torch.tensor([[[0, STOP, STOP]]]).expand(QUERIES, 1, 3)
    logits, theirs = (policy.list_logits(policy.encode(query, demos), picks) for policy in (selector, other))
    assert (categorical_entropy(logits)[..., 2] == 0).all()
    assert (categorical_kl(logits, theirs)[..., 2] == 0).all()
    assert (categorical_kl(logits, theirs)[..., 1] > 1e-4).all()
    selector.list_logp(selector.encode(query, demos), picks)[..., 2].sum().backward()
    assert all(weight.grad is None or not weight.grad.any() for weight in selector.parameters())
    selector.list_logp(selector.encode(query, demos), picks)[..., 1].sum().backward()
    assert selector.stop is not None
    assert selector.stop.grad is not None
    assert selector.stop.grad.any()


def test_sampled_lists_end_as_often_as_the_policy_says() -> None:
    """4,000 lists of 2 for each query; five standard errors of a share are at most .04."""
    selector, (query, demos) = build(STOPPING[0]), draw()
    encoded = selector.encode(query, demos)
    picks_BGT = sample(selector, encoded, 4000, 2, torch.Generator().manual_seed(0))
    ended = torch.tensor([[[k, STOP] for k in range(CANDIDATES)]]).expand(QUERIES, -1, -1)
    expected = selector.list_logp(encoded, ended).sum(-1).exp().sum(1)
    assert (expected > 0.02).any()
    torch.testing.assert_close((picks_BGT[..., 1] == STOP).double().mean(1), expected, rtol=0, atol=0.04)
    assert (picks_BGT[..., 0] != STOP).all()


def leaning(selector: Selector, towards: float) -> Selector:
    """Make STOP's vector longer or turn it around, so that it is picked sooner, later or never."""
    assert selector.stop is not None
    with torch.no_grad():
        selector.stop.mul_(towards)
    return selector


@each_stopping
@pytest.mark.parametrize("towards", [1.0, 10.0, -10.0])
def test_numpy_picks_what_the_network_picks(architecture: Architecture, towards: float, tmp_path: Path) -> None:
    selector, (query, demos) = leaning(build(architecture), towards), draw()
    save_inference(tmp_path, inference_tensors(selector), {"widths": WIDTHS, **vars(architecture)})
    converted = InferenceSelector.load(tmp_path)
    theirs = greedy(selector, selector.encode(query, demos), 4).numpy()
    ours = converted.pick([part.numpy() for part in query], [part.numpy() for part in demos], 4)
    assert ours.tolist() == theirs.tolist()


def test_greedy_lists_end_and_go_on() -> None:
    """Over several STOP vectors some lists end early and some do not; nothing follows an end."""
    lengths = set()
    for towards in (-30, -10, 1, 10, 30):
        selector, (query, demos) = leaning(build(STOPPING[0]), towards), draw()
        for picks in greedy(selector, selector.encode(query, demos), CANDIDATES).tolist():
            length = picks.index(STOP) if STOP in picks else CANDIDATES
            assert picks[length:] == [STOP] * (CANDIDATES - length)
            assert len(set(picks[:length])) == length > 0
            lengths.add(length)
    assert len(lengths) > 1


@each_stopping
def test_a_checkpoint_comes_back(architecture: Architecture, tmp_path: Path) -> None:
    selector = build(architecture).float()
    save_selector(tmp_path / "it.safetensors", selector)
    loaded = load_selector(tmp_path / "it.safetensors")
    assert loaded.architecture == architecture
    assert loaded.stop is not None
    assert torch.equal(loaded.stop, selector.stop)


def test_without_stop_the_initial_weights_are_as_ever() -> None:
    with_stop, without = build(STOPPING[0]).state_dict(), build(PLAIN).state_dict()
    assert with_stop.keys() - without.keys() == {"stop"}
    assert all(torch.equal(with_stop[name], tensor) for name, tensor in without.items() if "_" not in name)
    assert math.isclose(float(with_stop["stop"].std()), 1, abs_tol=0.5)


def test_lists_that_end_as_positions_and_back(stop_batch: QueryBatch) -> None:
    lists = [[("a", "b", "c"), ("c",)], [("b",), ("c", "a")]]
    positions_BGT = stop_batch.positions(lists, 3)
    assert positions_BGT.tolist() == [[[0, 1, 2], [2, 3, 3]], [[1, 3, 3], [2, 0, 3]]]
    assert stop_batch.ids(positions_BGT) == lists


def test_relevance_stays_what_it_is_at_the_end_of_a_list(stop_batch: QueryBatch) -> None:
    whole = stop_batch.relevance(torch.tensor([[[0, 1, 2]], [[0, 1, 2]]]))
    ended = stop_batch.relevance(torch.tensor([[[0, 3, 3]], [[0, 1, 3]]]))
    np.testing.assert_allclose(ended[0, 0], whole[0, 0, [0, 0, 0]])
    np.testing.assert_allclose(ended[1, 0], whole[1, 0, [0, 1, 1]])
    assert len(set(whole[0, 0].round(6))) == 3


@pytest.fixture
def stop_batch() -> QueryBatch:
    rng = np.random.default_rng(0)

    def positive(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.random(shape))

    return QueryBatch(
        ("q", "r"),
        (("a", "b", "c"),) * 2,
        (positive(2, 4), positive(2, 3)),
        (positive(2, 3, 4), positive(2, 3, 3), positive(2, 3, 5)),
    )
