"""Whether an exported model answers in llama.cpp as the checkpoint does in transformers, in float32.

Agreement of greedy answers is blind to most broken exports of a confident model, so distributions are compared: the
log-probabilities of every answer token's place. Images of several sizes matter too: small ones hide a wrong attention.
"""

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from leverlab.deploy.llama_cpp import LlamaCpp, chat_messages, require_plain_texts
from leverlab.records import Example
from leverlab.vlm.model import GREEDY, Vlm
from leverlab.vlm.prompt import PromptFormat

SIZES = {"1x1": (1, 1), "2x2": (2, 2), "3x1": (3, 1), "1x3": (1, 3)}  # width and height, in tiles
IMAGES = (1, 2, 3)  # of a prompt
LIKELY = 1e-4
MARGIN = 0.1  # nats


@dataclass(frozen=True)
class Prompt:
    """A prompt of the parity test: demos and a question with images of one size, named by `size`."""

    size: str
    demos: tuple[Example, ...]
    question: Example


@dataclass(frozen=True)
class Reference:
    """What transformers says to a prompt: its tokens, the greedy answer's, and their log-probabilities (T, V)."""

    prompt_tokens: int
    ids: tuple[int, ...]
    log_probs_TV: NDArray[np.float64]


@dataclass(frozen=True)
class Parity:
    """How far llama.cpp is from transformers over a set of prompts.

    equal_tokens: share of prompts with as many tokens in both. finite: whether every log-probability is a number.
    max_delta: the largest difference of log-probabilities, over tokens that either gives a probability of `LIKELY` or
    more; max_delta_any: over all tokens, some as unlikely as 1e-15. mean_kl: the Kullback-Leibler divergence of
    llama.cpp's distribution from transformers', in nats, as a mean of places. All three over the places of an answer up
    to the first token that differs, that one included.
    greedy: share of prompts with the same greedy tokens. greedy_decided: the same, of the `decided` prompts, where
    transformers prefers each token by `MARGIN` nats or more. Without a demo many answers are as likely as each other,
    and what is greedy is a matter of rounding.
    All of these are NaN, so that a gate on any of them is red, unless everything is finite and all prompts have as many
    tokens in both; greedy_decided also without a decided prompt.
    """

    prompts: int
    decided: int
    places: int
    equal_tokens: float
    finite: bool
    max_delta: float
    max_delta_any: float
    mean_kl: float
    greedy: float
    greedy_decided: float


@dataclass(frozen=True)
class _Place:
    """One token of an answer: the largest differences of log-probabilities, and the divergence."""

    delta: float
    delta_any: float
    kl: float


@dataclass(frozen=True)
class _Row:
    """One prompt."""

    equal_tokens: bool
    same: bool
    decided: bool
    places: list[_Place]


def parity_prompts(pool: Sequence[Example], tile: int, count: int, seed: int) -> list[Prompt]:
    """Return `count` prompts for each size and each number of images: demos of `pool`, their images tiled.

    tile: pixels of a tile's side, a multiple of the model's merged patches, so that nothing is resized on the way.
    """
    rng = np.random.default_rng(seed)
    prompts = []
    for (size, tiles), images, _ in product(SIZES.items(), IMAGES, range(count)):
        examples = [
            _tiled([pool[index] for index in rng.integers(len(pool), size=tiles[0] * tiles[1])], tiles, tile)
            for _ in range(images)
        ]
        prompts.append(Prompt(size, tuple(examples[:-1]), examples[-1]))
    return prompts


def _tiled(sources: Sequence[Example], tiles: tuple[int, int], tile: int) -> Example:
    """Return the first source with an image of all of them."""
    image = Image.new("RGB", (tiles[0] * tile, tiles[1] * tile))
    for place, source in enumerate(sources):
        row, column = divmod(place, tiles[0])
        image.paste(source.open_image().resize((tile, tile), Image.Resampling.BICUBIC), (column * tile, row * tile))
    content = io.BytesIO()
    image.save(content, format="PNG")
    return replace(sources[0], image=content.getvalue())


def references(vlm: Vlm, prompts: Iterable[Prompt], max_new_tokens: int) -> list[Reference]:
    """Return what `vlm`, in float32, answers greedily to each prompt."""
    form, found = PromptFormat(vlm.processor), []
    for prompt in prompts:
        inputs = form.inputs(prompt.demos, prompt.question).to(vlm.device)
        said = vlm.model.generate(
            **inputs, **GREEDY, max_new_tokens=max_new_tokens, output_logits=True, return_dict_in_generate=True
        )
        length = inputs["input_ids"].shape[1]
        logits_TV: Tensor = torch.cat(said.logits).double()
        found.append(
            Reference(length, tuple(said.sequences[0, length:].tolist()), logits_TV.log_softmax(-1).cpu().numpy())
        )
    return found


def compare_prompts(
    runtime: LlamaCpp, prompts: Sequence[Prompt], expected: Sequence[Reference], max_new_tokens: int, likeliest: int
) -> dict[str, Parity]:
    """Return the parity by size of the images, and over all prompts under "all".

    likeliest: how many tokens of each distribution are compared, the most probable ones of llama.cpp.
    Raises `LlamaCppError` when the runtime fails, or cannot be given a text of the prompts.
    """
    demos = [demo for prompt in prompts for demo in prompt.demos]
    require_plain_texts(demos, [prompt.question for prompt in prompts], runtime.text_tokens)
    rows: dict[str, list[_Row]] = {size: [] for size in SIZES}
    for prompt, reference in zip(prompts, expected, strict=True):
        messages = chat_messages(prompt.demos, prompt.question, runtime.settings.images, runtime.text_tokens)
        said = runtime.answer(messages, max_new_tokens, likeliest)
        margin = float(np.diff(np.sort(reference.log_probs_TV, axis=1)[:, -2:]).min())
        rows[prompt.size].append(
            _Row(
                said.prompt_tokens == reference.prompt_tokens,
                said.ids == reference.ids,
                margin >= MARGIN,
                _places(reference, said.ids, said.top),
            )
        )
    every = [row for found in rows.values() for row in found]
    return {"all": _parity(every)} | {size: _parity(found) for size, found in rows.items() if found}


def _places(reference: Reference, ids: Sequence[int], top: Sequence[dict[int, float]]) -> list[_Place]:
    places = []
    for wanted, found, log_probs_V, listed in zip(reference.ids, ids, reference.log_probs_TV, top, strict=False):
        theirs = np.array(list(listed.values()), dtype=np.float64)
        theirs -= max(0.0, math.log(np.exp(theirs).sum()))  # they come in single precision, and may sum to more than 1
        ours = log_probs_V[list(listed)]
        delta, likely = np.abs(theirs - ours), np.maximum(theirs, ours) >= math.log(LIKELY)
        places.append(_Place(float(delta[likely].max(initial=0.0)), float(delta.max()), _divergence(ours, theirs)))
        if wanted != found:
            break
    return places


def _divergence(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> float:
    """Return KL(ours ‖ theirs) over the listed tokens, all others taken as one."""
    rest_ours, rest_theirs = max(0.0, 1 - np.exp(ours).sum()), max(1e-12, 1 - np.exp(theirs).sum())
    rest = rest_ours * math.log(rest_ours / rest_theirs) if rest_ours > 1e-12 else 0.0
    possible = ours > -math.inf  # what has no probability adds nothing
    return float((np.exp(ours[possible]) * (ours - theirs)[possible]).sum() + rest)


def _parity(rows: Sequence[_Row]) -> Parity:
    places = [place for row in rows for place in row.places]
    finite = bool(places) and all(math.isfinite(place.delta_any) and math.isfinite(place.kl) for place in places)
    sound = finite and all(row.equal_tokens for row in rows)
    decided = [row.same for row in rows if row.decided]
    return Parity(
        prompts=len(rows),
        decided=len(decided),
        places=len(places),
        equal_tokens=sum(row.equal_tokens for row in rows) / len(rows),
        finite=finite,
        max_delta=max(place.delta for place in places) if sound else math.nan,
        max_delta_any=max(place.delta_any for place in places) if sound else math.nan,
        mean_kl=sum(place.kl for place in places) / len(places) if sound else math.nan,
        greedy=sum(row.same for row in rows) / len(rows) if sound else math.nan,
        greedy_decided=sum(decided) / len(decided) if sound and decided else math.nan,
    )


def as_record(parity: Parity) -> dict[str, Any]:
    """Return the figures for a JSON file, six significant digits; None for what is no number."""
    return {
        name: (None if math.isnan(value) else float(f"{value:.6g}")) if isinstance(value, float) else value
        for name, value in vars(parity).items()
    }
