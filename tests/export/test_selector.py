"""Conversion: nothing lost, statistics folded, and a wrong conversion is caught by the picks or by the load."""

from collections.abc import Callable
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from leverlab.errors import LeverlabError
from leverlab.export.selector import check_equal_picks, inference_tensors
from leverlab.selector.architecture import Architecture
from leverlab.selector.batches import QueryBatch
from leverlab.selector.inference import InferenceSelector, expected_shapes
from leverlab.selector.network import FEATURES, Selector
from tests.selector.reference import PLAIN, each_variant

WIDTHS = (5, 4, 3)
CONFIG = {"widths": list(WIDTHS), **asdict(PLAIN)}
Tensors = dict[str, np.ndarray]


@pytest.fixture(name="selector")
def build_plain() -> Selector:
    return build(PLAIN)


def build(architecture: Architecture) -> Selector:
    torch.manual_seed(0)
    selector = Selector(WIDTHS, architecture, 0.5)
    with torch.no_grad():
        for parameter in selector.parameters():
            parameter.copy_(parameter * 2 + 0.3 * torch.randn_like(parameter))
        if selector.mmr is not None:  # logits no larger than the penalty, so that it decides picks
            sharp = {"dot": "read.weight", "bilinear": "key.weight", "additive": "score.energy.weight"}
            selector.get_parameter(sharp[architecture.head]).mul_(0.05)
    for name, width in zip(FEATURES, WIDTHS, strict=True):
        selector.set_statistics(name, torch.randn(30, width) * 3 + 2)
    return selector


def batches(sizes: tuple[int, ...] = (40, 20), candidates: int = 12) -> list[QueryBatch]:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 3

    return [
        QueryBatch(
            tuple(f"q{size}-{n}" for n in range(size)),
            tuple(tuple(f"d{k}" for k in range(candidates)) for _ in range(size)),
            (normal(size, WIDTHS[0]), normal(size, WIDTHS[1])),
            (
                normal(size, candidates, WIDTHS[0]),
                normal(size, candidates, WIDTHS[1]),
                normal(size, candidates, WIDTHS[2]),
            ),
        )
        for size in sizes
    ]


def test_equal_picks_are_counted(selector: Selector) -> None:
    """60 questions of 3 picks each; the network is left in training mode, and dropout must not matter."""
    selector.train()
    converted = InferenceSelector(inference_tensors(selector), CONFIG)
    assert check_equal_picks(selector, converted, batches(), 3) == 180
    assert selector.training
    assert selector.key.weight.dtype == torch.float32


@each_variant
def test_every_variant_gives_equal_picks(architecture: Architecture) -> None:
    selector = build(architecture)
    tensors = inference_tensors(selector)
    assert {name: tensor.shape for name, tensor in tensors.items()} == expected_shapes(WIDTHS, architecture)
    converted = InferenceSelector(tensors, CONFIG | asdict(architecture))
    assert check_equal_picks(selector, converted, batches(), 3) == 180


def test_a_converted_selector_of_another_variant_is_refused(selector: Selector) -> None:
    """Its tensors are the checkpoint's, its config is not: a static state would leave the update's tensors unread."""
    wrong = InferenceSelector(inference_tensors(selector), CONFIG | {"state": "static"})
    with pytest.raises(LeverlabError, match=r"has state static, .* but the checkpoint has state gru, "):
        check_equal_picks(selector, wrong, batches(), 3)


def test_statistics_fold_into_the_projections_by_hand() -> None:
    """Weight 6, bias 1, mean 2, deviation 3: 6 (x - 2) / 3 + 1 = 2 x - 3."""
    architecture = Architecture(1, "gru", "dot", False, False)
    selector = Selector((1, 1, 1), architecture, 0.0)
    with torch.no_grad():
        selector.image.weight.fill_(6)
        selector.image.bias.fill_(1)
    selector.set_statistics("image", torch.tensor([[-1.0], [5.0]]))
    tensors = inference_tensors(selector)
    assert tensors["image.weight"].tolist() == [[2.0]]
    assert tensors["image.bias"].tolist() == [-3.0]
    assert {name: tensor.shape for name, tensor in tensors.items()} == expected_shapes((1, 1, 1), architecture)
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float32)}


def test_all_other_tensors_keep_their_values(selector: Selector) -> None:
    tensors, state = inference_tensors(selector), selector.state_dict()
    for theirs, ours in (
        ("update.weight_ih", "update.input.weight"),
        ("update.bias_hh", "update.hidden.bias"),
        ("mix_demo.0.weight", "mix_demo.norm.weight"),
        ("mix_query.1.bias", "mix_query.up.bias"),
        ("mix_demo.3.weight", "mix_demo.down.weight"),
        ("gate.weight", "gate.weight"),
        ("norm.bias", "norm.bias"),
    ):
        np.testing.assert_array_equal(tensors[ours], state[theirs].numpy())


def swap_gates(tensors: Tensors, _: Selector) -> None:
    """Exchange reset and update gate, as a converter for another GRU convention would."""
    for side in ("input", "hidden"):
        for leaf in ("weight", "bias"):
            reset, update, new = np.split(tensors[f"update.{side}.{leaf}"], 3)
            tensors[f"update.{side}.{leaf}"] = np.concatenate([update, reset, new])


def forget_mean(tensors: Tensors, selector: Selector) -> None:
    tensors["image.bias"] = selector.image.bias.detach().numpy()


def forget_scale(tensors: Tensors, selector: Selector) -> None:
    tensors["answer.weight"] = selector.answer.weight.detach().numpy()


def swap_mixers(tensors: Tensors, _: Selector) -> None:
    tensors["mix_demo.up.bias"], tensors["mix_query.up.bias"] = (
        tensors["mix_query.up.bias"],
        tensors["mix_demo.up.bias"],
    )


def transpose_key(tensors: Tensors, _: Selector) -> None:
    tensors["key.weight"] = tensors["key.weight"].T


def leave_untrained(tensors: Tensors, _: Selector) -> None:
    """What a tensor that was dropped on the way looks like: its initial value."""
    tensors["norm.weight"] = np.ones(16, np.float32)


@pytest.mark.parametrize("damage", [swap_gates, forget_mean, forget_scale, swap_mixers, transpose_key, leave_untrained])
def test_a_wrong_conversion_is_caught(selector: Selector, damage: Callable[[Tensors, Selector], None]) -> None:
    tensors = inference_tensors(selector)
    damage(tensors, selector)
    with pytest.raises(LeverlabError, match="picks another demo than the checkpoint for question 'q40-"):
        check_equal_picks(selector, InferenceSelector(tensors, CONFIG), batches(), 3)


def swap_halves_of_the_gate(tensors: Tensors, _: Selector) -> None:
    tensors["update.gate.weight"] = np.roll(tensors["update.gate.weight"], 16, axis=1)


def swap_gate_and_new(tensors: Tensors, _: Selector) -> None:
    tensors["update.new.bias"], tensors["update.gate.bias"] = tensors["update.gate.bias"], tensors["update.new.bias"]


def swap_key_and_read(tensors: Tensors, _: Selector) -> None:
    tensors["key.weight"], tensors["read.weight"] = tensors["read.weight"], tensors["key.weight"]


def flip_energy(tensors: Tensors, _: Selector) -> None:
    tensors["score.energy.weight"] = -tensors["score.energy.weight"]


def forget_penalty(tensors: Tensors, _: Selector) -> None:
    tensors["mmr.weight"] -= 1e3


def fold_penalty_twice(tensors: Tensors, _: Selector) -> None:
    """The weight in the place of the number under the softplus."""
    tensors["mmr.weight"] = np.log1p(np.exp(tensors["mmr.weight"]))


@pytest.mark.parametrize(
    ("change", "damage"),
    [
        ({"state": "gated"}, swap_halves_of_the_gate),
        ({"state": "gated"}, swap_gate_and_new),
        ({"head": "bilinear"}, transpose_key),
        ({"head": "additive"}, swap_key_and_read),
        ({"head": "additive"}, flip_energy),
        ({"mmr": True}, forget_penalty),
        ({"mmr": True}, fold_penalty_twice),
    ],
)
def test_a_wrong_conversion_of_a_variant_is_caught(
    change: dict[str, object], damage: Callable[[Tensors, Selector], None]
) -> None:
    architecture = replace(PLAIN, **change)
    selector = build(architecture)
    tensors = inference_tensors(selector)
    damage(tensors, selector)
    with pytest.raises(LeverlabError, match="picks another demo than the checkpoint"):
        check_equal_picks(selector, InferenceSelector(tensors, CONFIG | asdict(architecture)), batches(), 3)


def test_the_first_difference_is_named(selector: Selector) -> None:
    """Only question 7 of the second batch is answered wrongly, at its third pick."""

    class Wrong(InferenceSelector):
        def pick(self, *arguments: object) -> np.ndarray:
            picks = super().pick(*arguments)  # type: ignore[arg-type]
            if len(picks) == 20:
                picks[7, 2] += 1
            return picks

    with pytest.raises(LeverlabError, match="question 'q20-7' at pick 3"):
        check_equal_picks(selector, Wrong(inference_tensors(selector), CONFIG), batches(), 3)


def test_a_checkpoint_with_another_tensor_is_refused(selector: Selector) -> None:
    selector.attention = torch.nn.Linear(2, 2)
    with pytest.raises(LeverlabError, match=r"attention\.bias"):
        inference_tensors(selector)


def test_a_checkpoint_without_a_tensor_is_refused(selector: Selector) -> None:
    selector.gate = torch.nn.Identity()
    with pytest.raises(LeverlabError, match=r"gate\.weight"):
        inference_tensors(selector)
