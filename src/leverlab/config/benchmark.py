"""The section `benchmark` of params.yaml."""

from pydantic import Field

from leverlab.config.base import Section


class BenchmarkParams(Section):
    """How speed and memory are measured."""

    questions: int = Field(ge=1, le=10_000)  # answered at every shot count in each run
    runs: int = Field(ge=1, le=100)  # of which medians are taken
