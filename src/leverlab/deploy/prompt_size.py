"""How many tokens a prompt may take before its demos are picked, and whether llama.cpp can be given its texts."""

import io

from PIL import Image

from leverlab.deploy.bundle import Bundle
from leverlab.deploy.gguf_tokens import read_text_tokens
from leverlab.deploy.llama_cpp import require_plain_texts
from leverlab.errors import LeverlabError
from leverlab.records import Example

_TURN = 32  # tokens that a chat template puts around a question and its answer; Qwen's takes 13
_HEAD = 64  # and before the first turn; Qwen's takes 11


class PromptSize:
    """Bounds on the tokens of prompts of a question with `shots` demos of the bundle's pool.

    Raises the same errors as `require_plain_texts` for a demo of the pool that may be shown.
    """

    def __init__(self, bundle: Bundle, shots: int):
        self._images, self._context = bundle.info.images, bundle.info.context
        self._tokens = read_text_tokens(bundle.file(bundle.info.texts[0]))
        require_plain_texts(bundle.pool if shots else (), (), self._tokens)
        demos = sorted((self._most(demo) for demo in bundle.pool), reverse=True)[:shots] if shots else []
        self._rest = _HEAD + sum(demos) + bundle.info.max_new_tokens

    def may_be_too_long(self, question: Example) -> bool:
        """Return whether a prompt with the longest demos, and its answer, might not fit the context.

        Raises `LeverlabError` when the question does not fit even without demos, and the same errors as
        `require_plain_texts`.
        """
        require_plain_texts((), [question], self._tokens)
        fewest = self._image(question) + len(self._tokens.ids(question.question))
        if fewest >= self._context:
            raise LeverlabError(
                f"the question takes {fewest:,} tokens or more with its image, and a prompt with its demos may have "
                f"{self._context:,} (context in bundle.json); shorten it or drop the row"
            )
        return self._rest + self._most(question) > self._context

    def _most(self, example: Example) -> int:
        texts = sum(len(self._tokens.ids(text)) for text in (example.question, example.answer) if text)
        return self._image(example) + texts + _TURN

    def _image(self, example: Example) -> int:
        with Image.open(io.BytesIO(example.image)) as image:  # reads the header alone
            width, height = self._images.size(image.size)
        return width * height // self._images.side**2
