"""Sizes of images against transformers' own `smart_resize`, and images brought to them."""

import io

import numpy as np
import pytest
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from leverlab.errors import LeverlabError
from leverlab.export.images import ImageLimits
from leverlab.images import rgb_image


@pytest.mark.parametrize(
    ("side", "fewest", "most"),
    [
        (16, 4 * 256, 60 * 256),
        (28, 4 * 784, 60 * 784),
        (28, 50_000, 1_000_000),  # no multiples of a token
        (16, 300, 999),
    ],
)
def test_sizes_are_those_of_transformers(side: int, fewest: int, most: int) -> None:
    limits = ImageLimits(side, fewest, most)
    for width in (1, 3, 7, 8, 14, 16, 20, 24, 40, 42, 56, 70, 97, 150, 199, 391, 1000, 2999):
        for height in (1, 5, 8, 15, 24, 40, 42, 70, 111, 142, 200, 641, 2000, 2826):
            if max(width, height) <= 200 * min(width, height):
                assert limits.size((width, height)) == smart_resize(height, width, side, fewest, most)[::-1]


@pytest.mark.parametrize(("fewest", "square"), [(1, 16), (2, 32), (4, 32), (5, 48), (9, 48), (10, 64)])
def test_the_smallest_square_is_kept_and_a_smaller_one_is_not(fewest: int, square: int) -> None:
    limits = ImageLimits(16, 256 * fewest, 25_600)
    assert limits.smallest_square == square
    assert limits.size((square, square)) == (square, square)
    if square > 16:
        assert min(limits.size((square - 16, square - 16))) > square - 16


def noise(mode: str, width: int, height: int, channels: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8), mode)


def test_an_image_that_fits_keeps_its_pixels() -> None:
    image = noise("RGB", 48, 32, 3)
    shown = Image.open(io.BytesIO(ImageLimits(16, 256, 2560).fitting_png(image)))
    assert (shown.format, shown.mode) == ("PNG", "RGB")
    assert np.array_equal(shown, image)


def test_another_one_is_resized_in_rgb() -> None:
    """40 x 21 pixels are 2.5 x 1.3 tokens; half rounds to even. What is transparent lies on white."""
    image = noise("RGBA", 40, 21, 4)
    shown = Image.open(io.BytesIO(ImageLimits(16, 256, 2560).fitting_png(image)))
    assert (shown.mode, shown.size) == ("RGB", (32, 16))
    assert np.array_equal(shown, rgb_image(image).resize((32, 16), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(("side", "fewest", "most"), [(16, 0, 4), (16, 5, 4), (16, -1, -1), (0, 1, 4), (16, 300, 500)])
def test_limits_that_are_none(side: int, fewest: int, most: int) -> None:
    """No whole number of tokens has 300 to 500 pixels, either."""
    with pytest.raises(LeverlabError, match=f"no image has {fewest} to {most} pixels in tokens of {side} x {side}"):
        ImageLimits(side, fewest, most)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (201, 1), (2, 401)])
def test_images_without_a_size(size: tuple[int, int]) -> None:
    with pytest.raises(LeverlabError, match=f"the image is {size[0]} x {size[1]} pixels"):
        ImageLimits(16, 256, 25_600).size(size)
