"""The section `rce` of params.yaml."""

from typing import Annotated, Literal

from leverlab.config.schedule import Schedule, within
from leverlab.config.training import OptimiserParams


class RceParams(OptimiserParams):
    """Reward-weighted cross-entropy over each group: weights softmax(reward / tau)."""

    init: Literal["best", "last"]  # which epoch of SFT to start from; 'best' by validation accuracy
    tau: Annotated[Schedule, within(gt=0)]
