"""Group-relative advantages: hand-worked values, loop references, invariances, and what counts as a live group."""

import math

import pytest
import torch
from torch import Tensor

from leverlab.errors import LeverlabError
from leverlab.rl.advantages import group_advantages, group_advantages_per_pick, reward_to_go
from leverlab.rl.modes import ADVANTAGE_MODES


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random_rewards(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def advantage_by_loop(rewards: list[float], mode: str, clip: float, epsilon: float) -> list[float]:
    size, mean = len(rewards), sum(rewards) / len(rewards)
    std = math.sqrt(sum((reward - mean) ** 2 for reward in rewards) / size)
    result = []
    for reward in rewards:
        if mode == "rank":
            better = sum(other > reward for other in rewards)
            tied = sum(other == reward for other in rewards) - 1
            value = 1 - 2 * (better + tied / 2) / (size - 1)
        else:
            value = (reward - mean) / (std + epsilon if mode == "zscore" else 1)
        result.append(max(-clip, min(clip, value)))
    return result


def test_zscore_by_hand() -> None:
    """Rewards 0, 0, 1, 1: mean 1/2, population std 1/2, so A = +-(1/2) / (1/2 + 1/100) = +-50/51."""
    advantages, live = group_advantages(tensor([[0, 0, 1, 1]]), "zscore")
    torch.testing.assert_close(advantages, tensor([[-50 / 51, -50 / 51, 50 / 51, 50 / 51]]))
    assert live.tolist() == [True]


def test_rank_by_hand() -> None:
    """Rewards .2, .9, .2, .5 (G = 4): ranks 0 for .9, 1 for .5, and (2 + 3) / 2 for both .2.

    A = 1 - 2 rank / 3 = 1, 1/3, -2/3, -2/3.
    """
    advantages, _ = group_advantages(tensor([[0.2, 0.9, 0.2, 0.5]]), "rank")
    torch.testing.assert_close(advantages, tensor([[-2 / 3, 1, -2 / 3, 1 / 3]]))


def test_mean_centred_by_hand() -> None:
    """Rewards 0, 1, 2: mean 1, A = -1, 0, 1; with clip 0.5 the ends stop at +-0.5."""
    torch.testing.assert_close(group_advantages(tensor([[0, 1, 2]]), "mean_centred")[0], tensor([[-1, 0, 1]]))
    torch.testing.assert_close(
        group_advantages(tensor([[0, 1, 2]]), "mean_centred", clip=0.5)[0], tensor([[-0.5, 0, 0.5]])
    )


def test_zscore_is_clipped() -> None:
    """One success among 100: mean .01, std sqrt(.01 * .99) = .0995, so A = .99 / .1095 = 9.04, clipped to 5."""
    rewards = torch.zeros(1, 100, dtype=torch.float64)
    rewards[0, 7] = 1
    assert group_advantages(rewards, "zscore")[0].max() == 5.0
    assert group_advantages(rewards, "zscore", clip=20.0)[0].max() == pytest.approx(0.99 / (math.sqrt(0.0099) + 0.01))


@pytest.mark.parametrize("mode", ADVANTAGE_MODES)
def test_equals_the_loop(mode: str) -> None:
    rewards = (random_rewards(6, 5) * 4).round() / 4  # quarter steps, so that there are ties
    advantages, live = group_advantages(rewards, mode, clip=1.2, epsilon=0.05)  # type: ignore[arg-type]
    assert live.all()
    expected = [advantage_by_loop(group, mode, 1.2, 0.05) for group in rewards.tolist()]
    torch.testing.assert_close(advantages, tensor(expected))


@pytest.mark.parametrize("mode", ADVANTAGE_MODES)
def test_a_permutation_of_the_group_permutes_the_advantages(mode: str) -> None:
    rewards, order = random_rewards(4, 6), torch.tensor([4, 0, 5, 2, 1, 3])
    permuted = group_advantages(rewards[:, order], mode)[0]  # type: ignore[arg-type]
    torch.testing.assert_close(permuted, group_advantages(rewards, mode)[0][:, order])  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ADVANTAGE_MODES)
def test_a_shift_of_the_rewards_changes_nothing_and_advantages_sum_to_zero(mode: str) -> None:
    rewards = random_rewards(4, 6)
    advantages = group_advantages(rewards, mode)[0]  # type: ignore[arg-type]
    torch.testing.assert_close(group_advantages(rewards + 3, mode)[0], advantages)  # type: ignore[arg-type]
    torch.testing.assert_close(advantages.sum(dim=1), torch.zeros(4, dtype=torch.float64), atol=1e-12, rtol=0)
    assert (advantages.argmax(dim=1) == rewards.argmax(dim=1)).all()


@pytest.mark.parametrize("mode", ADVANTAGE_MODES)
def test_flat_groups_are_not_live_and_do_not_touch_the_others(mode: str) -> None:
    rewards = tensor([[1, 1, 1], [0, 1, 0], [0, 5e-9, 0]])  # the last spread is below the tolerance of 1e-8
    advantages, live = group_advantages(rewards, mode)  # type: ignore[arg-type]
    assert live.tolist() == [False, True, False]
    assert advantages[0].tolist() == advantages[2].tolist() == [0, 0, 0]
    torch.testing.assert_close(advantages[1:2], group_advantages(rewards[1:2], mode)[0])  # type: ignore[arg-type]


def test_a_group_of_one_is_flat() -> None:
    advantages, live = group_advantages(tensor([[0.7]]), "rank")
    assert (advantages.tolist(), live.tolist()) == ([[0]], [False])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_reward_names_its_group(bad: float) -> None:
    with pytest.raises(LeverlabError, match="group 1 "):
        group_advantages(tensor([[0, 1], [0, bad]]), "zscore")
    with pytest.raises(LeverlabError, match="group 1 "):
        group_advantages_per_pick(tensor([[[0, 1], [1, 0]], [[0, 1], [bad, 0]]]), "zscore")
    with pytest.raises(LeverlabError, match="group 0 "):
        reward_to_go(tensor([[[0, bad]]]))


def test_wrong_arguments_are_refused() -> None:
    rewards = tensor([[0, 1]])
    with pytest.raises(LeverlabError, match="unknown"):
        group_advantages(rewards, "z-score")  # type: ignore[arg-type]
    for clip, epsilon in ((0.0, 0.01), (5.0, -1.0), (math.nan, 0.01)):
        with pytest.raises(LeverlabError, match="clip > 0"):
            group_advantages(rewards, "zscore", clip, epsilon)
    for wrong in (rewards[0], torch.zeros(2, 0), torch.tensor([[0, 1]])):
        with pytest.raises(LeverlabError, match="floating tensor of shape BG"):
            group_advantages(wrong, "zscore")


def test_reward_to_go_by_hand() -> None:
    """Prefix rewards 1, 0, .5, .5: means of the tails are 2/4, 1/3, 1/2 and .5."""
    torch.testing.assert_close(reward_to_go(tensor([[[1, 0, 0.5, 0.5]]])), tensor([[[0.5, 1 / 3, 0.5, 0.5]]]))


def test_reward_to_go_ignores_earlier_prefixes() -> None:
    rewards = random_rewards(2, 3, 4)
    changed = rewards.clone()
    changed[..., 1] += 1
    difference = reward_to_go(changed) - reward_to_go(rewards)
    assert (difference[..., 2:] == 0).all()
    torch.testing.assert_close(difference[..., :2], tensor([1 / 4, 1 / 3]).expand(2, 3, 2))


def test_per_pick_equals_one_call_for_every_pick() -> None:
    returns = random_rewards(3, 5, 4)
    advantages, live = group_advantages_per_pick(returns, "zscore")
    for pick in range(4):
        torch.testing.assert_close(advantages[..., pick], group_advantages(returns[..., pick], "zscore")[0])
    assert live.all()
    assert advantages.is_contiguous()


def test_per_pick_columns_are_judged_apart() -> None:
    """Group 0: pick 0 flat, pick 1 has spread, so the group lives with a zero first column. Group 1: flat in both."""
    returns = tensor([[[0.5, 0], [0.5, 1]], [[0.5, 1], [0.5, 1]]])
    advantages, live = group_advantages_per_pick(returns, "rank")
    assert live.tolist() == [True, False]
    assert advantages.tolist() == [[[0, -1], [0, 1]], [[0, 0], [0, 0]]]
