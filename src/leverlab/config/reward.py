"""The section `reward` of params.yaml: what a trajectory is paid for."""

from pydantic import Field, ValidationInfo, field_validator

from leverlab.config.base import Number, Section
from leverlab.config.schedule import Schedule
from leverlab.errors import LeverlabError
from leverlab.rl.rewards import RewardMode, required_terms, weighted_shots


class RewardParams(Section):
    """One expression over named terms for every prefix, averaged over shot counts."""

    mode: RewardMode
    weights: dict[str, Schedule] | None  # term → weight, for the modes that read weights
    shot_weights: tuple[Number, ...] = Field(min_length=1)  # one for each shot count, from 1 on

    @field_validator("weights")
    @classmethod
    def _weights_fit_mode(cls, weights: dict[str, Schedule] | None, info: ValidationInfo) -> dict[str, Schedule] | None:
        """Check the weights at the knots of their schedules: between them they are monotone."""
        if "mode" not in info.data:
            return weights
        schedules = (weights or {}).values()
        for progress in sorted({0.0, 1.0}.union(*(schedule.knots() for schedule in schedules))):
            now = None if weights is None else {name: schedule.at(progress) for name, schedule in weights.items()}
            try:
                required_terms(info.data["mode"], now)
            except LeverlabError as error:
                raise ValueError(f"{error} (at {progress:.0%} of the training)") from None
        return weights

    @field_validator("shot_weights")
    @classmethod
    def _some_shots_count(cls, shot_weights: tuple[float, ...]) -> tuple[float, ...]:
        try:
            weighted_shots(shot_weights)
        except LeverlabError as error:
            raise ValueError(str(error)) from None
        return shot_weights
