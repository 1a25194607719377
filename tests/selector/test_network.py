"""The selector against a slow loop in numpy, and what a pointer network must keep to: order, masks, permutations."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from leverlab.selector.network import FEATURES, Encoded, Selector

WIDTHS = (5, 4, 3)
QUERIES, CANDIDATES = 3, 5
Inputs = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def build(seed: int = 0, dropout: float = 0.0) -> Selector:
    """A random selector in float64 and evaluation mode, with statistics that are not the neutral ones."""
    torch.manual_seed(seed)
    selector = Selector(WIDTHS, 16, dropout).double().eval()
    for name, width in zip(FEATURES, WIDTHS, strict=True):
        selector.set_statistics(name, 2 * torch.randn(20, width, dtype=torch.float64) + 1)
    return selector


def draw(seed: int = 1) -> Inputs:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return 3 * torch.randn(*shape, generator=generator, dtype=torch.float64)

    query = (normal(QUERIES, WIDTHS[0]), normal(QUERIES, WIDTHS[1]))
    image, question, answer = (normal(QUERIES, CANDIDATES, width) for width in WIDTHS)
    return query, (image, question, answer)


def all_lists(length: int) -> Tensor:
    """Every ordered list of distinct candidates, for every query: (B, G, T)."""
    lists = torch.tensor(list(itertools.permutations(range(CANDIDATES), length)))
    return lists.expand(QUERIES, -1, -1)


class SlowSelector:
    """The equations of the module's docstring for one query, a candidate and a number at a time."""

    def __init__(self, selector: Selector):
        self.t = {name: tensor.detach().numpy() for name, tensor in selector.state_dict().items()}
        self.width = selector.width

    def linear(self, name: str, values: np.ndarray, weight: str = "weight", bias: str = "bias") -> np.ndarray:
        rows = zip(self.t[f"{name}.{weight}"], self.t[f"{name}.{bias}"], strict=True)
        return np.array([math.fsum(row * values) + offset for row, offset in rows])

    def project(self, name: str, values: np.ndarray) -> np.ndarray:
        return self.linear(name, (values - self.t[f"{name}_mean"]) / self.t[f"{name}_scale"])

    def norm(self, name: str, values: np.ndarray) -> np.ndarray:
        mean = sum(values) / len(values)
        variance = sum((values - mean) ** 2) / len(values)
        return (values - mean) / math.sqrt(variance + 1e-5) * self.t[f"{name}.weight"] + self.t[f"{name}.bias"]

    def mix(self, name: str, values: np.ndarray) -> np.ndarray:
        up = self.linear(f"{name}.1", self.norm(f"{name}.0", values))
        return self.linear(f"{name}.3", np.array([x * (1 + math.erf(x / math.sqrt(2))) / 2 for x in up]))

    def gru(self, inputs: np.ndarray, state: np.ndarray) -> np.ndarray:
        from_input = self.linear("update", inputs, "weight_ih", "bias_ih")
        from_state = self.linear("update", state, "weight_hh", "bias_hh")
        result = []
        for w in range(self.width):
            reset, update = (
                1 / (1 + math.exp(-from_input[w + shift] - from_state[w + shift])) for shift in (0, self.width)
            )
            new = math.tanh(from_input[w + 2 * self.width] + reset * from_state[w + 2 * self.width])
            result.append((1 - update) * new + update * state[w])
        return np.array(result)

    def logits(self, query: list[np.ndarray], demos: list[list[np.ndarray]], picks: list[int]) -> list[list[float]]:
        """Logits of every candidate before each pick; `demos[k]` holds image, question and answer of candidate k."""
        v, q = self.project("image", query[0]), self.project("question", query[1])
        gate = np.array([2 / (1 + math.exp(-x)) for x in self.linear("gate", q)])
        state = v * gate + q + self.mix("mix_query", np.concatenate([v, q]))
        parts = [[self.project(name, part) for name, part in zip(FEATURES, demo, strict=True)] for demo in demos]
        z = [sum(part) + self.mix("mix_demo", np.concatenate(part)) for part in parts]
        keys = [self.linear("key", vector) for vector in z]
        steps = []
        for t, pick in enumerate(picks):
            read = self.linear("read", self.norm("norm", state))
            scores = [math.fsum(read * key) / math.sqrt(self.width) for key in keys]
            steps.append([-math.inf if k in picks[:t] else score for k, score in enumerate(scores)])
            state = self.gru(z[pick], state)
        return steps


def test_logits_equal_a_slow_loop() -> None:
    selector, (query, demos) = build(), draw()
    picks = [[4, 0, 2], [1, 3, 0], [2, 1, 4]]
    logits_BGTK = selector.list_logits(selector.encode(query, demos), torch.tensor(picks)[:, None])
    slow = SlowSelector(selector)
    for b in range(QUERIES):
        candidates = [[part[b, k].numpy() for part in demos] for k in range(CANDIDATES)]
        expected = slow.logits([part[b].numpy() for part in query], candidates, picks[b])
        np.testing.assert_allclose(logits_BGTK[b, 0].detach().numpy(), expected, rtol=1e-9)


def third_logits(selector: Selector, encoded: Encoded, picks: list[int]) -> Tensor:
    """Logits of the third pick after the first two of `picks`, the same for every query."""
    return selector.list_logits(encoded, torch.tensor(picks).expand(QUERIES, 1, -1))[:, 0, 2]


def test_the_state_depends_on_what_was_picked_and_in_which_order() -> None:
    selector, (query, demos) = build(), draw()
    encoded = selector.encode(query, demos)
    left = [2, 3, 4]
    after = {first: third_logits(selector, encoded, [*first, 2])[:, left] for first in ((0, 1), (1, 0))}
    assert ((after[0, 1] - after[1, 0]).abs().amax(1) > 1e-3).all()
    other = third_logits(selector, encoded, [0, 3, 2])[:, [2, 4]]
    assert ((after[0, 1][:, [0, 2]] - other).abs().amax(1) > 1e-3).all()


def test_permuting_the_candidates_permutes_the_logits() -> None:
    selector, (query, demos) = build(), draw()
    shuffle = torch.tensor([3, 0, 4, 1, 2])  # place j of the shuffled candidates holds candidate shuffle[j]
    picks = torch.tensor([[[3, 1, 0]], [[0, 2, 4]], [[4, 3, 2]]])
    image, question, answer = (part[:, shuffle] for part in demos)
    plain = selector.list_logits(selector.encode(query, demos), picks)
    moved = selector.list_logits(selector.encode(query, (image, question, answer)), shuffle.argsort()[picks])
    torch.testing.assert_close(moved, plain[..., shuffle])


def test_picked_candidates_and_no_others_get_minus_infinity() -> None:
    selector, (query, demos) = build(), draw()
    picks = [2, 0, 4]
    logits_BTK = selector.list_logits(selector.encode(query, demos), torch.tensor(picks).expand(QUERIES, 1, 3))[:, 0]
    for t in range(3):
        expected = torch.tensor([k in picks[:t] for k in range(CANDIDATES)])
        assert ((logits_BTK[:, t] == -torch.inf) == expected).all()


def test_probabilities_of_all_lists_of_two_sum_to_one() -> None:
    selector, (query, demos) = build(), draw()
    logp_BGT = selector.list_logp(selector.encode(query, demos), all_lists(2))
    probability_BG = logp_BGT.sum(-1).exp()
    torch.testing.assert_close(probability_BG.sum(1), torch.ones(QUERIES, dtype=torch.float64))
    assert probability_BG.std() > 1e-3
    twice = selector.list_logp(selector.encode(query, demos), torch.tensor([[[1, 1]]]).expand(QUERIES, 1, 2))
    assert (twice[..., 1] == -torch.inf).all()


def test_teacher_forcing_equals_stepping_through() -> None:
    selector, (query, demos) = build(), draw()
    encoded = selector.encode(query, demos)
    picks_BGT = all_lists(3)[:, ::7]
    logp_BGT = selector.list_logp(encoded, picks_BGT)
    for g in range(picks_BGT.shape[1]):
        state = encoded.state_BW[:, None]
        picked = torch.zeros(QUERIES, 1, CANDIDATES, dtype=torch.bool)
        for t in range(3):
            pick = picks_BGT[:, g : g + 1, t]
            logits = selector.logits(encoded, state, picked)
            expected = logits.gather(-1, pick[..., None])[..., 0] - logits.exp().sum(-1).log()
            torch.testing.assert_close(logp_BGT[:, g, t], expected[:, 0])
            state = selector.advance(encoded, state, pick)
            picked[torch.arange(QUERIES), 0, pick[:, 0]] = True


def test_a_query_does_not_see_the_other_queries_of_its_batch() -> None:
    selector, (query, demos) = build(), draw()
    whole = selector.list_logp(selector.encode(query, demos), all_lists(2))
    for b in range(QUERIES):
        alone = selector.encode(tuple(part[b : b + 1] for part in query), tuple(part[b : b + 1] for part in demos))
        torch.testing.assert_close(selector.list_logp(alone, all_lists(2)[:1])[0], whole[b])


def test_statistics_by_hand_with_a_constant_feature() -> None:
    """Column 0 holds 1 and 5: mean 3, population deviation 2. Column 1 is 7 throughout: mean 7, left unscaled."""
    selector = Selector((2, 1, 1), 16, 0.0)
    selector.set_statistics("image", torch.tensor([[1.0, 7.0], [5.0, 7.0]]))
    assert selector.image_mean.tolist() == [3.0, 7.0]
    assert selector.image_scale.tolist() == [2.0, 1.0]
    assert selector.question_mean.tolist() == [0.0]
    assert selector.answer_scale.tolist() == [1.0]


def test_standardised_features_do_not_see_shift_and_scale() -> None:
    selector, (query, demos) = build(), draw()
    before = selector.list_logp(selector.encode(query, demos), all_lists(2))
    for name in FEATURES:
        getattr(selector, f"{name}_mean").mul_(3).add_(5)
        getattr(selector, f"{name}_scale").mul_(3)
    query = (query[0] * 3 + 5, query[1] * 3 + 5)
    demos = (demos[0] * 3 + 5, demos[1] * 3 + 5, demos[2] * 3 + 5)
    torch.testing.assert_close(selector.list_logp(selector.encode(query, demos), all_lists(2)), before)


@pytest.mark.parametrize("feature", range(3))
def test_dropout_is_on_image_features_in_training_mode_alone(feature: int) -> None:
    """With all features but one at their means, dropout has nothing else to drop."""
    selector, (query, demos) = build(dropout=0.5), draw()
    means = [getattr(selector, f"{name}_mean") for name in FEATURES]
    image, question, answer = (
        part if index == feature else means[index].expand_as(part) for index, part in enumerate(demos)
    )
    query = (means[0].expand_as(query[0]), query[1] if feature == 1 else means[1].expand_as(query[1]))
    still = selector.encode(query, (image, question, answer)).demo_BKW
    assert torch.equal(still, selector.encode(query, (image, question, answer)).demo_BKW)
    torch.manual_seed(0)
    dropped = selector.train().encode(query, (image, question, answer)).demo_BKW
    assert torch.allclose(dropped, still) == (feature != 0)


def test_every_parameter_learns_and_no_gradient_is_nan() -> None:
    """Masked candidates put -inf among the logits; a NaN from them would reach every weight."""
    selector, (query, demos) = build(), draw()
    (-selector.list_logp(selector.encode(query, demos), torch.tensor([[[0, 1, 2]]] * QUERIES)).sum()).backward()
    for name, parameter in selector.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        # a shift of all logits changes nothing, so the bias of the keys has a gradient of zero up to rounding
        assert name == "key.bias" or parameter.grad.abs().max() > 1e-9, name
