"""Params that the training stages share: how weights move."""

from pydantic import Field

from leverlab.config.base import Section


class OptimiserParams(Section):
    """AdamW with a cosine schedule, warm-up and gradient clip."""

    epochs: int = Field(ge=1, le=10_000)
    batch: int = Field(ge=1, le=65_536)  # queries of one update
    lr: float = Field(gt=0, le=10)
    weight_decay: float = Field(ge=0, le=10)
    warmup: float = Field(ge=0, lt=1)  # share of the updates
    grad_clip: float = Field(gt=0)
