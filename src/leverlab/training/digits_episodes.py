"""Meta-training episodes of the embedded world's VLM.

An episode shows several images with questions and answers under a convention (class → nonsense word) that is drawn anew
each time, so that the only way to answer is to read the convention from the demos before. Episodes are *contrastive*:
few question types and few classes are active, so that near misses stand side by side. Without that, matching the
question type alone scores .94 in training and chance at the matching test. There are no episodes with plain English
answers: a share of 30 % of them taught the model to name what it sees, and it had not begun to read the convention when
those runs were stopped, after 650 to 970 steps (docs/LOG.md).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leverlab.worlds.digits_scenes import (
    ATTRIBUTES,
    CLASSES,
    QUESTIONS,
    WORDS,
    Scene,
    draw_scene,
    scan_number,
)

CLASS_OFFSET = {"number": 0, "colour": 10, "texture": 18}
CLASS_COUNT = 26
CLASS_SIZES = (10, 8, 8)  # number, colour, texture


@dataclass(frozen=True)
class Item:
    """One question of an episode: the image, the question, the answer's words and the class behind each word."""

    image: NDArray[np.uint8]
    question: str
    words: tuple[str, ...]
    classes: tuple[int, ...]  # 0..25, one for each word
    shown: tuple[int, int, int]  # the image's class of number, colour and texture, each from 0


def draw_convention(rng: np.random.Generator) -> dict[int, str]:
    """Return a nonsense word for each of the 26 classes, all different."""
    words = rng.permutation(len(WORDS))[:CLASS_COUNT]
    return {index: WORDS[word] for index, word in enumerate(words)}


def make_item(scene: Scene, question_type: str, convention: dict[int, str], rng: np.random.Generator) -> Item:
    """Return the item that asks for `question_type` of `scene` in one of its three wordings."""
    classes = tuple(CLASS_OFFSET[name] + scene.class_of(name) for name in ATTRIBUTES[question_type])
    question = QUESTIONS[question_type][rng.integers(3)]
    shown = (scene.number, scene.colour, scene.texture)
    return Item(draw_scene(scene, rng), question, tuple(convention[index] for index in classes), classes, shown)


class SceneSampler:
    """Draws scenes with prescribed classes from a set of scans."""

    def __init__(self, scans: tuple[int, ...]):
        self._by_number = [[scan for scan in scans if scan_number(scan) == number] for number in range(10)]

    def draw(self, number: int, colour: int, texture: int, rng: np.random.Generator) -> Scene:
        """Return a scene of a random scan of `number` with the given colour and texture."""
        scans = self._by_number[number]
        return Scene(scans[rng.integers(len(scans))], number, colour, texture)


def training_episode(sampler: SceneSampler, items: int, rng: np.random.Generator) -> list[Item]:
    """Return a contrastive episode of `items` items: 1 to 4 question types and 2 to 4 classes an attribute are
    active."""
    convention = draw_convention(rng)
    types = rng.choice(list(QUESTIONS), size=rng.integers(1, 5), replace=False)
    active = {name: rng.choice(len(words), size=rng.integers(2, 5), replace=False) for name, words in CLASSES.items()}
    episode = []
    for _ in range(items):
        number, colour, texture = (int(rng.choice(active[name])) for name in ("number", "colour", "texture"))
        scene = sampler.draw(number, colour, texture, rng)
        episode.append(make_item(scene, str(rng.choice(types)), convention, rng))
    return episode


def matching_episode(sampler: SceneSampler, shots: int, rng: np.random.Generator) -> list[Item]:
    """Return `shots` demos and a query, last: one demo matches the query, the others are near misses of the same type.

    A near miss asks the same question type and differs from the query in every class asked for, so that matching the
    question type alone picks the right demo with probability 1 / `shots`.
    """
    convention = draw_convention(rng)
    question_type = str(rng.choice(list(QUESTIONS)))
    asked = ATTRIBUTES[question_type]
    target = {name: int(rng.integers(len(words))) for name, words in CLASSES.items()}

    def item(matches: bool) -> Item:
        classes = {}
        for name, words in CLASSES.items():
            others = [index for index in range(len(words)) if index != target[name]]
            keep = name in asked and matches
            free = range(len(words)) if name not in asked else others
            classes[name] = target[name] if keep else int(rng.choice(list(free)))
        scene = sampler.draw(classes["number"], classes["colour"], classes["texture"], rng)
        return make_item(scene, question_type, convention, rng)

    demos = [item(matches=index == 0) for index in range(shots)]
    order = rng.permutation(shots)
    return [*(demos[index] for index in order), item(matches=True)]
