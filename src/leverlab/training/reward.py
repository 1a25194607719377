"""The reward of params.yaml at a moment of training."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from leverlab.config.reward import RewardParams
from leverlab.rl.rewards import mode_rewards, required_terms, trajectory_reward

Terms = Mapping[str, NDArray[np.float64]]  # reward term → its value for every prefix, (..., T)


def prefix_reward(params: RewardParams, terms: Terms, progress: float) -> NDArray[np.float64]:
    """Return the reward of every prefix, (..., T), at `progress`, the share of the training that is over."""
    weights = None
    if params.weights is not None:
        weights = {name: weight.at(progress) for name, weight in params.weights.items()}
    return np.asarray(mode_rewards(params.mode, terms, weights), np.float64)


def list_reward(params: RewardParams, terms: Terms, progress: float) -> NDArray[np.float64]:
    """Return the reward of every list, (...), the weighted mean over its prefixes."""
    return np.asarray(trajectory_reward(prefix_reward(params, terms, progress), params.shot_weights), np.float64)


def terms_read(params: RewardParams) -> tuple[str, ...]:
    """Return the names of the terms that have a weight at any time."""
    if params.weights is None:
        return required_terms(params.mode)
    return required_terms(params.mode, {name: weight.largest() for name, weight in params.weights.items()})
