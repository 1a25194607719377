"""Encoders: from examples to the vectors that samplers, baselines and the selector compare."""

import contextlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from leverlab.errors import LeverlabError
from leverlab.files import write_bytes
from leverlab.library_errors import reason_of
from leverlab.records import Example
from leverlab.selector.features import FeatureTable, Vectors
from leverlab.text_tokens import TextTokens
from leverlab.vlm.model import Vlm
from leverlab.vlm.vision import encode_images

IMAGES_PER_BATCH = 256
PIXELS_PER_BATCH = 256 * 128 * 128  # large images come in smaller batches, or their patches fill the memory
Track = Callable[[list[list[bytes]]], Iterable[list[bytes]]]  # yields the batches of images it gets, shows progress
Inputs = dict[str, Tensor]  # what a model takes of one image


class ImageEncoder(Protocol):
    """What turns images into vectors. `module` holds the weights; `encode` is differentiable in them."""

    module: nn.Module

    def prepare(self, images: list[Any]) -> list[Inputs]:
        """Return the inputs of PIL images, all of one size."""

    def encode(self, inputs: Sequence[Inputs]) -> Tensor:
        """Return the vectors (N, D) of prepared images."""


class VlmImageEncoder:
    """The vision tower of a VLM: the mean of an image's merged tokens."""

    def __init__(self, vlm: Vlm):
        self._vlm = vlm
        self.module: nn.Module = vlm.model.model.visual

    def prepare(self, images: list[Any]) -> list[Inputs]:
        """Return the patches and the grid of each image."""
        inputs = self._vlm.processor.image_processor(images=images, return_tensors="pt")
        grids = inputs["image_grid_thw"]
        patches = inputs["pixel_values"].split(grids.prod(dim=1).tolist())
        return [{"pixel_values": own, "image_grid_thw": grid} for own, grid in zip(patches, grids, strict=True)]

    def encode(self, inputs: Sequence[Inputs]) -> Tensor:
        """Return the vectors (N, D), float32."""
        device = self._vlm.device
        patches = torch.cat([one["pixel_values"] for one in inputs]).to(device)
        grids = torch.stack([one["image_grid_thw"] for one in inputs]).to(device)
        return torch.stack([_mean(tokens) for tokens in encode_images(self._vlm.model, patches, grids)])


class ClipImageEncoder:
    """The image side of a CLIP-class model, in its shared space."""

    def __init__(self, model: Any, image_processor: Any):
        self._model, self._processor = model, image_processor
        self.module: nn.Module = model.vision_model

    def prepare(self, images: list[Any]) -> list[Inputs]:
        """Return the pixels of each image, and what else the processor gives."""
        inputs = self._processor(images=images, return_tensors="pt")
        return [{name: values[row] for name, values in inputs.items()} for row in range(len(images))]

    def encode(self, inputs: Sequence[Inputs]) -> Tensor:
        """Return the vectors (N, D)."""
        stacked = {name: torch.stack([one[name] for one in inputs]).to(self._model.device) for name in inputs[0]}
        vectors: Tensor = self._model.get_image_features(**stacked).pooler_output
        return vectors


@torch.no_grad()
def compute_features_vlm(
    vlm: Vlm, examples: Sequence[Example], folder: Path | None = None, track: Track = iter
) -> FeatureTable:
    """Return features from the VLM's own parts, float32. With `folder`, batches are kept there and not computed twice.

    On a CPU the bytes are the same on every instruction set (see `exact_on_cpu`).

    Image: the mean of the image's merged tokens out of the vision tower. Question, answer: the mean input embedding of
    the tokens of the question, and of a blank and the reference answer (as the prompt spells it). Equal images and
    equal texts are encoded once.
    """
    text_tokens = TextTokens.of(vlm.processor.tokenizer)

    def embed(text: str) -> Vectors:
        ids = torch.tensor(text_tokens.ids(text), dtype=torch.long, device=vlm.device)
        return _numpy(_mean(vlm.embed_tokens(ids).double()))

    encoder = VlmImageEncoder(vlm)
    with exact_on_cpu(encoder.module):
        images = image_features(encoder, examples, folder, track)
    return FeatureTable(
        tuple(example.id for example in examples),
        images,
        _encode_texts([example.question for example in examples], lambda texts: [embed(text) for text in texts]),
        _encode_texts([f" {example.answer}" for example in examples], lambda texts: [embed(text) for text in texts]),
    )


@torch.no_grad()
def compute_features_clip(
    source: str,
    examples: Sequence[Example],
    folder: Path | None = None,
    track: Track = iter,
    device: str = "cpu",
) -> FeatureTable:
    """Return features of the CLIP-class model in `source` (a hub id or a folder), float32, in its shared space.

    With `folder`, batches of images are kept there and not computed twice. On a CPU the bytes are the same on every
    instruction set (see `exact_on_cpu`).
    Raises `LeverlabError` when the checkpoint cannot be loaded, lacks a tensor, or has no image and text features.
    """
    model, image_processor, tokenizer = load_clip(source, device)
    length = model.config.text_config.max_position_embeddings
    text_tokens = TextTokens.of(tokenizer)
    whole, own = tokenizer("a").input_ids, text_tokens.ids("a")
    first = next(place for place in range(len(whole)) if whole[place : place + len(own)] == own)
    before, behind = whole[:first], whole[first + len(own) :]  # what belongs around every text
    room = length - len(before) - len(behind)

    def embed(texts: list[str]) -> Iterator[Vectors]:
        for batch in _chunks(texts, IMAGES_PER_BATCH):
            # full length: SigLIP was trained so, and for CLIP padding behind the end token changes nothing
            ids = [[*before, *text_tokens.ids(text)[:room], *behind] for text in batch]
            options = {"padding": "max_length", "max_length": length, "return_tensors": "pt"}
            inputs = tokenizer.pad({"input_ids": ids}, **options).to(device)
            yield from _numpy(model.get_text_features(**inputs).pooler_output)

    with exact_on_cpu(model):
        return FeatureTable(
            tuple(example.id for example in examples),
            image_features(ClipImageEncoder(model, image_processor), examples, folder, track),
            _encode_texts([example.question for example in examples], embed),
            _encode_texts([example.answer for example in examples], embed),
        )


@contextlib.contextmanager
def exact_on_cpu(module: nn.Module) -> Iterator[None]:
    """Let `module` compute in float64 where it is on a CPU; afterwards its tensors have their dtypes and values again.

    CPUs sum in different orders (AVX2, AVX-512, AMX), so bfloat16 and float32 sums differ in their last bits. Sums in
    float64 differ by 1e-16, and rounding to float32 gives the same value but for about one in 1e8. A GPU keeps the
    dtype: no bytes are promised there.
    """
    if next(module.parameters()).device.type != "cpu":
        yield
        return
    dtypes = {name: tensor.dtype for name, tensor in _named_tensors(module)}  # buffers may have another than weights
    module.double()
    try:
        yield
    finally:
        for name, tensor in _named_tensors(module):
            tensor.data = tensor.data.to(dtypes[name])


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def load_clip(source: str, device: str = "cpu") -> tuple[Any, Any, Any]:
    """Return the frozen model, the image processor and the tokenizer of a CLIP-class model.

    Raises `LeverlabError` when the checkpoint cannot be loaded, lacks a tensor, or has no image and text features.
    """
    try:
        image_processor = AutoImageProcessor.from_pretrained(source, backend="pil")
        tokenizer = AutoTokenizer.from_pretrained(source)
        model, report = AutoModel.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
    except Exception as error:  # the library raises OSError, SafetensorError, ValueError and more for a bad checkpoint
        problem = reason_of(error)
        raise LeverlabError(
            f"the encoder '{source}' cannot be loaded ({problem}); prepare.encoder must be 'vlm' or the hub id or "
            "folder of a CLIP-class model"
        ) from error
    lost = sorted(report["missing_keys"]) or [str(key) for key in report["mismatched_keys"]]
    if lost:
        raise LeverlabError(f"the encoder '{source}' lacks the tensors {lost[:5]}; fetch it again")
    if not hasattr(model, "get_image_features") or not hasattr(model, "get_text_features"):
        raise LeverlabError(f"the encoder '{source}' is a {type(model).__name__}, which is no CLIP-class model")
    return model.requires_grad_(False).to(device).eval(), image_processor, tokenizer


@torch.no_grad()
def image_features(
    encoder: ImageEncoder, examples: Sequence[Example], folder: Path | None = None, track: Track = iter
) -> Vectors:
    """Return (N, D): distinct images in batches of one size, each encoded once, and kept in `folder` where there is
    one."""
    distinct = {example.image: example for example in examples}
    batches = image_batches(examples)
    vectors: dict[bytes, Vectors] = {}
    for number, batch in enumerate(track(batches)):
        kept = folder / f"images-{number}.npy" if folder else None
        if kept and kept.exists():
            encoded = _load(kept, len(batch))
        else:
            encoded = _numpy(encoder.encode(encoder.prepare([distinct[content].open_image() for content in batch])))
            if kept:
                _save(kept, encoded)
        vectors.update(zip(batch, encoded, strict=True))
    return np.stack([vectors[example.image] for example in examples])


def image_batches(examples: Sequence[Example]) -> list[list[bytes]]:
    """Return the distinct images of `examples` in batches of one size that fit the memory."""
    by_size: dict[tuple[int, int], list[bytes]] = {}
    for content, example in {example.image: example for example in examples}.items():
        by_size.setdefault(example.size, []).append(content)
    return [
        batch
        for (width, height), contents in by_size.items()
        for batch in _chunks(contents, max(1, min(IMAGES_PER_BATCH, PIXELS_PER_BATCH // (width * height))))
    ]


def _save(path: Path, vectors: Vectors) -> None:
    buffer = io.BytesIO()
    np.save(buffer, vectors)
    write_bytes(path, buffer.getvalue())


def _load(path: Path, rows: int) -> Vectors:
    try:
        vectors: Vectors = np.load(path)
    except (ValueError, EOFError, OSError) as error:
        raise LeverlabError(f"the resume state {path} is damaged ({error}); delete its folder and run again") from None
    if vectors.dtype != np.float32 or vectors.ndim != 2 or len(vectors) != rows:
        raise LeverlabError(
            f"the resume state {path} holds {vectors.dtype} of {vectors.shape}, not float32 of {rows} rows; delete its "
            "folder and run again"
        )
    return vectors


def _encode_texts(texts: Sequence[str], embed: Callable[[list[str]], Iterable[Vectors]]) -> Vectors:
    """Return (N, D); equal texts are embedded once."""
    distinct = list(dict.fromkeys(texts))
    vectors = dict(zip(distinct, embed(distinct), strict=True))
    return np.stack([vectors[text] for text in texts])


def _chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _mean(tokens_TD: Tensor) -> Tensor:
    """Return the mean (D,) of tokens, summed in float32 or better, as float32."""
    return tokens_TD.to(torch.promote_types(tokens_TD.dtype, torch.float32)).mean(0).float()


def _numpy(vectors: Tensor) -> Vectors:
    array: Vectors = vectors.float().cpu().numpy()
    return array
