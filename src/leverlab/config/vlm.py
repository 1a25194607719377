"""The sections `vlm` and `eval` of params.yaml: the frozen model, and how many shots there are."""

from typing import Literal

from pydantic import Field

from leverlab.config.base import Section


class VlmSource(Section):
    """Where the frozen VLM is: all that a stage needs that exports it."""

    source: str = Field(min_length=1)  # hub id or folder in the hub's format


class VlmModel(VlmSource):
    """The frozen VLM as it is loaded: what a stage needs that computes features."""

    dtype: Literal["float32", "bfloat16"]


class VlmAnswers(VlmSource):
    """The frozen VLM and its greedy answers: what a stage needs that lets another runtime give them."""

    max_new_tokens: int = Field(ge=1, le=256)  # of a greedy answer


class VlmParams(VlmModel, VlmAnswers):
    """The frozen VLM that answers, and how prompts are batched: the whole section."""

    batch_tokens: int = Field(ge=64, le=4_194_304)  # tokens of one forward, padding included


class EvalParams(Section):
    """What is trained for and judged alike."""

    shots: int = Field(ge=1, le=16)  # the largest shot count; every count from 1 on is trained for and judged
