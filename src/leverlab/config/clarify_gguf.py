"""The sections `gguf` and `benchmark` of the params of the recipe `clarify`: exported policies and their names.

How llama.cpp runs them is the section `runtime`, as in `leverlab.config.gguf`.
"""

from typing import Literal

from pydantic import Field, field_validator

from leverlab.config.base import Section

Kind = Literal["f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]  # of the matrices, the largest first


def policy_file(kind: str) -> str:
    """Return the name of the policy's file of type `kind`."""
    return f"policy-{kind}.gguf"


class TurnParityParams(Section):
    """The comparison of exported policies with transformers."""

    prompts: int = Field(ge=1, le=10_000)  # turns of greedy dialogues on the validation questions
    likeliest: int = Field(ge=1, le=1_000_000)  # tokens of each distribution that are compared


class PolicyGgufKinds(Section):
    """Which files are written: all that a stage needs that runs them."""

    kinds: tuple[Kind, ...] = Field(min_length=1)

    @field_validator("kinds")
    @classmethod
    def _kinds_differ(cls, kinds: tuple[Kind, ...]) -> tuple[Kind, ...]:
        if len(set(kinds)) < len(kinds):
            raise ValueError("a kind stands twice")
        return kinds


class PolicyGgufParams(PolicyGgufKinds):
    """Which files are written, and how they are compared: the whole section."""

    parity: TurnParityParams


class TurnBenchmarkParams(Section):
    """How speed and memory are measured."""

    questions: int = Field(ge=1, le=10_000)  # of the test split, whose first turn is said in each run
    runs: int = Field(ge=1, le=100)  # of which medians are taken
