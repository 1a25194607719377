"""The selector against a slow loop in numpy, and what a pointer network must keep to: order, masks, permutations."""

import hashlib
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from leverlab.selector.architecture import Architecture
from leverlab.selector.checkpoints import save_selector
from leverlab.selector.decoding import greedy
from leverlab.selector.network import FEATURES, Encoded, Selector
from leverlab.selector.parts import GatedUpdate, RedundancyPenalty
from tests.selector.reference import PLAIN, VARIANTS, SlowSelector, each_variant

WIDTHS = (5, 4, 3)
QUERIES, CANDIDATES = 3, 5
Inputs = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def build(architecture: Architecture = PLAIN, dropout: float = 0.0) -> Selector:
    """A random selector in float64 and evaluation mode, with statistics that are not the neutral ones."""
    torch.manual_seed(0)
    selector = Selector(WIDTHS, architecture, dropout).double().eval()
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


@each_variant
def test_logits_equal_a_slow_loop(architecture: Architecture) -> None:
    selector, (query, demos) = build(architecture), draw()
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


def after(architecture: Architecture, *lists: list[int]) -> list[Tensor]:
    """Logits of candidate 4 and of every other that no list holds, minus that of 4, after each of `lists`."""
    selector, (query, demos) = build(architecture), draw()
    encoded = selector.encode(query, demos)
    left = [k for k in range(CANDIDATES) if not any(k in picks for picks in lists)]
    logits = [third_logits(selector, encoded, [*picks, 4])[:, left] for picks in lists]
    return [values - values[:, -1:] for values in logits]


@pytest.mark.parametrize("architecture", [kind for kind in VARIANTS if kind.state != "static"], ids=str)
def test_the_state_depends_on_what_was_picked_and_in_which_order(architecture: Architecture) -> None:
    first, swapped = after(architecture, [0, 1], [1, 0])
    assert ((first - swapped).abs().amax(1) > 1e-4).all()
    first, other = after(architecture, [0, 1], [0, 3])
    assert ((first - other).abs().amax(1) > 1e-4).all()


@pytest.mark.parametrize("architecture", [kind for kind in VARIANTS if kind.state == "static"], ids=str)
def test_a_static_state_sees_picks_through_exclusion_and_penalty_alone(architecture: Architecture) -> None:
    first, swapped = after(architecture, [0, 1], [1, 0])
    assert torch.equal(first, swapped)
    first, other = after(architecture, [0, 1], [0, 3])
    assert torch.equal(first, other) != architecture.mmr


@each_variant
def test_permuting_the_candidates_permutes_the_logits(architecture: Architecture) -> None:
    selector, (query, demos) = build(architecture), draw()
    shuffle = torch.tensor([3, 0, 4, 1, 2])  # place j of the shuffled candidates holds candidate shuffle[j]
    picks = torch.tensor([[[3, 1, 0]], [[0, 2, 4]], [[4, 3, 2]]])
    image, question, answer = (part[:, shuffle] for part in demos)
    plain = selector.list_logits(selector.encode(query, demos), picks)
    moved = selector.list_logits(selector.encode(query, (image, question, answer)), shuffle.argsort()[picks])
    torch.testing.assert_close(moved, plain[..., shuffle])


@each_variant
def test_picked_candidates_and_no_others_get_minus_infinity(architecture: Architecture) -> None:
    selector, (query, demos) = build(architecture), draw()
    picks = [2, 0, 4]
    logits_BTK = selector.list_logits(selector.encode(query, demos), torch.tensor(picks).expand(QUERIES, 1, 3))[:, 0]
    for t in range(3):
        expected = torch.tensor([k in picks[:t] for k in range(CANDIDATES)])
        assert ((logits_BTK[:, t] == -torch.inf) == expected).all()


@each_variant
def test_probabilities_of_all_lists_of_two_sum_to_one(architecture: Architecture) -> None:
    selector, (query, demos) = build(architecture), draw()
    logp_BGT = selector.list_logp(selector.encode(query, demos), all_lists(2))
    probability_BG = logp_BGT.sum(-1).exp()
    torch.testing.assert_close(probability_BG.sum(1), torch.ones(QUERIES, dtype=torch.float64))
    assert probability_BG.std() > 1e-3
    twice = selector.list_logp(selector.encode(query, demos), torch.tensor([[[1, 1]]]).expand(QUERIES, 1, 2))
    assert (twice[..., 1] == -torch.inf).all()


@each_variant
def test_teacher_forcing_equals_stepping_through(architecture: Architecture) -> None:
    selector, (query, demos) = build(architecture), draw()
    encoded = selector.encode(query, demos)
    picks_BGT = all_lists(3)[:, ::7]
    logp_BGT = selector.list_logp(encoded, picks_BGT)
    for g in range(picks_BGT.shape[1]):
        state = encoded.state_BW[:, None]
        for t in range(3):
            pick = picks_BGT[:, g : g + 1, t]
            logits = selector.logits(encoded, state, picks_BGT[:, g : g + 1, :t])
            expected = logits.gather(-1, pick[..., None])[..., 0] - logits.exp().sum(-1).log()
            torch.testing.assert_close(logp_BGT[:, g, t], expected[:, 0])
            state = selector.advance(encoded, state, pick)


@each_variant
def test_a_query_does_not_see_the_other_queries_of_its_batch(architecture: Architecture) -> None:
    selector, (query, demos) = build(architecture), draw()
    whole = selector.list_logp(selector.encode(query, demos), all_lists(2))
    for b in range(QUERIES):
        alone = selector.encode(tuple(part[b : b + 1] for part in query), tuple(part[b : b + 1] for part in demos))
        torch.testing.assert_close(selector.list_logp(alone, all_lists(2)[:1])[0], whole[b])


def test_statistics_by_hand_with_a_constant_feature() -> None:
    """Column 0 holds 1 and 5: mean 3, population deviation 2. Column 1 is 7 throughout: mean 7, left unscaled."""
    selector = Selector((2, 1, 1), PLAIN, 0.0)
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


@each_variant
def test_every_parameter_learns_and_no_gradient_is_nan(architecture: Architecture) -> None:
    """Masked candidates put -inf among the logits; a NaN from them would reach every weight."""
    selector, (query, demos) = build(architecture), draw()
    (-selector.list_logp(selector.encode(query, demos), torch.tensor([[[0, 1, 2]]] * QUERIES)).sum()).backward()
    # a shift of all logits changes nothing: these biases have a gradient of zero up to rounding
    idle = {"key.bias"}
    if architecture.state == "static" and architecture.head != "additive" and not architecture.mmr:
        idle.add("mix_demo.3.bias")  # a shift of all z, which no state update, tanh or cosine sees here
    for name, parameter in selector.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert (parameter.grad.abs().max() > 1e-9) == (name not in idle), name


UPDATE = {
    "gru": {"update.weight_ih", "update.weight_hh", "update.bias_ih", "update.bias_hh"},
    "gated": {"update.gate.weight", "update.gate.bias", "update.new.weight", "update.new.bias"},
    "static": set(),
}
HEAD = {
    "dot": {"key.weight", "key.bias", "read.weight", "read.bias"},
    "bilinear": {"key.weight"},
    "additive": {"key.weight", "read.weight", "score.energy.weight"},
}


@each_variant
def test_a_variant_has_its_own_parameters_and_no_idle_ones(architecture: Architecture) -> None:
    shared = ("image", "question", "answer", "gate", "norm", "mix_query", "mix_demo")
    names = {name for name, _ in build(architecture).named_parameters()}
    own = {name for name in names if name.split(".")[0] not in shared}
    assert own == UPDATE[architecture.state] | HEAD[architecture.head] | ({"mmr.weight"} if architecture.mmr else set())
    assert len(names) - len(own) == 6 + 2 + 2 + 12  # projections, gate, norm, mixers


def test_the_gated_update_is_a_gru_with_its_reset_gate_closed() -> None:
    """G [h, z] = W_hz h + W_iz z and U z = W_in z; a bias of -1e9 makes the reset gate 0 exactly."""
    torch.manual_seed(0)
    gru, gated = nn.GRUCell(6, 6).double(), GatedUpdate(6).double()
    with torch.no_grad():
        gru.bias_ih[:6] = -1e9
        gated.gate.weight.copy_(torch.cat([gru.weight_hh[6:12], gru.weight_ih[6:12]], dim=1))
        gated.gate.bias.copy_(gru.bias_hh[6:12] + gru.bias_ih[6:12])
        gated.new.weight.copy_(gru.weight_ih[12:])
        gated.new.bias.copy_(gru.bias_ih[12:])
    z, h = torch.randn(9, 6, dtype=torch.float64), torch.randn(9, 6, dtype=torch.float64)
    torch.testing.assert_close(gated(z, h), gru(z, h))


def test_the_penalty_by_hand() -> None:
    """Vectors at 0, 90, 45 and 180 degrees, of other lengths; w = log(e^2 - 1) makes the weight softplus(w) = 2.

    After pick 0 the cosines are 1, 0, sqrt(1/2), -1; to pick 1 they are 0, 1, sqrt(1/2), 0.
    """
    penalty = RedundancyPenalty().double()
    vectors = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [3.0, 3.0], [-0.5, 0.0]]], dtype=torch.float64)
    half = math.sqrt(0.5)
    with torch.no_grad():
        start = penalty(vectors, torch.tensor([[[0]]]))
        assert start[0, 0, 0].item() == pytest.approx(math.log(2))
        penalty.weight.fill_(math.log(math.exp(2) - 1))
        one = penalty(vectors, torch.tensor([[[0], [1]]]))
        two = penalty(vectors, torch.tensor([[[0, 1], [3, 1]]]))
    expected = [[2, 0, 2 * half, -2], [0, 2, 2 * half, 0]]
    torch.testing.assert_close(one[0], torch.tensor(expected, dtype=torch.float64))
    expected = [[2, 2, 2 * half, 0], [0, 2, 2 * half, 2]]
    torch.testing.assert_close(two[0], torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("architecture", [kind for kind in VARIANTS if kind.mmr], ids=str)
def test_a_penalty_of_weight_zero_is_none(architecture: Architecture) -> None:
    """softplus(-1e4) is 0 exactly. The first pick has no penalty at any weight."""
    selector, plain, (query, demos) = build(architecture), build(replace(architecture, mmr=False)), draw()
    plain.load_state_dict({name: tensor for name, tensor in selector.state_dict().items() if name != "mmr.weight"})
    expected = plain.list_logits(plain.encode(query, demos), all_lists(3))
    logits = selector.list_logits(selector.encode(query, demos), all_lists(3))
    assert torch.equal(logits[:, :, 0], expected[:, :, 0])
    assert not torch.allclose(logits[:, :, 1], expected[:, :, 1], atol=1e-3)
    with torch.no_grad():
        selector.mmr.weight.fill_(-1e4)
    assert torch.equal(selector.list_logits(selector.encode(query, demos), all_lists(3)), expected)


@each_variant
def test_a_heavy_penalty_keeps_twins_out(architecture: Architecture) -> None:
    """Candidates 3 and 4 are the twins of 0 and 1: three picks hold no pair of twins; without the penalty some do."""
    selector, (query, demos) = build(architecture), draw()
    image, question, answer = (part[:, [0, 1, 2, 0, 1]] for part in demos)
    if selector.mmr is not None:
        with torch.no_grad():
            selector.mmr.weight.fill_(1e3)
    picks_BT = greedy(selector, selector.encode(query, (image, question, answer)), 3)
    distinct = [len({pick % 3 for pick in picks}) == 3 for picks in picks_BT.tolist()]
    assert all(distinct) == architecture.mmr


def test_the_plain_selector_is_the_one_before_there_were_variants(tmp_path: Path) -> None:
    """Digest of names, shapes and initial weights, and picks, recorded at commit c0ccf8e, which had no variants."""
    torch.manual_seed(0)
    selector = Selector((5, 4, 3), PLAIN, 0.25)
    save_selector(tmp_path / "plain.safetensors", selector)
    raw = (tmp_path / "plain.safetensors").read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    del header["__metadata__"]
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode() + raw[start:]).hexdigest()
    assert digest == "cc60f79b1133ec773f6c33571e8bb9ec8e49c98a64e6af2feb9bc7ec3230fd8d"

    generator = torch.Generator().manual_seed(1)
    shapes = ((3, 5), (3, 4), (3, 8, 5), (3, 8, 4), (3, 8, 3))
    image, question, *demos = (torch.rand(shape, generator=generator) * 6 - 3 for shape in shapes)
    encoded = selector.eval().encode((image, question), (demos[0], demos[1], demos[2]))
    assert greedy(selector, encoded, 4).tolist() == [[1, 6, 0, 7], [5, 2, 3, 0], [4, 7, 2, 6]]
    logp_BT = selector.list_logp(encoded, torch.arange(4).expand(3, 1, 4))[:, 0]
    expected = [
        [-2.432042121887207, -1.200162410736084, -2.072169065475464, -2.057882785797119],
        [-2.3152413368225098, -3.2502551078796387, -1.3528634309768677, -1.8589801788330078],
        [-2.177006244659424, -1.5955374240875244, -1.5821672677993774, -1.4168018102645874],
    ]
    torch.testing.assert_close(logp_BT, torch.tensor(expected))
