"""Group-relative advantages: how much better a trajectory is than the other trajectories of its query.

Advantages are made here, once, from raw rewards; nothing else in leverlab standardises a reward.
"""

import torch
from torch import Tensor

from leverlab.errors import LeverlabError
from leverlab.rl.modes import ADVANTAGE_MODES, AdvantageMode

# Rewards closer than this are the same reward. It covers the rounding of float64 rewards. The rounding of float32
# rewards near 1 is larger (1.2e-7), and `rank` would turn it into +1 against -1: keep rewards in float64.
FLAT_TOLERANCE = 1e-8


def group_advantages(
    rewards_BG: Tensor, mode: AdvantageMode, clip: float = 5.0, epsilon: float = 1e-2
) -> tuple[Tensor, Tensor]:
    """Return `(advantages_BG, live_B)`: each reward relative to its group, and which groups carry any signal.

    - `zscore`: (r - mean) / (std + epsilon), population standard deviation. After DeepSeekMath, arXiv 2402.03300.
    - `rank`: 1 - 2 * rank / (G - 1), so the best is +1 and the worst -1; ties share their mean rank.
    - `mean_centred`: r - mean. Dr. GRPO (arXiv 2503.20783) argues for it: no division by the spread.

    `rewards_BG` is a floating tensor; advantages have its dtype and lie in [-clip, clip]. A group whose max - min is at
    most 1e-8 is not live: its advantages are zero and the caller drops it instead of averaging it in.
    Raises `LeverlabError` for a wrong shape, an unknown mode, clip <= 0 or epsilon < 0, and for a reward that is NaN or
    infinite (the message names the group).
    """
    _check_rewards(rewards_BG, "BG")
    if mode not in ADVANTAGE_MODES:
        raise LeverlabError(f"advantage mode {mode!r} is unknown; use one of {', '.join(ADVANTAGE_MODES)}")
    if not clip > 0 or not epsilon >= 0:
        raise LeverlabError(f"advantages need clip > 0 and epsilon >= 0, got clip={clip}, epsilon={epsilon}")
    live_B = rewards_BG.amax(dim=1) - rewards_BG.amin(dim=1) > FLAT_TOLERANCE
    if mode == "rank":
        advantages_BG = _rank_advantages(rewards_BG)
    else:
        advantages_BG = rewards_BG - rewards_BG.mean(dim=1, keepdim=True)
        if mode == "zscore":
            advantages_BG = advantages_BG / (rewards_BG.std(dim=1, correction=0, keepdim=True) + epsilon)
    clipped_BG = advantages_BG.clamp(-clip, clip)
    return torch.where(live_B[:, None], clipped_BG, torch.zeros_like(clipped_BG)), live_B


def reward_to_go(rewards_BGT: Tensor) -> Tensor:
    """Return `returns_BGT`: for pick j the mean reward of the prefixes that contain it, mean(rewards[..., j:]).

    `rewards_BGT[..., t]` is the reward of the prefix of t + 1 demos. A pick cannot change the prefixes before it, so
    their rewards are only noise to it. Raises `LeverlabError` for a wrong shape or a reward that is NaN or infinite.
    """
    _check_rewards(rewards_BGT, "BGT")
    sums_BGT = rewards_BGT.flip(-1).cumsum(-1).flip(-1)
    count = rewards_BGT.shape[-1]
    prefixes_left_T = torch.arange(count, 0, -1, dtype=rewards_BGT.dtype, device=rewards_BGT.device)
    return sums_BGT / prefixes_left_T


def group_advantages_per_pick(
    returns_BGT: Tensor, mode: AdvantageMode, clip: float = 5.0, epsilon: float = 1e-2
) -> tuple[Tensor, Tensor]:
    """Return `(advantages_BGT, live_B)`: `group_advantages` at every pick position on its own.

    A pick position without spread has zero advantages; a group is live when any of its positions is.
    Raises what `group_advantages` raises.
    """
    _check_rewards(returns_BGT, "BGT")
    groups, trajectories, picks = returns_BGT.shape
    columns = returns_BGT.permute(0, 2, 1).reshape(groups * picks, trajectories)
    advantages, live = group_advantages(columns, mode, clip, epsilon)
    advantages_BGT = advantages.reshape(groups, picks, trajectories).permute(0, 2, 1)
    return advantages_BGT.contiguous(), live.reshape(groups, picks).any(dim=1)


def _rank_advantages(rewards_BG: Tensor) -> Tensor:
    difference_BGG = rewards_BG[:, None, :] - rewards_BG[:, :, None]  # [b, i, j] = r_j - r_i
    better_BG = (difference_BGG > FLAT_TOLERANCE).sum(dim=2)
    tied_BG = (difference_BGG.abs() <= FLAT_TOLERANCE).sum(dim=2) - 1  # without itself
    rank_BG = better_BG.to(rewards_BG.dtype) + tied_BG.to(rewards_BG.dtype) / 2
    return 1 - 2 * rank_BG / max(rewards_BG.shape[1] - 1, 1)  # a group of one is flat and zeroed by the caller


def _check_rewards(rewards: Tensor, axes: str) -> None:
    if rewards.dim() != len(axes) or min(rewards.shape[1:]) == 0 or not rewards.is_floating_point():
        raise LeverlabError(
            f"rewards must be a floating tensor of shape {axes} with no empty group, "
            f"got {rewards.dtype} of shape {tuple(rewards.shape)}"
        )
    bad_B = ~torch.isfinite(rewards).flatten(1).all(dim=1)
    if bad_B.any():
        group = int(bad_B.nonzero()[0, 0])
        raise LeverlabError(
            f"group {group} holds a reward that is NaN or infinite: {rewards[group].tolist()}; "
            "score it again or drop the group before making advantages"
        )
