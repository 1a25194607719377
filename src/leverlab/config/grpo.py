"""The section `grpo` of params.yaml."""

from typing import Annotated, Literal

from pydantic import Field, StrictBool, model_validator

from leverlab.config.base import Section
from leverlab.config.guard import GuardParams
from leverlab.config.schedule import Schedule, within
from leverlab.config.training import LearningRate, OptimiserParams
from leverlab.rl.modes import AdvantageMode, RatioLevel


class ControlParams(Section):
    """Rejection sampling with the same lists, VLM scorings and updates as GRPO."""

    keep: int = Field(ge=1)  # best lists of each group to imitate
    lr: LearningRate


class AdaptiveKlParams(Section):
    """After each epoch: beta * factor above `high` nats per pick, beta / factor below `low`."""

    enabled: StrictBool
    low: float = Field(ge=0)
    high: float = Field(gt=0)
    factor: float = Field(gt=1)
    minimum: float = Field(gt=0)
    maximum: float = Field(gt=0)

    @model_validator(mode="after")
    def _ranges_are_open(self) -> "AdaptiveKlParams":
        if self.low >= self.high:
            raise ValueError(f"low = {self.low} must be below high = {self.high}")
        if self.minimum > self.maximum:
            raise ValueError(f"minimum = {self.minimum} must be at most maximum = {self.maximum}")
        return self


class PriorityParams(Section):
    """A share of every batch goes to queries that were seldom answered rightly when they were last drawn."""

    share: float = Field(ge=0, le=0.3)  # of a batch; 0 for none
    failure_factor: float = Field(ge=1)  # how much more a query weighs whose lists were all wrong


class CurriculumParams(Section):
    """In the first epochs the easier queries alone, and the best and worst lists of each group."""

    epochs: int = Field(ge=0)  # 0 for none
    queries: float = Field(gt=0, le=1)  # share of the queries with a stored group, the best rewarded ones
    keep: int = Field(ge=2)  # lists of a group


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
    clip_epsilon: Annotated[Schedule, within(gt=0, lt=1)] | None
    kl_beta: Annotated[Schedule, within(ge=0)]
    adaptive_kl: AdaptiveKlParams
    guard: GuardParams
    priority: PriorityParams
    curriculum: CurriculumParams
    control: ControlParams

    @model_validator(mode="after")
    def _settings_fit(self) -> "GrpoParams":
        if self.control.keep > self.group:
            raise ValueError(f"control.keep = {self.control.keep} lists cannot be kept of a group of {self.group}")
        if self.adaptive_kl.enabled and self.kl_beta.kind != "constant":
            raise ValueError("A beta that is adapted cannot follow a schedule too; make kl_beta a number")
        adaptive = self.adaptive_kl
        if adaptive.enabled and not adaptive.minimum <= self.kl_beta.start <= adaptive.maximum:
            raise ValueError(
                f"kl_beta = {self.kl_beta.start} must lie between adaptive_kl.minimum = {adaptive.minimum} and maximum "
                f"= {adaptive.maximum}"
            )
        if self.ratio_level == "trajectory" and self.credit == "to_go":
            raise ValueError("One ratio a trajectory cannot carry one advantage a pick; set credit to list")
        return self
