"""The sections `vlm` and `eval` of params.yaml: the frozen model, and how many shots there are."""

from typing import Literal

from pydantic import Field

from leverlab.config.base import Section


class VlmParams(Section):
    """The frozen VLM that answers, and how prompts are batched."""

    source: str = Field(min_length=1)  # hub id or folder in the hub's format
    dtype: Literal["float32", "bfloat16"]
    batch_tokens: int = Field(ge=64, le=4_194_304)  # tokens of one forward, padding included
    max_new_tokens: int = Field(ge=1, le=256)  # of a greedy answer


class EvalParams(Section):
    """What is trained for and judged alike."""

    shots: int = Field(ge=1, le=16)  # the largest shot count; every count from 1 on is trained for and judged
