"""Conversion: nothing lost, statistics folded, and a wrong conversion is caught by the picks or by the load."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from leverlab.errors import LeverlabError
from leverlab.export.selector import check_equal_picks, inference_tensors
from leverlab.selector.batches import QueryBatch
from leverlab.selector.inference import InferenceSelector, expected_shapes
from leverlab.selector.network import FEATURES, Selector

WIDTHS, WIDTH = (5, 4, 3), 16
CONFIG = {"widths": list(WIDTHS), "width": WIDTH}
Tensors = dict[str, np.ndarray]


@pytest.fixture(name="selector")
def build() -> Selector:
    torch.manual_seed(0)
    selector = Selector(WIDTHS, WIDTH, 0.5)
    with torch.no_grad():
        for parameter in selector.parameters():
            parameter.copy_(parameter * 2 + 0.3 * torch.randn_like(parameter))
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


def test_statistics_fold_into_the_projections_by_hand() -> None:
    """Weight 6, bias 1, mean 2, deviation 3: 6 (x - 2) / 3 + 1 = 2 x - 3."""
    selector = Selector((1, 1, 1), 1, 0.0)
    with torch.no_grad():
        selector.image.weight.fill_(6)
        selector.image.bias.fill_(1)
    selector.set_statistics("image", torch.tensor([[-1.0], [5.0]]))
    tensors = inference_tensors(selector)
    assert tensors["image.weight"].tolist() == [[2.0]]
    assert tensors["image.bias"].tolist() == [-3.0]
    assert {name: tensor.shape for name, tensor in tensors.items()} == expected_shapes((1, 1, 1), 1)
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
    tensors["norm.weight"] = np.ones(WIDTH, np.float32)


@pytest.mark.parametrize("damage", [swap_gates, forget_mean, forget_scale, swap_mixers, transpose_key, leave_untrained])
def test_a_wrong_conversion_is_caught(selector: Selector, damage: Callable[[Tensors, Selector], None]) -> None:
    tensors = inference_tensors(selector)
    damage(tensors, selector)
    with pytest.raises(LeverlabError, match="picks another demo than the checkpoint for question 'q40-"):
        check_equal_picks(selector, InferenceSelector(tensors, CONFIG), batches(), 3)


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
