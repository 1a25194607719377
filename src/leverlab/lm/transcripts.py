"""Frozen transcripts of several policies at several temperatures, one of each kind on every question."""

from collections.abc import Sequence

import numpy as np
import torch

from leverlab.lm.adapters import Base
from leverlab.lm.questions import Question
from leverlab.lm.records import DialogueRecord, record_of
from leverlab.lm.rollouts import Limits, roll_out


def sample_transcripts(
    base: Base,
    model: torch.nn.Module,
    policy: str,
    seed: int,
    questions: Sequence[Question],
    temperatures: Sequence[float],
    limits: Limits,
    draw: int,
) -> list[DialogueRecord]:
    """Return a sampled dialogue on each question at each temperature. draw: seed of the random numbers."""
    records = []
    for number, temperature in enumerate(temperatures):
        drawn = int(np.random.SeedSequence([draw, seed, number]).generate_state(1)[0])
        generator = torch.Generator(next(model.parameters()).device).manual_seed(drawn)
        rollouts = roll_out(model, base.chat, questions, 1, limits, temperature, generator)
        records += [record_of(one, policy, seed, 0, temperature) for one in rollouts]
    return records
