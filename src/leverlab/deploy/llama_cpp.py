"""llama.cpp as a runtime for exported models, in a process that may die or hang without harm to its caller."""

import base64
import contextlib
import importlib.util
import json
import math
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from leverlab.deploy import llama_worker
from leverlab.deploy.gguf_tokens import read_text_tokens
from leverlab.errors import LeverlabError
from leverlab.export.images import ImageLimits
from leverlab.records import Example
from leverlab.text_tokens import TextTokens
from leverlab.texts import normalised

PACKAGE = "xllamacpp"
Message = dict[str, Any]
_LAST_WORDS = 5.0  # seconds that a process may take to end after it has said that it cannot load
_REMEDY = {
    "loading": "export the model again, and give it the mmproj file of the same checkpoint",
    "answering with": "look at the prompt's images, and at runtime.context, which the prompt must fit",
}


class LlamaCppError(LeverlabError):
    """llama.cpp is not there, died, hung or refused; the message says which, for which file, and what to do."""


@dataclass(frozen=True)
class Settings:
    """How a model is run.

    images: sizes that images are brought to. context: tokens of the longest prompt with its answer. threads: of the
    computation. seconds: that loading or one answer may take. exact_cache: keys and values in float32 and plain
    attention, instead of llama.cpp's float16 cache.
    """

    images: ImageLimits
    context: int
    threads: int = 1
    seconds: float = 60.0
    exact_cache: bool = False


@dataclass(frozen=True)
class Answer:
    """A greedy answer: `text` without surrounding space.

    ids: its tokens, and top: for each of them the log-probabilities of the likeliest tokens, by id; both empty unless
    asked for. The rest was measured: tokens of the prompt, seconds in all, tokens per second.
    """

    text: str
    prompt_tokens: int
    ids: tuple[int, ...]
    top: tuple[dict[int, float], ...]
    seconds: float
    prompt_per_second: float
    predicted_per_second: float


def available() -> bool:
    """Return whether the runtime is installed."""
    return importlib.util.find_spec(PACKAGE) is not None


def require_plain_texts(demos: Sequence[Example], questions: Sequence[Example], text_tokens: TextTokens) -> None:
    """Raise `LlamaCppError` naming the first example whose text in a prompt spells a control token.

    llama.cpp reads control tokens in a prompt with images wherever they are spelled, in users' text too, and takes such
    a prompt as text alone (`mtmd_tokenize` is called with `parse_special`), so it cannot be given these texts.
    """
    asked = [(example.id, "question", example.question) for example in (*demos, *questions)]
    for name, part, text in [*asked, *((demo.id, "answer", demo.answer) for demo in demos)]:
        if (found := text_tokens.control_in(text)) is not None:
            raise LlamaCppError(
                f"the {part} of '{name}' spells {found!r}, which llama.cpp would read as a control token; change or "
                "drop that row, or answer with transformers"
            )


def chat_messages(
    demos: Sequence[Example], question: Example, images: ImageLimits, text_tokens: TextTokens
) -> list[Message]:
    """Return a prompt in the words of the chat completions interface, images as data URIs.

    images: the sizes that images are brought to, as PNG files. llama.cpp would decode and resize in other ways than
    transformers, and reads fewer formats. text_tokens: of the model that is to answer. Raises `LeverlabError` when an
    image cannot be decoded or is too narrow, and the same errors as `require_plain_texts`.
    """
    require_plain_texts(demos, [question], text_tokens)
    messages: list[Message] = []
    for example in (*demos, question):
        content = images.fitting_png(example.open_image())
        url = f"data:image/png;base64,{base64.b64encode(content).decode()}"
        image = {"type": "image_url", "image_url": {"url": url}}
        messages.append({"role": "user", "content": [image, {"type": "text", "text": example.question}]})
        messages.append({"role": "assistant", "content": example.answer})
    return messages[:-1]


class LlamaCpp:
    """A text file and its vision file, loaded. A context manager: the process ends with it.

    A process that died or hung is started again by the next request. Raises `LlamaCppError` when the runtime is not
    installed, or does not load the files.
    """

    def __init__(self, model: Path, mmproj: Path | None, settings: Settings):
        if not available():
            raise LlamaCppError(
                f"llama.cpp's runtime '{PACKAGE}' is not installed, so {model} was not run; pip install -r "
                "requirements.txt"
            )
        self._files, self.settings, self._closed = (model, mmproj), settings, False
        self._model = f"{model}{'' if mmproj is None else f' with {mmproj}'}"
        self._start()

    def _start(self) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [sys.executable, llama_worker.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},  # or an abort attaches a debugger
        )
        self._read, self._seen = b"", 0
        (model, mmproj), settings = self._files, self.settings
        try:
            said = self._ask(
                {
                    "model": str(model),
                    "mmproj": None if mmproj is None else str(mmproj),
                    "image_tokens": settings.images.tokens,
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

    @cached_property
    def text_tokens(self) -> TextTokens:
        """The tokens of the text file. Raises `LeverlabError` when it has no tokenizer that is known here."""
        return read_text_tokens(self._files[0])

    def answer(self, messages: Sequence[Message], max_tokens: int, top_logprobs: int = 0) -> Answer:
        """Return the greedy answer of at most `max_tokens` tokens. Raises `LlamaCppError` when there is none."""
        request = {"messages": list(messages), "max_tokens": max_tokens, "top_logprobs": top_logprobs}
        if self._closed:
            raise LlamaCppError(f"llama.cpp with {self._model} is closed; load it again")
        if self._process.poll() is not None:
            self._end()
            self._start()
        said = self._ask(request, "answering with")
        return Answer(
            text=normalised(str(said["text"])).strip(),
            prompt_tokens=int(said["prompt_tokens"]),
            ids=tuple(said["ids"]),
            top=tuple({int(token): _number(value) for token, value in tokens} for tokens in said["top"]),
            seconds=said["seconds"],
            prompt_per_second=said["prompt_per_second"],
            predicted_per_second=said["predicted_per_second"],
        )

    def resident_mib(self) -> float:
        """Return the resident memory of the process, in MiB."""
        return float(psutil.Process(self._process.pid).memory_info().rss) / 2**20

    def close(self) -> None:
        """End the process."""
        self._closed = True
        self._end()

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            with contextlib.suppress(OSError):  # a pipe with bytes that nobody took
                stream.close()  # type: ignore[union-attr]

    def __enter__(self) -> "LlamaCpp":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, request: dict[str, Any], doing: str) -> dict[str, Any]:
        stdin = self._process.stdin
        assert stdin is not None
        self._seen = os.fstat(self._log.fileno()).st_size
        try:
            stdin.write(json.dumps(request).encode() + b"\n")
            stdin.flush()
        except OSError:
            raise self._died(doing) from None
        said: dict[str, Any] = json.loads(self._line(doing))
        if "error" in said:
            if doing == "loading":  # the process ends by itself, and its log is whole then
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(_LAST_WORDS)
            logged = self._logged()
            raise LlamaCppError(
                f"llama.cpp refused {doing} {self._model}: {' '.join(said['error'].split())[:300]}{logged}; "
                f"{_REMEDY[doing]}"
            )
        return said

    def _line(self, doing: str) -> bytes:
        """Return the next line of the process, which must come within the time limit."""
        stdout = self._process.stdout
        assert stdout is not None
        limit = time.monotonic() + self.settings.seconds
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while b"\n" not in self._read:
                if not selector.select(max(0.0, limit - time.monotonic())):
                    self._process.kill()
                    self._process.wait()
                    raise LlamaCppError(
                        f"llama.cpp did not end {doing} {self._model} within {self.settings.seconds:g} seconds and "
                        "was stopped; raise runtime.seconds if the model is large"
                    )
                part = os.read(stdout.fileno(), 1 << 16)
                if not part:
                    raise self._died(doing)
                self._read += part
        line, _, self._read = self._read.partition(b"\n")
        return line

    def _died(self, doing: str) -> LlamaCppError:
        code = self._process.wait()
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        return LlamaCppError(f"llama.cpp {how} while {doing} {self._model}{self._logged()}; {_REMEDY[doing]}")

    def _logged(self) -> str:
        """Return the first line that the process logged since the request, which names the cause, in brackets."""
        self._log.seek(self._seen)
        lines = [line.strip() for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        return f" ({lines[0][:300]})" if lines else ""


def _number(value: float | None) -> float:
    """Return a number of the runtime's JSON, which has null for NaN."""
    return math.nan if value is None else float(value)
