"""The sections `base`, `dialogues` and `reward` of a language-model recipe: what every stage with a policy reads."""

from typing import Literal

from pydantic import Field

from leverlab.config.base import Section


class BaseModelParams(Section):
    """The frozen language model under all adapters."""

    source: str = Field(min_length=1)  # folder in the hub's format, or a hub id
    dtype: Literal["float32", "bfloat16"]


class LoraParams(Section):
    """The adapter: LoRA on all linear layers."""

    rank: int = Field(ge=1, le=1024)
    alpha: int = Field(ge=1, le=4096)


class DialogueParams(Section):
    """How long a dialogue may become."""

    turns: int = Field(ge=1, le=16)  # of the policy
    tokens: int = Field(ge=4)  # of one turn


class DialogueRewardParams(Section):
    """How policies are judged: the cost of a needless ask in the verified reward, and the proxy reward from which on a
    dialogue is paid well."""

    alpha: float = Field(ge=0)
    high: float = Field(gt=0, le=1)
