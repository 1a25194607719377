"""The section `grpo` of a language-model recipe's params.yaml."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from leverlab.config.base import Section
from leverlab.config.grpo import AdaptiveKlParams, PriorityParams
from leverlab.config.schedule import Schedule, within
from leverlab.rl.modes import AdvantageMode


class LadderParams(Section):
    """What an evaluation must keep to, and the reactions: dearer asks, going back with more KL weight, stopping."""

    window: int = Field(ge=1)  # evaluations over which the KL is averaged
    kl: float = Field(gt=0)  # nats per token of the policy
    spam: float = Field(ge=0, le=1)  # share of dialogues with more than three asks or one twice
    format_exploit: float = Field(ge=0, le=1)  # share of dialogues: wrong or ungrounded, and paid well by the proxy
    alpha_factor: float = Field(ge=1)  # on the cost of asks, the first time
    beta_factor: float = Field(ge=1)  # on the KL weight, each time that the run goes back
    rollbacks: int = Field(ge=0)


class DialogueGrpoParams(Section):
    """Group-relative policy optimisation on whole dialogues."""

    init: Literal["rce", "sft"]  # the policy to start from
    reference: Literal["rce", "sft"]  # the KL reference
    steps: int = Field(ge=1)  # optimiser steps
    questions: int = Field(ge=1)  # of one step
    group: int = Field(ge=2)  # dialogues of a question
    updates: int = Field(ge=1)  # optimiser steps on the same dialogues
    temperature: float = Field(gt=0)
    alpha: Annotated[Schedule, within(ge=0)]  # cost of a needless ask in the reward, over the steps
    generation: Literal["cache", "vllm"]  # one batch whose cache is kept over the turns, or vLLM turn by turn
    lr: float = Field(gt=0, le=1)
    warmup: float = Field(ge=0, lt=1)  # share of the steps
    grad_clip: float = Field(gt=0)
    advantage: AdvantageMode
    clip_epsilon: float = Field(gt=0, lt=1)
    beta: float = Field(gt=0)  # KL weight; with 0 the KL would not even be measured
    adaptive_kl: AdaptiveKlParams  # nats per token
    priority: PriorityParams
    guard: LadderParams
    evaluate_every: int = Field(ge=1)  # steps; a checkpoint is kept each time
    evaluate_on: int = Field(ge=1)  # validation questions

    @model_validator(mode="after")
    def _grid_fits(self) -> "DialogueGrpoParams":
        if self.evaluate_every % self.updates:
            raise ValueError(
                f"evaluate_every = {self.evaluate_every} must be a multiple of updates = {self.updates}: a "
                "checkpoint in the middle of a batch of dialogues could not be resumed exactly"
            )
        return self
