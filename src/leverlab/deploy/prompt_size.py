"""How many tokens a prompt may take before its demos are picked: bounds that need no tokenizer.

Byte-level BPE makes one token or more of every piece of Qwen's split, and at most one of every byte.
"""

import io

from PIL import Image
from tokenizers import Regex, pre_tokenizers

from leverlab.deploy.bundle import Bundle
from leverlab.errors import LeverlabError
from leverlab.export.tokenizer_fields import QWEN2_SPLIT
from leverlab.records import Example

_TURN = 32  # tokens that a chat template puts around a question and its answer; Qwen's takes 13
_HEAD = 64  # and before the first turn; Qwen's takes 11


class PromptSize:
    """Bounds on the tokens of prompts of a question with `shots` demos of the bundle's pool."""

    def __init__(self, bundle: Bundle, shots: int):
        self._images, self._context = bundle.info.images, bundle.info.context
        demos = sorted((self._most(demo) for demo in bundle.pool), reverse=True)[:shots] if shots else []
        self._rest = _HEAD + sum(demos) + bundle.info.max_new_tokens
        self._split = pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated")

    def may_be_too_long(self, question: Example) -> bool:
        """Return whether a prompt with the longest demos, and its answer, might not fit the context.

        Raises `LeverlabError` when the question does not fit even without demos.
        """
        fewest = self._image(question) + len(self._split.pre_tokenize_str(question.question))
        if fewest >= self._context:
            raise LeverlabError(
                f"the question takes {fewest:,} tokens or more with its image, and a prompt with its demos may have "
                f"{self._context:,} (context in bundle.json); shorten it or drop the row"
            )
        return self._rest + self._most(question) > self._context

    def _most(self, example: Example) -> int:
        return self._image(example) + len(f"{example.question}{example.answer}".encode()) + _TURN

    def _image(self, example: Example) -> int:
        with Image.open(io.BytesIO(example.image)) as image:  # reads the header alone
            width, height = self._images.size(image.size)
        return width * height // self._images.side**2
