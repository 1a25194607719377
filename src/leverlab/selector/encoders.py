"""Encoders: from examples to the vectors that samplers, baselines and the selector compare."""

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from leverlab.errors import LeverlabError
from leverlab.files import write_bytes
from leverlab.records import Example
from leverlab.selector.features import FeatureTable, Vectors
from leverlab.vlm.model import Vlm
from leverlab.vlm.vision import encode_images

IMAGES_PER_BATCH = 256
PIXELS_PER_BATCH = 256 * 128 * 128  # large images come in smaller batches, or their patches fill the memory
Track = Callable[[list[list[bytes]]], Iterable[list[bytes]]]  # yields the batches of images it gets, shows progress


@torch.no_grad()
def compute_features_vlm(
    vlm: Vlm, examples: Sequence[Example], folder: Path | None = None, track: Track = iter
) -> FeatureTable:
    """Return features from the VLM's own parts, float32. With `folder`, batches are kept there and not computed twice.

    Image: the mean of the image's merged tokens out of the vision tower. Question, answer: the mean input embedding of
    the tokens of the question, and of a blank and the reference answer (as the prompt spells it). Equal images and
    equal texts are encoded once.
    """

    def encode(images: list[Any]) -> Tensor:
        inputs = vlm.processor.image_processor(images=images, return_tensors="pt").to(vlm.device)
        merged = encode_images(vlm.model, inputs["pixel_values"], inputs["image_grid_thw"])
        return torch.stack([tokens.float().mean(0) for tokens in merged])

    def embed(text: str) -> Vectors:
        ids = vlm.processor.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids[0]
        return _numpy(vlm.embed_tokens(ids.to(vlm.device)).float().mean(0))

    return FeatureTable(
        tuple(example.id for example in examples),
        _encode_images(examples, encode, folder, track),
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

    With `folder`, batches of images are kept there and not computed twice.
    Raises `LeverlabError` when the checkpoint cannot be loaded, lacks a tensor, or has no image and text features.
    """
    try:
        image_processor = AutoImageProcessor.from_pretrained(source, backend="pil")
        tokenizer = AutoTokenizer.from_pretrained(source)
        model, report = AutoModel.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
    except Exception as error:  # the library raises OSError, SafetensorError, ValueError and more for a bad checkpoint
        problem = " ".join(str(error).split())[:300]
        raise LeverlabError(
            f"the encoder '{source}' cannot be loaded ({problem}); prepare.encoder must be 'vlm' or the hub id or "
            "folder of a CLIP-class model"
        ) from error
    lost = sorted(report["missing_keys"]) or [str(key) for key in report["mismatched_keys"]]
    if lost:
        raise LeverlabError(f"the encoder '{source}' lacks the tensors {lost[:5]}; fetch it again")
    if not hasattr(model, "get_image_features") or not hasattr(model, "get_text_features"):
        raise LeverlabError(f"the encoder '{source}' is a {type(model).__name__}, which is no CLIP-class model")
    model = model.to(device).eval()
    length = model.config.text_config.max_position_embeddings

    def encode(images: list[Any]) -> Tensor:
        inputs = image_processor(images=images, return_tensors="pt").to(device)
        vectors: Tensor = model.get_image_features(**inputs).pooler_output
        return vectors

    def embed(texts: list[str]) -> Iterator[Vectors]:
        for batch in _chunks(texts, IMAGES_PER_BATCH):
            # full length: SigLIP was trained so, and for CLIP padding behind the end token changes nothing
            options = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
            yield from _numpy(model.get_text_features(**tokenizer(batch, **options).to(device)).pooler_output)

    return FeatureTable(
        tuple(example.id for example in examples),
        _encode_images(examples, encode, folder, track),
        _encode_texts([example.question for example in examples], embed),
        _encode_texts([example.answer for example in examples], embed),
    )


def _encode_images(
    examples: Sequence[Example], encode: Callable[[list[Any]], Tensor], folder: Path | None, track: Track
) -> Vectors:
    """Return (N, D): distinct images in batches of one size, each encoded once, and kept in `folder` where there is
    one."""
    distinct = {example.image: example for example in examples}
    by_size: dict[tuple[int, int], list[bytes]] = {}
    for content, example in distinct.items():
        by_size.setdefault(example.open_image().size, []).append(content)
    batches = [
        batch
        for (width, height), contents in by_size.items()
        for batch in _chunks(contents, max(1, min(IMAGES_PER_BATCH, PIXELS_PER_BATCH // (width * height))))
    ]
    vectors: dict[bytes, Vectors] = {}
    for number, batch in enumerate(track(batches)):
        kept = folder / f"images-{number}.npy" if folder else None
        if kept and kept.exists():
            encoded = _load(kept, len(batch))
        else:
            encoded = _numpy(encode([distinct[content].open_image() for content in batch]))
            if kept:
                _save(kept, encoded)
        vectors.update(zip(batch, encoded, strict=True))
    return np.stack([vectors[example.image] for example in examples])


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


def _numpy(vectors: Tensor) -> Vectors:
    array: Vectors = vectors.float().cpu().numpy()
    return array
