"""The sections `shadow` and `hack_probe` of the params of the recipe `clarify`."""

from typing import Annotated

from pydantic import Field

from leverlab.config.base import Number, Section, Seed


class ShadowParams(Section):
    """Transcripts, and the scorers that are compared on them."""

    temperatures: tuple[Annotated[Number, Field(gt=0)], ...] = Field(min_length=1)  # of the sampled dialogues
    strengths: tuple[Annotated[Number, Field(gt=0)], ...] = Field(min_length=1)  # of the prior, in dialogues
    folds: int = Field(ge=2)  # of the cross-validation that chooses among them
    least_spearman: float = Field(ge=-1, le=1)  # that the chosen one must have in every fold
    least_overlap: float = Field(ge=0, le=1)
    members: int = Field(ge=2)  # of the ensemble
    member_features: int = Field(ge=1)  # that a member sees, drawn for each
    tie_breaks: int = Field(ge=1)  # orders of ties over which the overlap is averaged
    resamples: int = Field(ge=100)  # of the bootstrap intervals
    seed: Seed


class HackProbeParams(Section):
    """Training on the proxy reward: that it goes wrong, and that the alarms say so, is what is shown."""

    steps: int = Field(ge=1)
    evaluate_every: int = Field(ge=1)
    beta: float = Field(gt=0)  # KL weight: small, nothing should hold the policy back
    lr: float = Field(gt=0, le=1)
    examples: int = Field(ge=1)  # dialogues shown in the report
