"""Batched image encoding against the library's own path."""

from collections.abc import Callable

import pytest
import torch
from PIL import Image

from leverlab.records import Example
from leverlab.vlm import vision
from leverlab.vlm.model import Vlm
from leverlab.vlm.vision import encode_images

Picture = Callable[[int, int, int], bytes]


def pixels(vlm: Vlm, picture: Picture, sizes: list[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    examples = [Example(str(i), picture(*size, i), "i", "q", "t", ("a",)) for i, size in enumerate(sizes)]
    images: list[Image.Image] = [example.open_image() for example in examples]
    inputs = vlm.processor.image_processor(images, return_tensors="pt")
    return inputs["pixel_values"], inputs["image_grid_thw"]


@pytest.mark.parametrize(
    ("sizes", "tokens", "batched"),
    [
        ([(16, 16)] * 5, [1] * 5, True),
        ([(32, 32)] * 3, [4] * 3, True),
        ([(64, 32)] * 2, [8] * 2, True),
        ([(32, 80)] * 2, [10] * 2, True),
        ([(112, 112)] * 2, [49] * 2, True),  # exactly one window
        ([(144, 48)] * 2, [27] * 2, False),  # wider than a window of 112 pixels
        ([(16, 16), (32, 16), (16, 16)], [1, 2, 1], False),
    ],
)
def test_features_are_the_librarys_own(
    sizes: list[tuple[int, int]],
    tokens: list[int],
    batched: bool,
    vlm: Vlm,
    picture: Picture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pixel_values, grids = pixels(vlm, picture, sizes)
    calls = []
    own = vision._encode_batch
    monkeypatch.setattr(vision, "_encode_batch", lambda *arguments: calls.append(1) or own(*arguments))
    with torch.no_grad():
        features = encode_images(vlm.model, pixel_values, grids)
        wanted = vlm.model.get_image_features(pixel_values, grids).pooler_output
    assert bool(calls) == batched
    assert [len(feature) for feature in features] == tokens
    for feature, other in zip(features, wanted, strict=True):
        torch.testing.assert_close(feature, other, rtol=0, atol=1e-5)
    spread = torch.cat(features).std(dim=0).mean()
    assert spread > 0.05  # the features differ between images and places, so the comparison can fail


def test_features_can_be_trained_through(vlm: Vlm, picture: Picture) -> None:
    pixel_values, grids = pixels(vlm, picture, [(16, 16)] * 2)
    pixel_values.requires_grad_(True)
    torch.cat(encode_images(vlm.model, pixel_values, grids)).square().sum().backward()
    batched = pixel_values.grad.clone()
    pixel_values.grad = None
    torch.cat(list(vlm.model.get_image_features(pixel_values, grids).pooler_output)).square().sum().backward()
    torch.testing.assert_close(batched, pixel_values.grad, rtol=1e-4, atol=1e-5)
    assert batched.abs().max() > 1e-3
