"""The section `rl_data` of params.yaml: beam search, groups, and the limits of the health report."""

from pydantic import Field

from leverlab.config.base import Section, Seed


class HealthLimits(Section):
    """Beyond these the stage fails with the reason, before any training."""

    max_flat_groups: float = Field(ge=0, le=1)
    max_winner_groups: float = Field(ge=0, le=1)
    min_positives: float = Field(ge=0, le=1)
    min_oracle_accuracy: float = Field(ge=0, le=1)
    max_random_accuracy: float = Field(ge=0, le=1)
    min_headroom: float = Field(ge=0, le=1)
    min_answer_prob_median: float = Field(ge=0, le=1)
    max_answer_prob_tiny: float = Field(ge=0, le=1)
    min_distinct_candidates: float = Field(ge=0, le=1)


class RlDataParams(Section):
    """How the VLM's preferences are collected on train questions."""

    queries: int = Field(ge=1)  # train questions that get beams and a group
    beam_width: int = Field(ge=1, le=64)
    random_lists: int = Field(ge=1, le=64)  # random trajectories in each group
    seed: Seed
    health: HealthLimits
