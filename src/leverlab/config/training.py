"""Params that the training stages share: how weights move."""

from typing import Any

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

    def optimisation(self) -> dict[str, Any]:
        """Return what the training loop needs to know of them."""
        return self.model_dump(include={"epochs", "lr", "weight_decay", "warmup", "grad_clip"})
