"""Exported language models in llama.cpp, and dialogues with them: every prompt the tokens that transformers is given.

The file's own chat template is not used. llama.cpp would render a dialogue anew in each turn, and take earlier thoughts
out of it, or thoughts out of an answer; so prompts are token ids, put together by `Chat`, and so are answers.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leverlab.deploy.llama_cpp import _REMEDY, Answer, LlamaCpp, LlamaCppError, Settings
from leverlab.export.images import ImageLimits
from leverlab.lm import llama_worker
from leverlab.lm.chat import Chat
from leverlab.lm.dialogues import Dialogue, reply
from leverlab.lm.questions import Question
from leverlab.lm.rollouts import Growing, Limits, Rollout

_NO_IMAGES = ImageLimits(1, 1, 1)  # which no prompt here holds
_TEXT_REMEDY = {
    "loading": "export the model again",
    "answering with": "look at runtime.context, which the whole dialogue must fit, and export the model again",
}


class TextLlamaCpp(LlamaCpp):
    """A text file, loaded. All else as `LlamaCpp`, of which it is one: failures, restarts, the end of the process.

    context: tokens of the longest dialogue. threads: of the computation. seconds: that loading or one answer may take.
    exact_cache: keys and values in float32 and plain attention, instead of llama.cpp's float16 cache.
    """

    def __init__(
        self, model: Path, context: int, threads: int = 1, seconds: float = 60.0, exact_cache: bool = False
    ) -> None:
        super().__init__(model, None, Settings(_NO_IMAGES, context, threads, seconds, exact_cache))

    def __enter__(self) -> "TextLlamaCpp":
        return self

    def _start(self) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-P", llama_worker.__file__],  # -P: the modules beside it are no top-level ones
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},  # or an abort attaches a debugger
        )
        self._read, self._seen = b"", 0
        settings = self.settings
        try:
            said = self._ask(
                {
                    "model": str(self._files[0]),
                    "mmproj": None,
                    "context": settings.context,
                    "threads": settings.threads,
                    "exact_cache": settings.exact_cache,
                },
                "loading",
            )
        except BaseException:
            self._end()
            raise
        self.load_seconds = float(said["load_seconds"])

    def _ask(self, request: dict[str, Any], doing: str) -> dict[str, Any]:
        try:
            return super()._ask(request, doing)
        except LlamaCppError as error:  # what it advises is on images
            raise LlamaCppError(str(error).replace(_REMEDY[doing], _TEXT_REMEDY[doing])) from None

    def complete(self, prompt: Sequence[int], max_tokens: int, likeliest: int = 1) -> Answer:
        """Return the greedy continuation of the token ids `prompt`, of at most `max_tokens` tokens.

        It ends with the token that ends a turn, which is among its `ids`, or with any other that llama.cpp takes for an
        end (as `<|endoftext|>`). likeliest: how many log-probabilities `top` holds for each token, its own among them.
        Raises `LlamaCppError` when there is none.
        """
        return self.answer([{"prompt": list(prompt)}], max_tokens, likeliest)


@dataclass(frozen=True)
class SaidTurn:
    """A turn in llama.cpp: tokens of its prompt, its own tokens, and for each of them log-probabilities by id."""

    prompt_tokens: int
    ids: tuple[int, ...]
    top: tuple[dict[int, float], ...]


def say_turn(runtime: TextLlamaCpp, prompt: Sequence[int], eos: int, most: int, likeliest: int = 1) -> SaidTurn:
    """Return the greedy turn after the token ids `prompt`, of at most `most` tokens, which only `eos` ends.

    likeliest: as in `TextLlamaCpp.complete`. Raises `LlamaCppError` when llama.cpp fails, or says nothing.
    """
    ids: list[int] = []
    top: list[dict[int, float]] = []
    prompt_tokens = 0
    while len(ids) < most and ids[-1:] != [eos]:  # again after a token that ends texts elsewhere, but no turn here
        said = runtime.complete([*prompt, *ids], most - len(ids), likeliest)
        if not said.ids:
            raise LlamaCppError(f"llama.cpp said nothing after {len(prompt) + len(ids)} tokens; export the model again")
        prompt_tokens = prompt_tokens or said.prompt_tokens
        ids += said.ids
        top += said.top
    return SaidTurn(prompt_tokens, tuple(ids), tuple(top))


def roll_out_in_llama(
    runtime: TextLlamaCpp,
    chat: Chat,
    question: Question,
    limits: Limits,
    user: Callable[[Question, str], str] = reply,
) -> Rollout:
    """Return the greedy dialogue on `question`: `lm.rollouts.roll_out` at temperature 0, its model in llama.cpp.

    Raises `LlamaCppError` when llama.cpp fails, as on a dialogue that is longer than the runtime's context.
    """
    row = Growing(question, chat.prompt(question.text), chat, limits, user)
    while row.end is None:
        said = say_turn(runtime, [*row.prompt, *row.completion], chat.eos, limits.tokens)
        for token, log_probs in zip(said.ids, said.top, strict=True):
            row.next(token, log_probs[token])
        while row.due:
            row.next(chat.pad, 0.0)
    return row.rollout()


def play(runtime: TextLlamaCpp, chat: Chat, questions: Sequence[Question], limits: Limits) -> list[Dialogue]:
    """Return the greedy dialogue on every question. Raises `LlamaCppError` as `roll_out_in_llama`."""
    return [roll_out_in_llama(runtime, chat, question, limits).dialogue for question in questions]
