"""The section `reward` of params.yaml: what a trajectory is paid for."""

from typing import Any

from pydantic import Field, model_validator

from leverlab.config.base import Number, Section
from leverlab.config.schedule import Schedule
from leverlab.rl.rewards import REWARD_MODES, WEIGHTED_MODES, RewardMode, required_terms


class RewardParams(Section):
    """One expression over named terms for every prefix, averaged over shot counts."""

    mode: RewardMode
    weights: dict[str, Schedule] | None  # term → weight, for the modes that read weights
    shot_weights: tuple[Number, ...] = Field(min_length=1)  # one for each shot count, from 1 on

    @model_validator(mode="before")
    @classmethod
    def _weights_fit_mode(cls, data: Any) -> Any:
        fixed = [mode for mode in REWARD_MODES if mode not in WEIGHTED_MODES]  # a list: a bad mode may be unhashable
        if isinstance(data, dict) and data.get("mode") in fixed and data.get("weights") is not None:
            raise ValueError(
                f"Reward mode '{data.get('mode')}' has fixed weights and would not read these; set weights to null"
            )
        return data

    def weights_at(self, progress: float) -> dict[str, float] | None:
        """Return the weights at `progress`, the share of the training that is over, in [0, 1]."""
        return None if self.weights is None else {name: weight.at(progress) for name, weight in self.weights.items()}

    def terms(self) -> tuple[str, ...]:
        """Return the names of the terms that are weighted at any time."""
        largest = {name: weight.largest() for name, weight in (self.weights or {}).items()}
        return required_terms(self.mode, None if self.weights is None else largest)
