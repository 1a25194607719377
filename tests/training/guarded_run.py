"""Guarded runs of GRPO on a toy world, with the settings of the committed params.yaml where a test gives no other.

Objective, rollouts, validation and loop are those of the stage; the VLM is a known function.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from leverlab.config.base import parse_section, read_params
from leverlab.config.grpo import GrpoParams
from leverlab.config.guard import GuardParams
from leverlab.config.reward import RewardParams
from leverlab.config.selector import SelectorParams
from leverlab.config.vlm import EvalParams, VlmParams
from leverlab.live import Training
from leverlab.selector.architecture import Architecture
from leverlab.selector.batches import QueryData
from leverlab.selector.candidates import Candidates, CandidateSet
from leverlab.selector.features import FeatureTable
from leverlab.selector.network import Selector
from leverlab.training.grpo import Practice, policy_losses
from leverlab.training.imitation import updates_per_epoch
from leverlab.training.loop import Optimisation, Row, train
from leverlab.training.reward import prefix_reward, terms_read
from leverlab.training.rollouts import OnlineRollouts
from leverlab.training.runs import read_metrics
from leverlab.training.validation import Validator
from stages.grpo import Arm, make_objective

COMMITTED = read_params(Path(__file__).parents[2] / "params.yaml")
GRPO = parse_section(GrpoParams, "grpo", COMMITTED)
REWARD = parse_section(RewardParams, "reward", COMMITTED)
VLM = parse_section(VlmParams, "vlm", COMMITTED)
SHOTS = parse_section(EvalParams, "eval", COMMITTED).shots
ARCHITECTURE = Architecture.of(parse_section(SelectorParams, "selector", COMMITTED))

POOL, CANDIDATES, TRAIN, VAL = 60, 24, 96, 64
DEMOS = tuple(f"d{index}" for index in range(POOL))
QUERIES = tuple(f"q{index}" for index in range(TRAIN + VAL))
PAID = DEMOS[:SHOTS]  # all questions are offered these, beside others at random

Probability = Callable[[str, tuple[str, ...]], float]


def ignore(row: Row) -> None:
    """Say nothing of an epoch."""


def changed(**values: Any) -> GrpoParams:
    """The committed settings with other values."""
    return GrpoParams.model_validate(GRPO.model_dump() | values)


@dataclass(frozen=True)
class World:
    """96 questions to learn from and 64 to validate on, with 24 of 60 demos each, all with random features."""

    toy: Any
    data: QueryData
    cosine: dict[tuple[str, str], float]  # of the image features of question and demo

    def alike(self, question: str, demos: tuple[str, ...]) -> float:
        """P(answer) rises with the likeness of the demos to the question: every question has demos of its own."""
        mean = sum(self.cosine[question, demo] for demo in demos) / len(demos)
        return 1 / (1 + math.exp(-6 * (mean - 0.4)))

    def run(
        self,
        probability: Probability,
        folder: Path,
        params: GrpoParams = GRPO,
        guard: GuardParams | None = GRPO.guard,
        sharpness: float = 1.0,
        shots: int = SHOTS,
        on_epoch: Callable[[Row], None] = ignore,
    ) -> pd.DataFrame:
        """Train as the stage does and return the rows of metrics.csv. `sharpness` scales the logits at the start."""
        torch.manual_seed(0)
        policy = Selector(self.data.widths, ARCHITECTURE, 0.0)
        with torch.no_grad():
            policy.read.weight.mul_(sharpness)
        self.data.standardise(policy, DEMOS, QUERIES[:TRAIN])
        reference = copy.deepcopy(policy).eval().requires_grad_(False)
        scorer, reward = self.toy.scorer(probability), REWARD.model_copy(update={"shot_weights": (1.0,) * shots})
        rollouts = OnlineRollouts(
            self.data,
            scorer,
            lambda terms, progress: prefix_reward(reward, terms, progress),
            lambda query, text: float(text == "yes"),
            terms_read(reward),
            QUERIES[:TRAIN],
            0,
        )
        validator = Validator(self.data, self.toy.questions(TRAIN + VAL)[TRAIN:], scorer, shots)
        training = Training(
            ".", "grpo@0", "grpo", "epoch", params.epochs, "val_accuracy", "", folder / "live.jsonl", folder, {}
        )
        arm, practice = Arm("grpo", 0, params, reward, VLM, shots, folder, training), Practice()
        losses = policy_losses(
            policy,
            rollouts,
            lambda rows: make_objective(arm, reference, rows),
            practice,
            epochs=params.epochs,
            batch=params.batch,
            lists=params.group,
            shots=shots,
            updates=params.updates,
            seed=0,
            priority=params.priority,
            curriculum=None,
        )
        settings = Optimisation.of(params, updates_per_epoch(TRAIN, params.batch) * params.updates, 0)
        train(
            policy, settings, losses, lambda selector: validator(selector, reference), folder, on_epoch, guard, practice
        )
        return read_metrics(folder / "metrics.csv")


def make_world(toy: Any) -> World:
    """Return the world, the same one every time; `toy` makes its scorer and questions (the fixture of that name)."""
    rng = np.random.default_rng(0)
    vectors = [rng.normal(size=(POOL + TRAIN + VAL, width)).astype(np.float32) for width in (4, 3, 2)]
    units = vectors[0] / np.linalg.norm(vectors[0], axis=1, keepdims=True)
    cosines = units[POOL:] @ units[:POOL].T
    sets = []
    for query in QUERIES:
        others = rng.permutation(DEMOS[SHOTS:])[: CANDIDATES - SHOTS]
        sets.append(CandidateSet("train", query, 0, tuple(rng.permutation([*PAID, *others]).tolist())))
    data = QueryData(FeatureTable((*DEMOS, *QUERIES), *vectors), Candidates(sets, DEMOS, "toy"))
    pairs = {(q, d): float(cosines[i, j]) for i, q in enumerate(QUERIES) for j, d in enumerate(DEMOS)}
    return World(toy, data, pairs)
