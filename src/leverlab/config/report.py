"""The section `report` of params.yaml: the gates and the headline metrics."""

from typing import Annotated

from pydantic import Field, field_validator, model_validator

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


ShortName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=12)]  # of a column of `dvc exp show`


class ReportParams(Section):
    """What the report checks, and the few metrics that `dvc metrics show` and `dvc exp show` print."""

    gates: dict[str, GateParams | None]  # name -> rule; null switches a gate off, which the report says
    headline: dict[ShortName, Annotated[str, Field(min_length=1)]] = Field(max_length=12)  # short name -> metric

    @field_validator("headline")
    @classmethod
    def _red_is_taken(cls, headline: dict[str, str]) -> dict[str, str]:
        if "red" in headline:
            raise ValueError("red is the number of failed gates; give the metric another name")
        return headline

    @property
    def rules(self) -> dict[str, GateParams]:
        """The gates that are switched on."""
        return {name: rule for name, rule in self.gates.items() if rule is not None}

    @property
    def gates_off(self) -> tuple[str, ...]:
        """Names of the gates that are switched off."""
        return tuple(name for name, rule in self.gates.items() if rule is None)
