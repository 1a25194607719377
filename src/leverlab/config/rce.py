"""The section `rce` of params.yaml."""

from typing import Literal

from pydantic import Field

from leverlab.config.training import OptimiserParams


class RceParams(OptimiserParams):
    """Reward-weighted cross-entropy over each group: weights softmax(reward / tau)."""

    init: Literal["best", "last"]  # which epoch of SFT to start from; 'best' by validation accuracy
    tau_start: float = Field(gt=0)
    tau_end: float = Field(gt=0)
