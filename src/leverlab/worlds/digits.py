"""The embedded world `digits`: questions about drawn scenes, whose answers are nonsense words that only the pool tells.

Every class (a number, a colour, a texture) has one word, the same in all four splits. The splits show different scans.
"""

import io
from dataclasses import replace
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from leverlab.errors import LeverlabError
from leverlab.records import Example
from leverlab.worlds.digits_scenes import (
    ATTRIBUTES,
    CLASSES,
    QUESTIONS,
    WORDS,
    Scene,
    draw_scene,
    sample_scene,
    scan_parts,
)
from leverlab.worlds.world import SPLITS, World

CONVENTION_SEED = 20260102  # the words are part of the world; `data.seed` draws scenes and questions
TYPE_SHARES = {"number": 0.27, "colour": 0.27, "texture": 0.26, "colour_number": 0.20}
_NOISE_STREAM = len(SPLITS)  # streams 0..3 of a seed draw the splits, this one the wrong answers


@cache
def convention() -> dict[str, tuple[str, ...]]:
    """Return the nonsense word of each class, `{attribute: words by class index}`; all 26 words differ."""
    words = iter(np.random.default_rng(CONVENTION_SEED).permutation(len(WORDS)))
    return {name: tuple(WORDS[next(words)] for _ in classes) for name, classes in CLASSES.items()}


def digits_world(pool: int, train: int, val: int, test: int, label_noise: float, seed: int) -> World:
    """Return the world with `pool` demos and `train`, `val`, `test` questions.

    A function of its arguments alone; a split depends on `seed` and its own size only, and a smaller split is the
    beginning of a larger one. `label_noise` (0 <= share < 1) of the pool's answers, `round(share * pool)` of them, are
    wrong: each word is that of another class of the same attribute. Images and questions do not depend on it, and the
    wrong answers of a smaller share are among those of a larger one. Raises `LeverlabError` for a share out of range.
    """
    if not 0 <= label_noise < 1:
        raise LeverlabError(f"data.label_noise = {label_noise} must be at least 0 and below 1")
    drawn = {name: _draw_split(name, size, seed) for name, size in zip(SPLITS, (pool, train, val, test), strict=True)}
    drawn["pool"] = _with_wrong_answers(drawn["pool"], label_noise, seed)
    examples = {name: tuple(example for _, example in rows) for name, rows in drawn.items()}
    return World(
        name="digits",
        **examples,
        licence="scans: UCI Optical Recognition of Handwritten Digits, CC BY 4.0; drawings and questions: Apache-2.0",
        description=(
            "Real scans of handwritten digits, drawn on coloured and textured grounds; questions for the number, the "
            "colour, the texture, or colour and number. The answers are nonsense words that only the pool tells. "
            "Split by scan."
        ),
    )


def _draw_split(split: str, size: int, seed: int) -> list[tuple[Scene, Example]]:
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    scans = scan_parts()[split]
    types, shares = list(TYPE_SHARES), list(TYPE_SHARES.values())
    rows = []
    for index in range(size):
        scene = sample_scene(rng, scans)
        question_type = str(rng.choice(types, p=shares))
        question = QUESTIONS[question_type][rng.integers(len(QUESTIONS[question_type]))]
        example = Example(
            id=f"{split}-{index:05d}",
            image=_png(draw_scene(scene, rng)),
            image_id=f"scan-{scene.scan}",
            question=question,
            question_type=question_type,
            answers=(_answer({name: scene.class_of(name) for name in ATTRIBUTES[question_type]}),),
        )
        rows.append((scene, example))
    return rows


def _with_wrong_answers(rows: list[tuple[Scene, Example]], share: float, seed: int) -> list[tuple[Scene, Example]]:
    rng = np.random.default_rng([seed, _NOISE_STREAM])
    noisy = list(rows)
    for index in rng.permutation(len(rows))[: round(share * len(rows))]:
        scene, example = rows[index]
        wrong = {}
        for name in ATTRIBUTES[example.question_type]:
            count = len(CLASSES[name])
            wrong[name] = (scene.class_of(name) + int(rng.integers(1, count))) % count
        noisy[index] = (scene, replace(example, answers=(_answer(wrong),)))
    return noisy


def _answer(classes: dict[str, int]) -> str:
    return " ".join(convention()[name][index] for name, index in classes.items())


def _png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
