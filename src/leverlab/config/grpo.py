"""The section `grpo` of params.yaml."""

from typing import Literal

from pydantic import Field, model_validator

from leverlab.config.base import Section
from leverlab.config.training import OptimiserParams
from leverlab.rl.advantages import AdvantageMode
from leverlab.rl.losses import RatioLevel


class ControlParams(Section):
    """Rejection sampling with the same lists, VLM scorings and updates as GRPO."""

    keep: int = Field(ge=1)  # best lists of each group to imitate
    lr: float = Field(gt=0, le=10)


class AdaptiveKlParams(Section):
    """After each epoch: beta * factor above `high` nats per pick, beta / factor below `low`."""

    enabled: bool
    low: float = Field(ge=0)
    high: float = Field(gt=0)
    factor: float = Field(gt=1)
    minimum: float = Field(gt=0)
    maximum: float = Field(gt=0)


class GrpoParams(OptimiserParams):
    """Group-relative policy optimisation."""

    init: Literal["rce", "sft"]  # the policy to start from: that stage's best checkpoint
    reference: Literal["rce", "sft"]  # the KL reference
    rollouts: Literal["online", "offline"]
    group: int = Field(ge=2, le=1024)  # lists of a query, online; offline takes the stored groups
    updates: int = Field(ge=1, le=64)  # optimiser steps on the same lists
    advantage: AdvantageMode
    credit: Literal["list", "to_go"]  # one return a list, or for each pick the mean reward of the prefixes that hold it
    ratio_level: RatioLevel
    clip_epsilon: float | None = Field(gt=0, lt=1)
    kl_beta: float = Field(ge=0)
    adaptive_kl: AdaptiveKlParams
    control: ControlParams

    @model_validator(mode="after")
    def _settings_fit(self) -> "GrpoParams":
        if self.control.keep > self.group:
            raise ValueError(f"control.keep = {self.control.keep} lists cannot be kept of a group of {self.group}")
        if self.ratio_level == "trajectory" and self.credit == "to_go":
            raise ValueError("One ratio a trajectory cannot carry one advantage a pick; set credit to list")
        return self
