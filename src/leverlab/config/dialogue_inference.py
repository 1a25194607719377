"""The sections `select_best` and `infer` of the params of a language-model recipe."""

from typing import Annotated, Literal

from pydantic import Field

from leverlab.config.base import Number, Section, Seed


class SelectPolicyParams(Section):
    """Which evaluation of GRPO is kept of each seed, on the validation questions; ties go to the earlier step."""

    by: Literal["reward", "success", "need_success"]


class DialogueInferParams(Section):
    """How the test questions are answered."""

    temperatures: tuple[Annotated[Number, Field(ge=0)], ...] = Field(min_length=1)  # 0 is greedy
    batch: int = Field(ge=1)  # questions of one batch of dialogues; changes the draws
    seed: Seed
