"""Features of new queries from the exported GGUF files alone, for a selector in use: neither torch nor transformers.

They equal those that `leverlab.selector.encoders.compute_features_vlm` made of the demos, up to rounding: of float32
arithmetic, and of the types that the files store.
"""

from pathlib import Path

import numpy as np
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, Keys
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, PositiveInt

from leverlab.deploy.gguf_tokens import TokenizerFields, text_tokens
from leverlab.deploy.vision_tower import VisionTower, require_architecture
from leverlab.errors import LeverlabError
from leverlab.export.gguf_file import checked, decode, read_gguf, shape_of
from leverlab.export.images import ImageLimits
from leverlab.texts import normalised

ARCHITECTURE = MODEL_ARCH_NAMES[MODEL_ARCH.QWEN2VL]
_EMBEDDING = "token_embd.weight"


class _Fields(TokenizerFields):
    """The fields of a text file that say how a text becomes embeddings."""

    width: PositiveInt = Field(alias=Keys.LLM.EMBEDDING_LENGTH.format(arch=ARCHITECTURE))


class FeatureEncoder:
    """Turns an image, and a text, into the vectors that a selector compares; both are D wide."""

    def __init__(self, tower: VisionTower, text: "TextEmbedding"):
        if tower.features != text.width:
            raise LeverlabError(
                f"{tower.path} makes tokens {tower.features} wide, and {text.path} takes {text.width}; give text and "
                "mmproj of one checkpoint"
            )
        self._tower, self._text, self.text_tokens = tower, text, text.text_tokens

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
    """The tokens and the input embedding of a text file; `width` is D.

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
        self.width, self._embedding = fields.width, tensors[_EMBEDDING]
        self.text_tokens = text_tokens(fields, path)

    def encode(self, text: str) -> NDArray[np.float32]:
        """Return the mean input embedding (D,) of the tokens. Raises `LeverlabError` as `FeatureEncoder.text`."""
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise LeverlabError(f"the text {text!r:.80} holds half a character (a lone surrogate); repair its encoding")
        ids = self.text_tokens.ids(normalised(text))
        if not ids:
            raise LeverlabError("a text is empty, so it has no features; give the query a question")
        rows_ND = decode(self._embedding, self.path, np.asarray(ids, dtype=np.int64))
        mean_D = rows_ND.mean(axis=0, dtype=np.float64).astype(np.float32)
        if not np.isfinite(mean_D).all():
            raise LeverlabError(f"{self.path}: {_EMBEDDING} holds NaN or infinite values; export again")
        return mean_D
