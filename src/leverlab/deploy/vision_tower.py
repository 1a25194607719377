"""The vision part of a Qwen2.5-VL in numpy, from its GGUF file (`mmproj`): an image to its merged tokens.

The arithmetic is transformers' (modeling_qwen2_5_vl.py, image_processing_pil_qwen2_vl.py) in float32; torch is not
needed. Axes: P patches, T merged tokens, H heads, E the width of a head, W the width of the tower, D features.
"""

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, Keys, VisionProjectorType
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt
from scipy.special import erf, expit

from leverlab.errors import LeverlabError
from leverlab.export.gguf_file import Fields, checked, contents, decode, read_gguf, shape_of
from leverlab.export.images import ImageLimits
from leverlab.export.vision_geometry import MERGE, ROTARY_BASE, WINDOW

Array = NDArray[np.float32]
ARCHITECTURE = MODEL_ARCH_NAMES[MODEL_ARCH.MMPROJ]
_SCORES = 1 << 24  # attention scores computed at once: bounds the memory of large images to some 100 MB

_Colour = Annotated[list[float], Field(min_length=3, max_length=3)]


class _Fields(BaseModel):
    """The fields that shape the tower."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    projector: str = Field(alias=Keys.Clip.PROJECTOR_TYPE)
    features: PositiveInt = Field(alias=Keys.ClipVision.PROJECTION_DIM)
    patch: PositiveInt = Field(alias=Keys.ClipVision.PATCH_SIZE)
    width: PositiveInt = Field(alias=Keys.ClipVision.EMBEDDING_LENGTH)
    ff: PositiveInt = Field(alias=Keys.ClipVision.FEED_FORWARD_LENGTH)
    depth: PositiveInt = Field(alias=Keys.ClipVision.BLOCK_COUNT)
    heads: PositiveInt = Field(alias=Keys.ClipVision.Attention.HEAD_COUNT)
    eps: PositiveFloat = Field(alias=Keys.ClipVision.Attention.LAYERNORM_EPS)
    mean: _Colour = Field(alias=Keys.ClipVision.IMAGE_MEAN)
    std: Annotated[list[PositiveFloat], Field(min_length=3, max_length=3)] = Field(alias=Keys.ClipVision.IMAGE_STD)
    full_every: int = Field(alias=Keys.ClipVision.N_WA_PATTERN, ge=0)


class VisionTower:
    """A vision part in use; `features` is D. Every tensor is decoded to float32 on its first use, and kept.

    images: the sizes that images are brought to. Raises `LeverlabError` when the file is missing, damaged or no vision
    part of Qwen2.5-VL, and when its tokens have another size than those of `images`.
    """

    def __init__(self, path: Path, images: ImageLimits):
        self.path, self.images = path, images
        fields, self._stored = read_gguf(path)
        require_architecture(fields, ARCHITECTURE, path)
        self._f = checked(_Fields, fields, path)
        self._check_tensors()
        if images.side != MERGE * self._f.patch:
            raise LeverlabError(
                f"a token of {path} is {MERGE * self._f.patch} pixels a side, and images are brought to multiples of "
                f"{images.side}; give the limits and the mmproj of one checkpoint"
            )
        self.features = self._f.features
        self._decoded: dict[str, Array] = {}

    def encode(self, image: Image.Image) -> Array:
        """Return the merged tokens (T, D) of an image, row by row from the top left.

        The image is seen as `leverlab.images.rgb_image` returns it. Raises the same errors, and `LeverlabError` when a
        value comes out NaN or infinite.
        """
        with np.errstate(all="ignore"):  # what comes of damaged values is told below
            tokens_TD = self._tokens(self._pixels(image))
        if not np.isfinite(tokens_TD).all():
            raise LeverlabError(f"{self.path}: an image comes out with NaN or infinite values; export again")
        return tokens_TD

    def _pixels(self, image: Image.Image) -> Array:
        """Return the normalised pixels (3, height, width) of the resized image."""
        levels = np.asarray(self.images.fit(image), dtype=np.float64)
        mean, std = (np.asarray(values, dtype=np.float32) for values in (self._f.mean, self._f.std))
        return (((levels * (1 / 255)).astype(np.float32) - mean) / std).transpose(2, 0, 1)

    def _tokens(self, pixels: Array) -> Array:
        rows, columns = (side // self._f.patch for side in pixels.shape[1:])
        order_T, lengths = _windows(rows // MERGE, columns // MERGE, WINDOW // MERGE // self._f.patch)
        by_window = partial(_reordered, order=order_T)
        kernel = self._t("v.patch_embd.weight") + self._t("v.patch_embd.weight.1")  # both see the same frame
        hidden_PW = by_window(_patches(pixels, self._f.patch) @ kernel.reshape(self._f.width, -1).T)
        cos_PE, sin_PE = map(by_window, _rotary(rows, columns, self._f.width // self._f.heads))
        for layer in range(self._f.depth):
            is_full = self._f.full_every == 0 or (layer + 1) % self._f.full_every == 0
            block, spans = f"v.blk.{layer}", [len(hidden_PW)] if is_full else lengths
            hidden_PW = hidden_PW + self._attention(block, self._norm(f"{block}.ln1", hidden_PW), cos_PE, sin_PE, spans)
            normed_PW = self._norm(f"{block}.ln2", hidden_PW)
            gate, up = self._linear(f"{block}.ffn_gate", normed_PW), self._linear(f"{block}.ffn_up", normed_PW)
            hidden_PW = hidden_PW + self._linear(f"{block}.ffn_down", gate * expit(gate) * up)
        merged = self._linear("mm.0", self._norm("v.post_ln", hidden_PW).reshape(len(order_T), -1))
        merged = merged * np.float32(0.5) * (1 + erf(merged * np.float32(math.sqrt(0.5))))
        tokens_TD = np.empty((len(order_T), self.features), dtype=np.float32)
        tokens_TD[order_T] = self._linear("mm.2", merged)
        return tokens_TD

    def _attention(self, block: str, normed_PW: Array, cos_PE: Array, sin_PE: Array, spans: list[int]) -> Array:
        """Return what attention adds (P, W), where each of the consecutive `spans` sees itself alone."""
        query_HPE, key_HPE, value_HPE = (
            self._linear(f"{block}.attn_{letter}", normed_PW)
            .reshape(*cos_PE.shape[:1], self._f.heads, -1)
            .swapaxes(0, 1)
            for letter in "qkv"
        )
        query_HPE, key_HPE = (_rotated(part, cos_PE, sin_PE) for part in (query_HPE, key_HPE))
        ends = np.cumsum(spans)
        mixed = [
            _attend(*(part[:, end - span : end] for part in (query_HPE, key_HPE, value_HPE)))
            for span, end in zip(spans, ends, strict=True)
        ]
        return self._linear(f"{block}.attn_out", np.concatenate(mixed, axis=1).swapaxes(0, 1).reshape(normed_PW.shape))

    def _t(self, name: str) -> Array:
        if name not in self._decoded:
            self._decoded[name] = decode(self._stored[name], self.path)
        return self._decoded[name]

    def _linear(self, name: str, values: Array) -> Array:
        result: Array = values @ self._t(f"{name}.weight").T + self._t(f"{name}.bias")
        return result

    def _norm(self, name: str, values: Array) -> Array:
        scale = np.sqrt(np.square(values).mean(axis=-1, keepdims=True) + np.float32(self._f.eps))
        result: Array = values / scale * self._t(f"{name}.weight")
        return result

    def _check_tensors(self) -> None:
        """Raise `LeverlabError` for a geometry that cannot be, and a missing, unexpected or misshapen tensor."""
        fields, path = self._f, self.path
        problems = {
            f"its projector is {fields.projector!r}, not {VisionProjectorType.QWEN25VL}": (
                fields.projector != VisionProjectorType.QWEN25VL
            ),
            f"no {MERGE} x {MERGE} patches of {fields.patch} pixels fit a window of {WINDOW}": (
                MERGE * fields.patch > WINDOW
            ),
            f"{fields.heads} heads are no multiple of 4 wide": fields.width % (4 * fields.heads) != 0,
            f"it has {len(self._stored)} tensor(s), too few for {fields.depth} layers": (
                fields.depth > len(self._stored)
            ),
        }
        for problem, present in problems.items():
            if present:
                raise LeverlabError(f"{path} is no vision part of Qwen2.5-VL: {problem}; export the checkpoint again")
        found = {name: shape_of(tensor) for name, tensor in self._stored.items()}
        if wrong := sorted({name for name, _ in set(found.items()) ^ set(_expected_shapes(fields))}):
            raise LeverlabError(f"{path} has missing, unexpected or misshapen tensors: {wrong[:4]}; export again")


def require_architecture(fields: Fields, wanted: str, path: Path) -> None:
    """Raise `LeverlabError` when a file is of another architecture: the text where the vision part belongs, say."""
    found = contents(fields["general.architecture"], path) if "general.architecture" in fields else None
    if found != wanted:
        raise LeverlabError(
            f"{path} has the architecture {found!r}, not {wanted!r}; give text and mmproj of one Qwen2.5-VL, each in "
            "its place"
        )


def _expected_shapes(fields: _Fields) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, ff, merged = fields.width, fields.ff, MERGE**2 * fields.width
    linear = {"mm.0": (merged, merged), "mm.2": (fields.features, merged)}
    norms = ["v.post_ln"]
    for layer in range(fields.depth):
        block = f"v.blk.{layer}"
        norms += [f"{block}.ln1", f"{block}.ln2"]
        linear |= {f"{block}.attn_{part}": (width, width) for part in ("q", "k", "v", "out")}
        linear |= {f"{block}.ffn_{part}": (ff, width) for part in ("gate", "up")} | {f"{block}.ffn_down": (width, ff)}
    for kernel in ("v.patch_embd.weight", "v.patch_embd.weight.1"):
        yield kernel, (width, 3, fields.patch, fields.patch)
    yield from ((f"{name}.weight", (width,)) for name in norms)
    for name, (outputs, inputs) in linear.items():
        yield f"{name}.weight", (outputs, inputs)
        yield f"{name}.bias", (outputs,)


def _patches(pixels: Array, patch: int) -> Array:
    """Return the patches (P, 3 · patch²), those of a token side by side."""
    _, height, width = pixels.shape
    blocks = pixels.reshape(3, height // patch // MERGE, MERGE, patch, width // patch // MERGE, MERGE, patch)
    return blocks.transpose(1, 4, 2, 5, 0, 3, 6).reshape(-1, 3 * patch**2)


def _rotary(rows: int, columns: int, head: int) -> tuple[Array, Array]:
    """Return cosines and sines (P, E), in the order of `_patches`: a quarter each for row, column, row, column."""
    grid = np.moveaxis(np.indices((rows, columns)), 0, -1)  # (rows, columns, 2)
    blocks = grid.reshape(rows // MERGE, MERGE, columns // MERGE, MERGE, 2).swapaxes(1, 2).reshape(-1, 2, 1)
    frequencies = ROTARY_BASE ** (-np.arange(0, head // 2, 2) / (head // 2))
    angles_PE = np.tile((blocks * frequencies).reshape(len(blocks), -1), 2)
    return np.cos(angles_PE).astype(np.float32), np.sin(angles_PE).astype(np.float32)


def _windows(rows: int, columns: int, side: int) -> tuple[NDArray[np.int64], list[int]]:
    """Return the tokens (T,) window by window, and the patches of each window; those at the edges may be smaller."""
    grid = np.arange(rows * columns).reshape(rows, columns)
    windows = [
        grid[top : top + side, left : left + side].ravel()
        for top in range(0, rows, side)
        for left in range(0, columns, side)
    ]
    return np.concatenate(windows), [len(window) * MERGE**2 for window in windows]


def _reordered(values: Array, order: NDArray[np.int64]) -> Array:
    """Return the patches (P, ...) with their tokens in another order."""
    return values.reshape(len(order), -1)[order].reshape(values.shape)


def _rotated(values_HPE: Array, cos_PE: Array, sin_PE: Array) -> Array:
    half = values_HPE.shape[-1] // 2
    turned_HPE: Array = np.concatenate([-values_HPE[..., half:], values_HPE[..., :half]], axis=-1)
    return values_HPE * cos_PE + turned_HPE * sin_PE


def _attend(query_HPE: Array, key_HPE: Array, value_HPE: Array) -> Array:
    """Return softmax attention (H, P, E), the queries in chunks that fit the memory."""
    heads, patches, width = query_HPE.shape
    key_HEP = key_HPE.swapaxes(1, 2) * np.float32(width**-0.5)
    step, chunks = max(1, _SCORES // (heads * patches)), []
    for start in range(0, patches, step):
        scores = query_HPE[:, start : start + step] @ key_HEP
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        chunks.append(scores @ value_HPE / scores.sum(axis=-1, keepdims=True))
    return np.concatenate(chunks, axis=1)
