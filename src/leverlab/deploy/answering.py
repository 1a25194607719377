"""Engines that answer a prompt of demos and a question: llama.cpp with a file of the bundle, or transformers."""

import contextlib
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from leverlab.config.gguf import kind_of, text_file
from leverlab.deploy.bundle import Bundle
from leverlab.deploy.llama_cpp import LlamaCpp, Settings, chat_messages
from leverlab.errors import LeverlabError
from leverlab.evaluation.quantised import TRANSFORMERS
from leverlab.nearest import did_you_mean
from leverlab.records import Example

Prompt = tuple[Sequence[Example], Example]  # demos and the question


class Engine(Protocol):
    """Something that answers. batch: how many prompts it is best given at once."""

    batch: int

    def answer(self, demos: Sequence[Example], question: Example) -> str:
        """Return the greedy answer, without surrounding space."""

    def answers(self, prompts: Sequence[Prompt]) -> list[str]:
        """Return the greedy answer to each prompt."""


class LlamaCppEngine:
    """A text file of a bundle in llama.cpp, which computes every prompt alone: the same bytes in any order."""

    batch = 1

    def __init__(self, model: LlamaCpp, max_new_tokens: int):
        self._model, self._max_new_tokens = model, max_new_tokens

    def answer(self, demos: Sequence[Example], question: Example) -> str:
        """Return the greedy answer. Raises `LlamaCppError` when the runtime fails, or cannot be given a text."""
        messages = chat_messages(demos, question, self._model.settings.images, self._model.text_tokens)
        return self._model.answer(messages, self._max_new_tokens).text

    def answers(self, prompts: Sequence[Prompt]) -> list[str]:
        """Return the greedy answer to each prompt. Raises the same errors as `answer`."""
        return [self.answer(demos, question) for demos, question in prompts]


class TransformersEngine:
    """The checkpoint that the bundle was exported from, in transformers and float32."""

    batch = 8

    def __init__(self, source: str, max_new_tokens: int):
        from leverlab.vlm.model import GREEDY, load_vlm  # torch and transformers, for this engine alone
        from leverlab.vlm.prompt import PromptFormat

        self._vlm = load_vlm(source, "float32")
        self._options = GREEDY | {"max_new_tokens": max_new_tokens}
        self._format = PromptFormat(self._vlm.processor)

    def answer(self, demos: Sequence[Example], question: Example) -> str:
        """Return the greedy answer."""
        return self.answers([(demos, question)])[0]

    def answers(self, prompts: Sequence[Prompt]) -> list[str]:
        """Return the greedy answer to each prompt; all are computed at once, shorter ones padded on the left."""
        inputs = _left_padded([self._format.inputs(*prompt) for prompt in prompts])
        on_device = {name: values.to(self._vlm.device) for name, values in inputs.items()}
        ids = self._vlm.model.generate(**on_device, **self._options)
        return [self._format.decode(row.tolist()) for row in ids[:, inputs["input_ids"].shape[1] :]]


def _left_padded(rows: Sequence[Any]) -> dict[str, Any]:
    """Return the inputs of single prompts as those of one batch: tokens side by side, images one after the other."""
    import torch

    lengths = [row["input_ids"].shape[1] for row in rows]
    joined = {}
    for name, values in rows[0].items():
        parts = [row[name] for row in rows]
        if values.shape[:2] == rows[0]["input_ids"].shape:  # one value a token; padding has the mask 0
            parts = [
                torch.nn.functional.pad(part, (max(lengths) - length, 0))
                for part, length in zip(parts, lengths, strict=True)
            ]
        joined[name] = torch.cat(parts)
    return joined


def checked_kind(bundle: Bundle, kind: str | None) -> str:
    """Return the engine that answers: `kind`, or the default for None. Nothing is loaded.

    Raises `LeverlabError` when the bundle has no such file, and for `transformers` when the checkpoint, or the library,
    is not on this machine.
    """
    info, kind = bundle.info, kind or bundle.default_kind
    kinds = ", ".join(map(kind_of, info.texts))
    if kind == TRANSFORMERS:
        if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")):
            raise LeverlabError(f"the engine {TRANSFORMERS} needs torch and transformers; install them, or use {kinds}")
        if checkpoint(bundle) is None:
            raise LeverlabError(
                f"the engine {TRANSFORMERS} needs the checkpoint '{info.vlm}' that the bundle was exported from, which "
                f"is not on this machine; copy it to {bundle.folder / info.vlm}, or use {kinds}"
            )
    elif text_file(kind) not in info.texts:
        others = f" and {TRANSFORMERS}" if checkpoint(bundle) else ""
        every = [TRANSFORMERS, *map(kind_of, info.texts)]
        raise LeverlabError(f"the bundle has no engine '{kind}'; it has {kinds}{others}{did_you_mean(kind, every)}")
    return kind


def checkpoint(bundle: Bundle) -> Path | None:
    """Return the folder of the checkpoint that the bundle was exported from, None where it is not on this machine.

    It is looked for in the bundle, from the working directory, from the root of the DVC repository around the bundle,
    and in the cache of the hub. Nothing is fetched.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    source, here = bundle.info.vlm, bundle.folder.resolve()
    root = next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), here)
    for folder in (here / source, Path(source), root / source):
        if _is_checkpoint(folder):
            return folder
    try:
        cached = try_to_load_from_cache(source, "config.json")
    except HFValidationError:  # a path
        return None
    return Path(cached).parent if isinstance(cached, str) and _is_checkpoint(Path(cached).parent) else None


def _is_checkpoint(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


@contextlib.contextmanager
def engine(bundle: Bundle, kind: str | None, threads: int, seconds: float) -> Iterator[Engine]:
    """Yield the engine `kind`: the type of one of the bundle's text files, `transformers`, or None for the default.

    Raises the same errors as `checked_kind`, and `LeverlabError` when the engine cannot be loaded.
    """
    info, kind = bundle.info, checked_kind(bundle, kind)
    if kind == TRANSFORMERS:
        yield TransformersEngine(str(checkpoint(bundle)), info.max_new_tokens)
        return
    name = text_file(kind)
    settings = Settings(info.images, info.context, threads, seconds)
    with LlamaCpp(bundle.file(name), bundle.file(info.mmproj), settings) as model:
        yield LlamaCppEngine(model, info.max_new_tokens)
