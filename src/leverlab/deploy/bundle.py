"""The bundle: a trained selector, its pool and the exported answering model in one folder, to use without the pipeline.

Picking demos needs neither torch nor transformers: features of a new image and question come from the GGUF files.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from leverlab.config.gguf import kind_of, text_file
from leverlab.deploy.features import FeatureEncoder
from leverlab.errors import LeverlabError
from leverlab.export.images import ImageLimits
from leverlab.files import path_inside
from leverlab.images import decode_image, pixel_digest
from leverlab.library_errors import reason_of
from leverlab.records import Example, read_examples
from leverlab.selector.candidates import SAMPLERS, draw_candidates
from leverlab.selector.features import FeatureTable, Vectors, read_features
from leverlab.selector.inference import InferenceSelector
from leverlab.texts import normalised

INFO, SELECTOR, SETTINGS, POOL, FEATURES = (
    "bundle.json",
    "selector.safetensors",
    "config.json",
    "pool.parquet",
    "features.parquet",
)
SMALL = (SELECTOR, SETTINGS, POOL, FEATURES)  # their digests are checked on loading, of the GGUF files on their use
VLM_ENCODER = "vlm"  # features come from the answering model itself


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class BundledFile(_Strict):
    """One file of the bundle."""

    bytes: int = Field(ge=1)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class BundleInfo(_Strict):
    """What bundle.json says.

    files: by name. texts: the GGUF files of the text part, the most exact first; mmproj: the vision part. encoder: what
    makes the features, `vlm` for the answering model itself. images: the sizes that images are brought to. context:
    tokens of a prompt with its answer. equal_picks: of `compared_picks` on validation questions, how many come out
    equal when features are made from the bundle's files instead of the pipeline's. gates, params: the pipeline's;
    inputs: digests of all that went into the bundle.
    """

    format: Literal["leverlab-bundle-1"] = "leverlab-bundle-1"
    method: str
    seed: int
    epoch: int
    val_accuracy: float = Field(ge=0, le=1)
    shots: int = Field(ge=1)
    sampler: str
    candidates: int = Field(ge=1)
    sampler_seed: int = Field(ge=0)
    encoder: str
    vlm: str
    texts: list[str] = Field(min_length=1)
    mmproj: str
    images: ImageLimits
    context: int = Field(ge=1)
    max_new_tokens: int = Field(ge=1)
    compared_picks: int
    equal_picks: int
    files: dict[str, BundledFile]
    gates: list[dict[str, Any]]
    params: dict[str, Any]
    inputs: dict[str, str]


class PoolSelector:
    """A selector before a pool whose demos are encoded once. features: of the pool's demos."""

    def __init__(self, selector: InferenceSelector, features: FeatureTable):
        self._selector, self._features = selector, features
        self._encoded_NW = selector.encode((features.image_ND, features.question_ND, features.answer_ND))

    def pick(self, vectors: tuple[Vectors, Vectors], candidates: Sequence[str], shots: int) -> list[tuple[str, float]]:
        """Return ids and probabilities of the demos for a question, best first: `shots`, or fewer where it stops.

        vectors: image and question features, (1, D) each.
        """
        rows = self._features.rows(candidates)
        picks, scores = self._selector.pick_encoded(vectors, self._encoded_NW[None, rows], shots)
        found = zip(picks[0].tolist(), scores[0].tolist(), strict=True)
        return [(candidates[pick], score) for pick, score in found if pick < len(candidates)]


@dataclass(frozen=True)
class Pick:
    """A demo that the selector picked, and the probability that it gave to it among the candidates, in [0, 1]."""

    demo: Example
    score: float


class Bundle:
    """A bundle in use.

    Raises `LeverlabError` when a file of it is missing, cut, changed or outside of its folder, or its pool is empty.
    """

    def __init__(self, folder: Path):
        self.folder, self.info = folder, _read_info(folder)
        _check_files(folder, self.info)
        self.pool = read_examples(folder / POOL, with_pixels=True)
        if len(self.pool) < self.info.candidates:
            raise LeverlabError(
                f"{folder / POOL} holds {len(self.pool)} demos, fewer than the {self.info.candidates} candidates of a "
                "question; make the bundle again with dvc repro bundle"
            )
        self.demos = {demo.id: demo for demo in self.pool}
        self.features = read_features(folder / FEATURES)
        self.selector = PoolSelector(InferenceSelector.load(folder), self.features)
        self._checked: set[str] = set()
        self._image_ids = {demo.pixels: demo.image_id for demo in self.pool}

    @cached_property
    def encoder(self) -> FeatureEncoder:
        """The encoder of new images and questions. Raises `LeverlabError` when the bundle cannot have one."""
        if self.info.encoder != VLM_ENCODER:
            raise LeverlabError(
                f"this selector reads features of '{self.info.encoder}', which the bundle does not hold; train with "
                "prepare.encoder = vlm and sft.encoder.train = none"
            )
        return FeatureEncoder.load(self.file(self.info.mmproj), self.file(self.info.texts[0]), self.info.images)

    @property
    def default_kind(self) -> str:
        """The type that answers unless another one is asked for."""
        return kind_of(default_text(self.info.texts))

    def file(self, name: str) -> Path:
        """Return the path of a GGUF file. Raises `LeverlabError` when it is not the one that bundle.json lists."""
        if name not in self._checked:
            _check_digest(self.folder / name, self.info.files[name])
            self._checked.add(name)
        return self.folder / name

    def question(self, image: bytes, question: str) -> Example:
        """Return a new question about an encoded image (PNG, JPEG …), named by a digest of its pixels and the text.

        Raises `LeverlabError` when the image cannot be decoded or is too thin, and when the question is empty or badly
        encoded.
        """
        if any("\ud800" <= letter <= "\udfff" for letter in question):
            raise LeverlabError(f"the question {question!r:.80} holds half a character; repair its encoding")
        if not question.strip():
            raise LeverlabError("the question is empty; ask something about the image")
        pixels = pixel_digest(decode_image(image))
        name = hashlib.sha256(f"{pixels} {normalised(question)}".encode()).hexdigest()[:16]
        return Example(name, image, self._image_ids.get(pixels, f"image-{name}"), question, "", ("?",))

    def pick(self, question: Example, shots: int) -> list[Pick]:
        """Return the demos for `question`, best first: `shots` of them, or fewer where the policy stops.

        The bundle's sampler draws the candidates; the same question gets the same ones. Raises `LeverlabError` for a
        shot count that the selector was not trained for.
        """
        self.check_shots(shots)
        if shots == 0:
            return []
        vectors = self.vectors(question)
        found = self.selector.pick(vectors, self.candidates(question, vectors), shots)
        return [Pick(self.demos[demo], score) for demo, score in found]

    def check_shots(self, shots: int) -> None:
        """Raise `LeverlabError` for a shot count that the selector was not trained for."""
        if not 0 <= shots <= self.info.shots:
            raise LeverlabError(f"{shots} shots were asked for; this selector picks 0 to {self.info.shots}")

    def vectors(self, question: Example) -> tuple[Vectors, Vectors]:
        """Return image and question features, (1, D) each. Raises `LeverlabError` as `encoder`."""
        image, text = self.encoder.image(question.open_image()), self.encoder.text(question.question)
        return image[None], text[None]

    def candidates(self, question: Example, vectors: tuple[Vectors, Vectors]) -> list[str]:
        """Return the ids of the demos that the sampler offers for `question` with these features."""
        known, info = self.features, self.info
        nothing = np.zeros((1, known.answer_ND.shape[1]), dtype=np.float32)
        table = FeatureTable(
            (*known.ids, question.id),
            np.concatenate([known.image_ND, vectors[0]]),
            np.concatenate([known.question_ND, vectors[1]]),
            np.concatenate([known.answer_ND, nothing]),
        )
        drawn = draw_candidates(
            info.sampler, "new", [question], self.pool, table, info.candidates, sets=1, seed=info.sampler_seed
        )
        return list(drawn[0].candidates)


def _read_info(folder: Path) -> BundleInfo:
    path = folder / INFO
    try:
        info = BundleInfo.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise LeverlabError(f"{folder} is no bundle: {INFO} is missing; make one with dvc repro bundle") from None
    except (OSError, ValidationError) as error:
        problem = reason_of(error)
        raise LeverlabError(f"{path} cannot be read ({problem}); make the bundle again with dvc repro bundle") from None
    if info.sampler not in SAMPLERS or not set(info.texts) | {info.mmproj, *SMALL} <= info.files.keys():
        raise LeverlabError(f"{path} names an unknown sampler, or files that it does not list; make the bundle again")
    return info


def _check_files(folder: Path, info: BundleInfo) -> None:
    for name, expected in info.files.items():
        path = path_inside(folder, name)
        if not path.is_file():
            raise LeverlabError(f"the bundle lacks {path}; copy it whole, or make it again with dvc repro bundle")
        size = path.stat().st_size
        if size != expected.bytes:
            raise LeverlabError(
                f"{path} has {size:,} bytes, not the {expected.bytes:,} of {INFO}: it is cut, or of another bundle; "
                "copy it again"
            )
        if name in SMALL:
            _check_digest(path, expected)


def _check_digest(path: Path, expected: BundledFile) -> None:
    if digest_of(path) != expected.sha256:
        raise LeverlabError(f"{path} is not the file that {INFO} lists; copy it again")


def default_text(texts: Sequence[str]) -> str:
    """Return the text file that answers by default: half the size of the most exact one, and the same answers."""
    half = text_file("q8_0")
    return half if half in texts else texts[0]


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
