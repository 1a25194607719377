"""The section `reward` of params.yaml: what a trajectory is paid for."""

from typing import Any

from pydantic import Field, model_validator

from leverlab.config.base import Number, Section
from leverlab.config.schedule import Schedule
from leverlab.rl.rewards import REWARD_MODES, WEIGHTED_MODES, RewardMode


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
