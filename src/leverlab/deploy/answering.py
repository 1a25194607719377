"""Engines that answer a prompt of demos and a question: llama.cpp with a file of the bundle, or transformers."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Protocol

from leverlab.config.gguf import kind_of, text_file
from leverlab.deploy.bundle import Bundle
from leverlab.deploy.llama_cpp import LlamaCpp, Settings, chat_messages, require_plain_texts
from leverlab.errors import LeverlabError
from leverlab.evaluation.quantised import TRANSFORMERS
from leverlab.records import Example


class Engine(Protocol):
    """Something that answers."""

    def answer(self, demos: Sequence[Example], question: Example) -> str:
        """Return the greedy answer, without surrounding space."""

    def check(self, demos: Sequence[Example], questions: Sequence[Example]) -> None:
        """Raise `LeverlabError` naming an example with a text that the engine cannot be given."""


class LlamaCppEngine:
    """A text file of a bundle in llama.cpp."""

    def __init__(self, model: LlamaCpp, max_new_tokens: int):
        self._model, self._max_new_tokens = model, max_new_tokens

    def answer(self, demos: Sequence[Example], question: Example) -> str:
        """Return the greedy answer. Raises `LlamaCppError` when the runtime fails, or cannot be given a text."""
        messages = chat_messages(demos, question, self._model.settings.images, self._model.text_tokens)
        return self._model.answer(messages, self._max_new_tokens).text

    def check(self, demos: Sequence[Example], questions: Sequence[Example]) -> None:
        """Raise the same errors as `require_plain_texts`."""
        require_plain_texts(demos, questions, self._model.text_tokens)


class TransformersEngine:
    """The checkpoint that the bundle was exported from, in transformers and float32."""

    def __init__(self, source: str, max_new_tokens: int):
        from leverlab.vlm.model import GREEDY, load_vlm  # torch and transformers, for this engine alone
        from leverlab.vlm.prompt import PromptFormat

        self._vlm = load_vlm(source, "float32")
        self._options = GREEDY | {"max_new_tokens": max_new_tokens}
        self._format = PromptFormat(self._vlm.processor)

    def answer(self, demos: Sequence[Example], question: Example) -> str:
        """Return the greedy answer."""
        inputs = self._format.inputs(demos, question).to(self._vlm.device)
        ids = self._vlm.model.generate(**inputs, **self._options)
        return self._format.decode(ids[0, inputs["input_ids"].shape[1] :].tolist())

    def check(self, demos: Sequence[Example], questions: Sequence[Example]) -> None:
        """Pass: this engine reads every text."""


@contextlib.contextmanager
def engine(bundle: Bundle, kind: str | None, threads: int, seconds: float) -> Iterator[Engine]:
    """Yield the engine `kind`: the type of one of the bundle's text files, `transformers`, or None for the default.

    Raises `LeverlabError` when the bundle has no such file, or the engine cannot be loaded.
    """
    info, kind = bundle.info, kind or bundle.default_kind
    if kind == TRANSFORMERS:
        yield TransformersEngine(info.vlm, info.max_new_tokens)
        return
    name = text_file(kind)
    if name not in info.texts:
        kinds = ", ".join(map(kind_of, info.texts))
        raise LeverlabError(f"the bundle has no engine '{kind}'; it has {kinds} and {TRANSFORMERS}")
    settings = Settings(info.images, info.context, threads, seconds)
    with LlamaCpp(bundle.file(name), bundle.file(info.mmproj), settings) as model:
        yield LlamaCppEngine(model, info.max_new_tokens)
