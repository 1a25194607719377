"""The section `infer` of params.yaml."""

from pydantic import Field

from leverlab.config.base import Section, Seed


class InferParams(Section):
    """The baselines of the test run."""

    random_seeds: int = Field(ge=1, le=100)
    fixed_seed: Seed  # draws the one list that the `fixed` baseline shows to every question
