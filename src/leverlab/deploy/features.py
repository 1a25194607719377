"""Features of new queries from the exported GGUF files alone, for a selector in use: neither torch nor transformers.

They equal those that `leverlab.selector.encoders.compute_features_vlm` made of the demos, up to rounding: of float32
arithmetic, and of the types that the files store.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, Keys, TokenType
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

from leverlab.deploy.vision_tower import VisionTower, require_architecture
from leverlab.errors import LeverlabError
from leverlab.export.gguf_file import checked, decode, read_gguf, shape_of
from leverlab.export.images import ImageLimits
from leverlab.export.tokenizer_fields import QWEN2_SPLIT
from leverlab.texts import normalised

ARCHITECTURE = MODEL_ARCH_NAMES[MODEL_ARCH.QWEN2VL]
_EMBEDDING = "token_embd.weight"


class _Fields(BaseModel):
    """The fields of a text file that say how a text becomes embeddings."""

    model_config = ConfigDict(strict=True, extra="ignore")

    width: PositiveInt = Field(alias=Keys.LLM.EMBEDDING_LENGTH.format(arch=ARCHITECTURE))
    model: str = Field(alias=Keys.Tokenizer.MODEL)
    split: str = Field(alias=Keys.Tokenizer.PRE)
    tokens: list[str] = Field(alias=Keys.Tokenizer.LIST)
    types: list[int] = Field(alias=Keys.Tokenizer.TOKEN_TYPE)
    merges: list[str] = Field(alias=Keys.Tokenizer.MERGES)


class FeatureEncoder:
    """Turns an image, and a text, into the vectors that a selector compares; both are D wide."""

    def __init__(self, tower: VisionTower, text: "TextEmbedding"):
        if tower.features != text.width:
            raise LeverlabError(
                f"{tower.path} makes tokens {tower.features} wide, and {text.path} takes {text.width}; give text and "
                "mmproj of one checkpoint"
            )
        self._tower, self._text = tower, text

    @classmethod
    def load(cls, mmproj: Path, text: Path, images: ImageLimits) -> "FeatureEncoder":
        """Return the encoder of an exported Qwen2.5-VL.

        mmproj, text: the GGUF files of `leverlab.export.gguf`. images: the sizes that images are brought to
        (`leverlab.export.vision_part.image_limits`), which no GGUF file holds. Only fields are read here; the vision
        part is decoded with the first image (4 bytes a parameter), the embedding never as a whole. Raises
        `LeverlabError` when a file is missing, truncated or damaged, when one is not what belongs in its place, and
        when the two are not of one checkpoint's widths.
        """
        return cls(VisionTower(mmproj, images), TextEmbedding(text))

    def image(self, image: Image.Image) -> NDArray[np.float32]:
        """Return the mean (D,) of an image's merged tokens, as `VlmImageEncoder` does.

        The image is seen as `leverlab.images.rgb_image` returns it. Raises the same errors.
        """
        return self._tower.encode(image).mean(axis=0, dtype=np.float64).astype(np.float32)

    def text(self, text: str) -> NDArray[np.float32]:
        """Return the mean input embedding (D,) of a text's tokens, as `compute_features_vlm` does.

        A question goes in as it is, an answer with a blank before it; both are brought into the form of
        `leverlab.texts`. Raises `LeverlabError` for an empty text and for one with half a character (a lone surrogate).
        """
        return self._text.encode(text)


class TextEmbedding:
    """The tokenizer and the input embedding of a text file; `width` is D.

    Raises `LeverlabError` when the file is missing, damaged, no text part of Qwen2.5-VL, or its tokens, merges and
    embedding do not fit each other.
    """

    def __init__(self, path: Path):
        self.path = path
        stored, tensors = read_gguf(path)
        require_architecture(stored, ARCHITECTURE, path)
        fields = checked(_Fields, stored, path)
        shape = shape_of(tensors[_EMBEDDING]) if _EMBEDDING in tensors else None
        if shape != (len(fields.tokens), fields.width):
            raise LeverlabError(
                f"{path}: {_EMBEDDING} has shape {shape}, not {(len(fields.tokens), fields.width)}, tokens and width; "
                "export again"
            )
        self.width, self._embedding, self._tokenizer = fields.width, tensors[_EMBEDDING], _tokenizer(fields, path)

    def encode(self, text: str) -> NDArray[np.float32]:
        """Return the mean input embedding (D,) of the tokens. Raises `LeverlabError` as `FeatureEncoder.text`."""
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise LeverlabError(f"the text {text!r:.80} holds half a character (a lone surrogate); repair its encoding")
        ids = self._tokenizer.encode(normalised(text), add_special_tokens=False).ids
        if not ids:
            raise LeverlabError("a text is empty, so it has no features; give the query a question")
        rows_ND = decode(self._embedding, self.path, np.asarray(ids, dtype=np.int64))
        mean_D = rows_ND.mean(axis=0, dtype=np.float64).astype(np.float32)
        if not np.isfinite(mean_D).all():
            raise LeverlabError(f"{self.path}: {_EMBEDDING} holds NaN or infinite values; export again")
        return mean_D


def _tokenizer(fields: _Fields, path: Path) -> Tokenizer:
    """Return the byte-level BPE tokenizer with the Qwen2 split that the fields describe."""
    ids = {token: index for index, token in enumerate(fields.tokens)}
    problems = {
        f"its tokenizer is {fields.model!r} with the split {fields.split!r}, not 'gpt2' with 'qwen2'": (
            (fields.model, fields.split) != ("gpt2", "qwen2")
        ),
        "it has a token twice": len(ids) != len(fields.tokens),
        f"it has {len(fields.tokens)} tokens and {len(fields.types)} types": len(fields.types) != len(fields.tokens),
        "some byte has no token": not set(pre_tokenizers.ByteLevel.alphabet()) <= ids.keys(),
    }
    for problem, present in problems.items():
        if present:
            raise LeverlabError(f"{path} cannot tokenize text: {problem}; export the checkpoint again")
    try:
        tokenizer = Tokenizer(
            models.BPE(ids, [(left, right) for left, right in (merge.split(" ") for merge in fields.merges)])
        )
    except Exception as error:  # the library knows Exception alone: a merge of what is no token
        raise LeverlabError(f"{path} cannot tokenize text: a merge is not sound ({error}); export again") from None
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in _whole_in_text(fields)])
    return tokenizer


def _whole_in_text(fields: _Fields) -> Iterator[str]:
    """Yield the tokens that are found in a text before it is split: <|im_end|> and its like."""
    for token, kind in zip(fields.tokens, fields.types, strict=True):
        if kind in (TokenType.CONTROL, TokenType.USER_DEFINED):
            yield token
