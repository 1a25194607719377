"""Params that the training stages share: how weights move."""

from typing import Annotated

from pydantic import Field

from leverlab.config.base import Section
from leverlab.config.schedule import Schedule, within

LearningRate = Annotated[Schedule, within(gt=0, le=10)]


class OptimiserParams(Section):
    """AdamW with warm-up and gradient clip. A learning rate that is a plain number falls to 0 along a cosine; one that
    is a schedule follows it."""

    epochs: int = Field(ge=1, le=10_000)
    batch: int = Field(ge=1, le=65_536)  # queries of one update
    lr: LearningRate
    weight_decay: float = Field(ge=0, le=10)
    warmup: float = Field(ge=0, lt=1)  # share of the updates
    grad_clip: float = Field(gt=0)
