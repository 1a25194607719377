"""The section `report` of params.yaml: the gates."""

from pydantic import Field, model_validator

from leverlab.config.base import Section


class GateParams(Section):
    """One acceptance rule: a metric by its dotted key, and exactly one bound, which itself passes."""

    metric: str = Field(min_length=1)  # a key of reports/metrics.json, or comparisons.<method>.shots_<k>.<column>
    at_least: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _one_bound(self) -> "GateParams":
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("A gate needs exactly one of at_least and at_most")
        return self


class ReportParams(Section):
    """What the report checks."""

    gates: dict[str, GateParams]  # name -> rule
