"""The guard against real failures: GRPO on a toy world, with the settings of the committed params.yaml but for what
provokes each failure. Rollouts, objective, validation and loop are those of the stage; the VLM alone is a known function.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from leverlab.config.base import parse_section, read_params
from leverlab.config.grpo import GrpoParams
from leverlab.config.guard import GuardParams
from leverlab.config.reward import RewardParams
from leverlab.config.schedule import Schedule
from leverlab.config.selector import SelectorParams
from leverlab.config.vlm import EvalParams, VlmParams
from leverlab.report.training import Intervention, interventions
from leverlab.selector.architecture import Architecture
from leverlab.selector.network import Selector
from leverlab.training.grpo import Practice, policy_losses
from leverlab.training.imitation import updates_per_epoch
from leverlab.training.loop import NotFiniteError, Optimisation, Row, train
from leverlab.training.reward import Terms, prefix_reward, terms_read
from leverlab.training.rollouts import OnlineRollouts
from leverlab.training.runs import choose_epoch, load_epoch, read_metrics
from leverlab.training.validation import Validator
from stages.grpo import Arm, beta_after, make_objective

COMMITTED = read_params(Path(__file__).parents[2] / "params.yaml")
GRPO = parse_section(GrpoParams, "grpo", COMMITTED)
GUARD = GRPO.guard
REWARD = parse_section(RewardParams, "reward", COMMITTED)
SHOTS = parse_section(EvalParams, "eval", COMMITTED).shots
TRAIN, VAL = 96, 48
POOL, CANDIDATES = 60, 24

Probability = Callable[[str, tuple[str, ...]], float]


@dataclass
class World:
    toy: Any
    data: Any
    vectors: dict[str, np.ndarray]


@pytest.fixture
def world(toy: Any) -> World:
    return make_world(toy)


def make_world(toy: Any, candidates: int = CANDIDATES, sets: int = 2) -> World:
    larger = type("Larger", (toy,), {"pool": tuple(f"d{index}" for index in range(POOL))})
    data = larger.data(TRAIN + VAL, candidates, sets)
    ids = [*larger.pool, *(f"q{index}" for index in range(TRAIN + VAL))]
    return World(larger, data, {i: data.vectors("image", [i])[0] for i in ids})


def near(world: World) -> Probability:
    """Right where the last demo looks like the question."""
    unit = {k: v / np.linalg.norm(v) for k, v in world.vectors.items()}
    table = {(q, d): float(unit[q] @ unit[d]) for q in unit if q[0] == "q" for d in unit if d[0] == "d"}
    def probability(question: str, demos: tuple[str, ...]) -> float:
        sims = [table[question, d] for d in demos]
        return float(1 / (1 + np.exp(-6 * (sum(sims) / len(sims) - 0.4))))
    return probability


def run(world, probability, folder, params=GRPO, guard=GUARD, sharpness=1.0, seed=0, shots=SHOTS):
    torch.manual_seed(seed)
    arch = Architecture.of(parse_section(SelectorParams, "selector", COMMITTED))
    policy = Selector(world.data.widths, arch, 0.0)
    with torch.no_grad():
        policy.read.weight.mul_(sharpness)
    world.data.standardise(policy, world.toy.pool, [f"q{i}" for i in range(TRAIN)])
    reference = copy.deepcopy(policy).eval().requires_grad_(False)
    scorer = world.toy.scorer(probability)
    questions = world.toy.questions(TRAIN + VAL)
    rollouts = OnlineRollouts(world.data, scorer, lambda terms, progress: prefix_reward(REWARD, terms, progress),
        lambda q, t: float(t == "yes"), terms_read(REWARD), [f"q{i}" for i in range(TRAIN)], seed)
    validator = Validator(world.data, questions[TRAIN:], scorer, shots)
    practice = Practice()
    arm = Arm("grpo", seed, params, REWARD, parse_section(VlmParams, "vlm", COMMITTED), shots, folder)
    losses = policy_losses(policy, rollouts, lambda rows: make_objective(arm, reference, rows), practice,
        epochs=params.epochs, batch=params.batch, lists=params.group, shots=shots, updates=params.updates, seed=seed,
        priority=params.priority, curriculum=None)
    settings = Optimisation.of(params, updates_per_epoch(TRAIN, params.batch) * params.updates, seed)
    train(policy, settings, losses, lambda s: validator(s, reference), folder, lambda r: None, guard, practice)
    return read_metrics(folder / "metrics.csv")
