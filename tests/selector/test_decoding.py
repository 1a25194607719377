"""Greedy and sampled lists against loops and against the probabilities that the selector states."""

import itertools

import pytest
import torch
from scipy.stats import chisquare

from leverlab.errors import LeverlabError
from leverlab.selector.architecture import Architecture
from leverlab.selector.decoding import greedy, sample
from leverlab.selector.network import Encoded, Selector
from tests.selector.reference import VARIANTS

QUERIES, CANDIDATES = 3, 5
SHARPER = {"dot": ("read.weight", 4), "bilinear": ("key.weight", 2), "additive": ("score.energy.weight", 12)}


@pytest.fixture(name="policy", params=VARIANTS, ids=str)
def build(request: pytest.FixtureRequest) -> tuple[Selector, Encoded]:
    """A selector of each variant whose choices are clear but not certain, and three queries."""
    architecture: Architecture = request.param
    torch.manual_seed(0)
    selector = Selector((4, 3, 2), architecture, 0.0).eval()
    with torch.no_grad():
        name, factor = SHARPER[architecture.head]
        selector.get_parameter(name).mul_(factor)
    query = (torch.randn(QUERIES, 4), torch.randn(QUERIES, 3))
    demos = tuple(torch.randn(QUERIES, CANDIDATES, width) for width in (4, 3, 2))
    with torch.no_grad():
        return selector, selector.encode(query, demos)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_greedy_takes_the_most_probable_next_pick(policy: tuple[Selector, Encoded]) -> None:
    """The reference tries every continuation of the list so far by teacher forcing."""
    selector, encoded = policy
    picks_BT = greedy(selector, encoded, 4)
    assert picks_BT.shape == (QUERIES, 4)
    for b in range(QUERIES):
        chosen: list[int] = []
        for _ in range(4):
            continuations = [[*chosen, k] for k in range(CANDIDATES) if k not in chosen]
            logp = selector.list_logp(encoded, torch.tensor(continuations).expand(QUERIES, -1, -1))[b, :, -1]
            chosen = continuations[int(logp.argmax())]
        assert picks_BT[b].tolist() == chosen


def test_lists_hold_distinct_demos(policy: tuple[Selector, Encoded]) -> None:
    selector, encoded = policy
    picks_BGT = sample(selector, encoded, 50, CANDIDATES, generator(0))
    assert picks_BGT.shape == (QUERIES, 50, CANDIDATES)
    assert (picks_BGT.sort(-1).values == torch.arange(CANDIDATES)).all()
    assert (greedy(selector, encoded, CANDIDATES).sort(-1).values == torch.arange(CANDIDATES)).all()


def test_sampled_lists_are_as_frequent_as_their_probability_says(policy: tuple[Selector, Encoded]) -> None:
    """Chi-square over the 20 lists of two, 4,000 draws a query, fixed seed; p = .01 over 54 tests, one a variant and
    query."""
    selector, encoded = policy
    lists = list(itertools.permutations(range(CANDIDATES), 2))
    probability_BG = selector.list_logp(encoded, torch.tensor(lists).expand(QUERIES, -1, -1)).sum(-1).exp()
    drawn = sample(selector, encoded, 4000, 2, generator(1)).tolist()
    for b in range(QUERIES):
        counts = [sum(tuple(found) == wanted for found in drawn[b]) for wanted in lists]
        expected = probability_BG[b].double().detach()
        assert expected.max() > 0.1
        assert chisquare(counts, (expected / expected.sum() * 4000).numpy()).pvalue > 0.01 / 54


def test_a_sample_is_reproduced_by_the_generator_alone(policy: tuple[Selector, Encoded]) -> None:
    selector, encoded = policy
    torch.manual_seed(5)
    first = sample(selector, encoded, 8, 3, generator(3))
    torch.manual_seed(6)
    assert torch.equal(sample(selector, encoded, 8, 3, generator(3)), first)
    assert not torch.equal(sample(selector, encoded, 8, 3, generator(4)), first)


def test_lists_of_one_query_differ(policy: tuple[Selector, Encoded]) -> None:
    selector, encoded = policy
    picks_BGT = sample(selector, encoded, 30, 3, generator(0))
    assert all(len({tuple(picks) for picks in lists}) > 5 for lists in picks_BGT.tolist())


def test_more_picks_than_candidates_are_refused(policy: tuple[Selector, Encoded]) -> None:
    selector, encoded = policy
    with pytest.raises(LeverlabError, match="candidates"):
        greedy(selector, encoded, CANDIDATES + 1)
    with pytest.raises(LeverlabError, match="candidates"):
        sample(selector, encoded, 2, CANDIDATES + 1, generator(0))
