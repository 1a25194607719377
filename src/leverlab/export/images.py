"""The sizes of images that a Qwen2.5-VL takes, and images brought to them as transformers does."""

import io
import math
from dataclasses import dataclass

from PIL import Image

from leverlab.errors import LeverlabError
from leverlab.images import check_size, rgb_image


@dataclass(frozen=True)
class ImageLimits:
    """Both sides of an image are multiples of `side` pixels, one token each; it has `fewest` to `most` pixels.

    Raises `LeverlabError` for limits that no image meets.
    """

    side: int
    fewest: int
    most: int

    def __post_init__(self) -> None:
        if self.side < 1 or not 0 < self.fewest <= self.most or self.tokens[0] > self.tokens[1]:
            raise LeverlabError(
                f"no image has {self.fewest} to {self.most} pixels in tokens of {self.side} x {self.side}; restore the "
                "limits of the checkpoint's image processor"
            )

    @property
    def tokens(self) -> tuple[int, int]:
        """The fewest and the most tokens of an image: `image_min_tokens` and `image_max_tokens` of llama.cpp."""
        return math.ceil(self.fewest / self.side**2), max(1, self.most // self.side**2)

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the width and height in pixels that an image of `size` (width, height) is resized to.

        They keep the ratio as well as they can: `smart_resize` of transformers. Raises the errors of `check_size`.
        """
        check_size(size)
        side, fewest, most = self.side, self.fewest, self.most
        wide, high = (round(length / side) * side for length in size)
        if wide * high > most:
            shrink = math.sqrt(size[0] * size[1] / most)
            wide, high = (max(side, math.floor(length / shrink / side) * side) for length in size)
        elif wide * high < fewest:
            grow = math.sqrt(fewest / (size[0] * size[1]))
            wide, high = (math.ceil(length * grow / side) * side for length in size)
        return wide, high

    @property
    def smallest_square(self) -> int:
        """The side in pixels of the smallest square that is not enlarged."""
        return self.side * math.ceil(math.sqrt(self.tokens[0]))

    def fit(self, image: Image.Image) -> Image.Image:
        """Return the image as `rgb_image` does, resized (bicubic) where it does not fit. Raises the same errors."""
        rgb = rgb_image(image)
        return rgb.resize(self.size(rgb.size), Image.Resampling.BICUBIC)

    def fitting_png(self, image: Image.Image) -> bytes:
        """Return the image as a PNG file that fits. Raises the errors of `fit`."""
        content = io.BytesIO()
        self.fit(image).save(content, format="PNG", compress_level=1)
        return content.getvalue()
