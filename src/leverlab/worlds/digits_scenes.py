"""Scenes of the embedded world: a real scan of a handwritten digit, drawn on a coloured and textured ground.

The scans are the 1,797 of scikit-learn's bundled set (UCI Optical Recognition of Handwritten Digits, CC BY 4.0; 8 by 8
pixels). A scene is a 16 by 16 RGB image; everything that can be asked about it (number, colour, texture) is known
exactly. Scans are split once and for all into five disjoint parts, so that no part ever shows another part's
handwriting.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

IMAGE_SIZE = 16
SCAN_SIZE = 12  # a scan is enlarged from 8 to 12 pixels and placed anywhere inside the image
SCAN_PARTS = {"meta": 797, "pool": 300, "train": 300, "val": 100, "test": 300}

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = {
    "red": (0.90, 0.10, 0.10),
    "green": (0.10, 0.70, 0.10),
    "blue": (0.15, 0.25, 0.95),
    "yellow": (0.85, 0.80, 0.05),
    "purple": (0.60, 0.10, 0.80),
    "cyan": (0.05, 0.75, 0.80),
    "brown": (0.60, 0.35, 0.15),
    "grey": (0.55, 0.55, 0.55),
}
TEXTURES = ("plain", "striped", "barred", "slanted", "checked", "dotted", "shaded", "framed")
CLASSES = {"number": NUMBERS, "colour": tuple(COLOURS), "texture": TEXTURES}

QUESTIONS = {
    "number": ("Which number?", "What digit?", "The number?"),
    "colour": ("Which colour?", "What hue?", "The colour?"),
    "texture": ("Which texture?", "What pattern?", "The texture?"),
    "colour_number": ("Which colour and number?", "What hue and digit?", "The colour and number?"),
}
ATTRIBUTES = {
    "number": ("number",),
    "colour": ("colour",),
    "texture": ("texture",),
    "colour_number": ("colour", "number"),
}
WORDS = tuple(f"{onset}{vowel}{ending}" for onset in "bdfgklmn" for vowel in "aiou" for ending in ("zo", "vi"))


@dataclass(frozen=True)
class Scene:
    """What one image shows: a scan (index into the 1,797) and the class index of each attribute."""

    scan: int
    number: int
    colour: int
    texture: int

    def class_of(self, attribute: str) -> int:
        """Return the class index of `attribute` ('number', 'colour' or 'texture')."""
        return int(getattr(self, attribute))


@cache
def _scans() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    bundled = load_digits()
    return bundled.images / 16.0, bundled.target.astype(np.int64)


def scan_number(scan: int) -> int:
    """Return the digit (0..9) that scan `scan` (0..1796) shows."""
    return int(_scans()[1][scan])


@cache
def scan_parts() -> dict[str, tuple[int, ...]]:
    """Return the scan indices of each part ('meta', 'pool', 'train', 'val', 'test'); disjoint, fixed for all time."""
    order = np.random.default_rng(20260101).permutation(len(_scans()[1]))
    bounds = np.cumsum([0, *SCAN_PARTS.values()])
    return {
        name: tuple(int(scan) for scan in sorted(order[start:stop]))
        for name, start, stop in zip(SCAN_PARTS, bounds[:-1], bounds[1:], strict=True)
    }


@cache
def _shade() -> NDArray[np.float64]:
    """Return the shade in 0..1 of every ground: (texture, phase of 4, row, column)."""
    row, column = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE]
    border = np.minimum.reduce([row, column, IMAGE_SIZE - 1 - row, IMAGE_SIZE - 1 - column])
    grounds = []
    for phase in range(4):
        r, c = row + phase, column + phase
        grounds.append(
            [
                np.full(row.shape, 0.5),
                (r // 2) % 2,
                (c // 2) % 2,
                ((r + column) // 3) % 2,
                (r // 4 + c // 4) % 2,
                ((r % 4 < 2) & (c % 4 < 2)) * 1.0,
                row / (IMAGE_SIZE - 1.0) if phase < 2 else 1 - row / (IMAGE_SIZE - 1.0),
                (border < 2 + phase % 2) * 1.0,
            ]
        )
    return np.asarray(grounds, dtype=np.float64).transpose(1, 0, 2, 3)


@cache
def _enlarged(scan: int) -> NDArray[np.float64]:
    small = Image.fromarray(np.round(_scans()[0][scan] * 255).astype(np.uint8))
    return np.asarray(small.resize((SCAN_SIZE, SCAN_SIZE), Image.Resampling.BILINEAR), dtype=np.float64) / 255


def draw_scene(scene: Scene, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return the image of `scene`, uint8 of shape (16, 16, 3).

    `rng` places the scan, shifts the texture and varies brightness; equal states give equal images.
    """
    shade = _shade()[scene.texture, rng.integers(4)]
    tone = 0.25 + 0.45 * shade
    ground = tone[..., None] * np.asarray(list(COLOURS.values())[scene.colour]) * rng.uniform(0.85, 1.15)
    ink = np.zeros((IMAGE_SIZE, IMAGE_SIZE, 1))
    top, left = rng.integers(0, IMAGE_SIZE - SCAN_SIZE + 1, size=2)
    ink[top : top + SCAN_SIZE, left : left + SCAN_SIZE, 0] = _enlarged(scene.scan)
    image = ground * (1 - ink) + ink * rng.uniform(0.9, 1.0) + rng.normal(0, 0.02, size=(IMAGE_SIZE, IMAGE_SIZE, 3))
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


def sample_scene(rng: np.random.Generator, scans: tuple[int, ...]) -> Scene:
    """Return a scene of a random scan of `scans` with random colour and texture."""
    scan = int(rng.choice(scans))
    return Scene(scan, scan_number(scan), int(rng.integers(len(COLOURS))), int(rng.integers(len(TEXTURES))))
