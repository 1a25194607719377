"""The section `sft` of params.yaml."""

from typing import Literal

from pydantic import Field

from leverlab.config.base import Section
from leverlab.config.training import OptimiserParams


class EncoderParams(Section):
    """Training of the image encoder, together with a selector of its own, before the selector of the run is taught."""

    train: Literal["none", "lora", "full"]
    epochs: int = Field(ge=1, le=10_000)
    lr: float = Field(gt=0, le=1)  # peak of the encoder's; the selector beside it has that of SFT
    rank: int = Field(ge=1, le=1024)
    alpha: int = Field(ge=1, le=4096)


class SftParams(OptimiserParams):
    """Teacher-forcing on the best beams."""

    encoder: EncoderParams
