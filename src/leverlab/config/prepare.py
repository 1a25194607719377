"""The section `prepare` of params.yaml: candidates and features."""

from typing import Literal

from pydantic import Field

from leverlab.config.base import Section, Seed


class PrepareEncoder(Section):
    """Where features come from: all that a stage needs that makes them anew."""

    encoder: str = Field(min_length=1)  # 'vlm', or the hub id or folder of a CLIP-class model


class PrepareParams(PrepareEncoder):
    """How candidates are drawn for each query, and which encoder makes the features."""

    sampler: Literal["random", "text_sim", "image_sim", "mix"]
    candidates: int = Field(ge=2, le=4096)  # K, demos offered for one query
    train_sets: int = Field(ge=1)  # candidate sets of a train query, so that epochs can see fresh candidates
    val_sets: int = Field(ge=1)  # candidate sets of a val query; a test query has one
    seed: Seed
