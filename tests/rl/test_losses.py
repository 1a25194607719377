"""Losses: hand-worked values, a loop reference, REINFORCE at the first step, masks, the gradient's direction."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from leverlab.errors import LeverlabError
from leverlab.rl.losses import grpo_loss, rce_weights, sequence_cross_entropy


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def gradient(loss: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(loss, of)[0]


def random_case(trajectory: bool = False) -> dict[str, Tensor]:
    """Log-probabilities of B=2, G=3, T=4 picks that have drifted from old and reference, advantages, and a mask."""
    draw = torch.Generator().manual_seed(11)
    shape = (2, 3, 4)
    logp = -torch.rand(shape, generator=draw, dtype=torch.float64) * 3
    mask = torch.ones(shape, dtype=torch.bool)
    mask[0, 1, 2:] = False
    mask[1, 2, 3:] = False
    return {
        "logp_BGT": logp.requires_grad_(),
        "logp_old_BGT": logp.detach() + 0.4 * torch.randn(shape, generator=draw, dtype=torch.float64),
        "logp_ref_BGT": logp.detach() + 0.4 * torch.randn(shape, generator=draw, dtype=torch.float64),
        "advantages_BGT": torch.randn((2, 3, 1 if trajectory else 4), generator=draw, dtype=torch.float64),
        "mask_BGT": mask,
    }


def grpo_by_loop(case: dict[str, Tensor], epsilon: float | None, beta: float, level: str) -> dict[str, float]:
    """The same loss, one pick (or trajectory) at a time, with plain floats."""
    logp = case["logp_BGT"].detach()
    rows: list[tuple[float, float, float]] = []  # log rho, log (ref / policy), advantage
    for b in range(2):
        for g in range(3):
            valid = [t for t in range(4) if case["mask_BGT"][b, g, t]]
            old = [float(logp[b, g, t] - case["logp_old_BGT"][b, g, t]) for t in valid]
            ref = [float(case["logp_ref_BGT"][b, g, t] - logp[b, g, t]) for t in valid]
            advantages = case["advantages_BGT"][b, g].tolist()
            if level == "trajectory":
                rows.append((sum(old), sum(ref), advantages[0]))
            else:
                rows.extend((old[i], ref[i], advantages[t]) for i, t in enumerate(valid))
    count, result = len(rows), dict.fromkeys(("policy_loss", "kl", "approx_kl", "clipfrac"), 0.0)
    for log_ratio, log_ref, advantage in rows:
        ratio = math.exp(log_ratio)
        surrogate = ratio * advantage
        if epsilon is not None:
            surrogate = min(surrogate, max(1 - epsilon, min(1 + epsilon, ratio)) * advantage)
            result["clipfrac"] += (abs(ratio - 1) > epsilon) / count
        result["policy_loss"] -= surrogate / count
        result["kl"] += (math.exp(log_ref) - log_ref - 1) / count
        result["approx_kl"] += (ratio - 1 - log_ratio) / count
    result["ratio_max"] = max(math.exp(row[0]) for row in rows)
    result["loss"] = result["policy_loss"] + beta * result["kl"]
    return result


# ---- sequence cross-entropy and RCE ----------------------------------------------------------------------------------


def test_cross_entropy_by_hand() -> None:
    """Query 0: .25 * 1 + .75 * 3 = 2.5; query 1: .5 * 2 + .5 * 4 = 3; L = 2.75.

    Mean logp -(1 + 3 + 2 + 4) / 4 = -2.5. Effective sizes 1 / (1/16 + 9/16) = 1.6 and 2, mean 1.8.
    """
    loss, diagnostics = sequence_cross_entropy(tensor([[-1, -3], [-2, -4]]), tensor([[0.25, 0.75], [0.5, 0.5]]))
    assert loss.item() == pytest.approx(2.75)
    assert diagnostics["logp_mean"].item() == pytest.approx(-2.5)
    assert diagnostics["effective_sample_size"].item() == pytest.approx(1.8)


def test_cross_entropy_gradient_is_minus_the_weight() -> None:
    logp, weights = tensor([[-1, -3], [-2, -4]]).requires_grad_(), tensor([[0.25, 0.75], [0.5, 0.5]])
    torch.testing.assert_close(gradient(sequence_cross_entropy(logp, weights)[0], logp), -weights / 2)


def test_cross_entropy_ignores_weightless_trajectories() -> None:
    """Padding may hold any log-probability, -inf included; neither the value nor the gradient may see it."""
    padded = tensor([[-1, -3, -math.inf]]).requires_grad_()
    loss, diagnostics = sequence_cross_entropy(padded, tensor([[0.25, 0.75, 0]]))
    plain, plain_diagnostics = sequence_cross_entropy(tensor([[-1, -3]]), tensor([[0.25, 0.75]]))
    assert loss.item() == plain.item()
    assert diagnostics == plain_diagnostics
    assert gradient(loss, padded).tolist() == [[-0.25, -0.75, 0]]


def test_cross_entropy_is_invariant_to_permutation() -> None:
    logp, weights, order = tensor([[-1, -3, -2]]), tensor([[0.2, 0.3, 0.5]]), [2, 0, 1]
    permuted = sequence_cross_entropy(logp[:, order], weights[:, order])[0]
    torch.testing.assert_close(permuted, sequence_cross_entropy(logp, weights)[0])


def test_cross_entropy_refuses_shapes() -> None:
    with pytest.raises(LeverlabError, match="one non-empty shape BG"):
        sequence_cross_entropy(torch.zeros(2, 3), torch.zeros(2, 1))


def test_rce_weights_by_hand() -> None:
    """Rewards 0 and ln 3 at tau 1: weights 1/4 and 3/4; at tau 1/2 they are squared: 1/10 and 9/10."""
    rewards = tensor([[0, math.log(3)]])
    torch.testing.assert_close(rce_weights(rewards, 1.0), tensor([[0.25, 0.75]]))
    torch.testing.assert_close(rce_weights(rewards, 0.5), tensor([[0.1, 0.9]]))


def test_rce_weights_sum_to_one_shift_free_and_sharpen() -> None:
    rewards = torch.rand(5, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    weights = rce_weights(rewards, 0.7)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(rce_weights(rewards + 9, 0.7), weights)
    torch.testing.assert_close(rce_weights(rewards, 1e6), torch.full_like(rewards, 0.25), atol=1e-6, rtol=0)
    assert (rce_weights(rewards, 1e-4).argmax(dim=1) == rewards.argmax(dim=1)).all()
    assert (rce_weights(rewards, 0.1).amax(dim=1) > weights.amax(dim=1)).all()


def test_rce_weights_do_not_read_masked_rewards() -> None:
    mask = torch.tensor([[True, True, False]])
    expected = torch.cat([rce_weights(tensor([[0, 1]]), 0.5), tensor([[0]])], dim=1)
    for hidden in (100.0, math.nan, math.inf):
        torch.testing.assert_close(rce_weights(tensor([[0, 1, hidden]]), 0.5, mask), expected)


def test_rce_weights_refuse() -> None:
    for tau in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(LeverlabError, match="tau"):
            rce_weights(tensor([[0, 1]]), tau)
    with pytest.raises(LeverlabError, match="group 1 "):
        rce_weights(tensor([[0, 1], [0, math.nan]]), 1.0)
    with pytest.raises(LeverlabError, match="group 1 has no valid"):
        rce_weights(tensor([[0, 1], [0, 1]]), 1.0, torch.tensor([[True, True], [False, False]]))
    with pytest.raises(LeverlabError, match="one shape"):
        rce_weights(tensor([[0, 1]]), 1.0, torch.tensor([[True]]))


# ---- GRPO ------------------------------------------------------------------------------------------------------------


def test_grpo_by_hand() -> None:
    """Two picks, eps .2, beta .5, rho = 1.5 and .5, A = 2 and -1, reference = policy * 2 and = policy.

    Pick 0: min(3, 1.2 * 2) = 2.4. Pick 1: min(-.5, .8 * -1) = -.8. policy_loss = -(2.4 - .8) / 2 = -.8.
    k3 = 2 - ln 2 - 1 and 0, kl = (1 - ln 2) / 2. Loss = -.8 + (1 - ln 2) / 4. Both ratios are outside .8 .. 1.2.
    approx_kl = ((.5 - ln 1.5) + (-.5 - ln .5)) / 2 = ln(4/3) / 2.
    """
    logp = tensor([[[-1.0, -2.0]]])
    old, ref = logp - tensor([1.5, 0.5]).log(), logp + tensor([2.0, 1.0]).log()
    loss, diagnostics = grpo_loss(logp, old, ref, tensor([[[2, -1]]]), 0.2, 0.5, "pick")
    assert loss.item() == pytest.approx(-0.8 + (1 - math.log(2)) / 4)
    expected = {
        "policy_loss": -0.8,
        "kl": (1 - math.log(2)) / 2,
        "approx_kl": math.log(4 / 3) / 2,
        "clipfrac": 1.0,
        "ratio_max": 1.5,
    }
    assert {name: value.item() for name, value in diagnostics.items()} == pytest.approx(expected)


def test_grpo_trajectory_by_hand() -> None:
    """The same picks as one trajectory: rho = 1.5 * .5 = .75, A = -1: min(-.75, .8 * -1) = -.8, policy_loss .8.

    Reference / policy = 2 * 1, k3 = 1 - ln 2.
    """
    logp = tensor([[[-1.0, -2.0]]])
    old, ref = logp - tensor([1.5, 0.5]).log(), logp + tensor([2.0, 1.0]).log()
    loss, diagnostics = grpo_loss(logp, old, ref, tensor([[[-1]]]), 0.2, 0.5, "trajectory")
    assert loss.item() == pytest.approx(0.8 + 0.5 * (1 - math.log(2)))
    assert diagnostics["ratio_max"].item() == pytest.approx(0.75)


@pytest.mark.parametrize("level", ["pick", "trajectory"])
@pytest.mark.parametrize("epsilon", [None, 0.2])
def test_grpo_equals_the_loop(level: Any, epsilon: float | None) -> None:
    case = random_case(trajectory=level == "trajectory")
    loss, diagnostics = grpo_loss(**case, clip_epsilon=epsilon, kl_beta=0.3, ratio_level=level)
    expected = grpo_by_loop(case, epsilon, 0.3, level)
    assert {"loss": loss.item(), **{k: v.item() for k, v in diagnostics.items()}} == pytest.approx(expected, rel=1e-10)
    assert not any(value.requires_grad for value in diagnostics.values())


@pytest.mark.parametrize("level", ["pick", "trajectory"])
def test_first_step_is_reinforce(level: Any) -> None:
    """At logp == logp_old == logp_ref: every ratio is 1, no KL, nothing clipped, and the gradient is REINFORCE's.

    That is the gradient of -mean(A logp) over picks, or of -mean(A sum_t logp) over trajectories; k3 has none at r = 1.
    """
    case = random_case(trajectory=level == "trajectory")
    logp, mask, advantages = case["logp_BGT"], case["mask_BGT"], case["advantages_BGT"]
    case["logp_old_BGT"] = case["logp_ref_BGT"] = logp.detach().clone()
    loss, diagnostics = grpo_loss(**case, clip_epsilon=0.2, kl_beta=0.3, ratio_level=level)
    assert diagnostics["ratio_max"] == 1
    assert diagnostics["approx_kl"] == diagnostics["kl"] == diagnostics["clipfrac"] == 0
    count = mask.sum() if level == "pick" else 6
    reinforce = -(advantages * logp * mask).sum() / count
    torch.testing.assert_close(gradient(loss, logp), gradient(reinforce, logp))


def test_a_step_down_the_gradient_raises_what_was_good() -> None:
    """B=1, G=2, one pick among 3 candidates: after a step the winner's probability is up and the loser's down."""
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    picks, advantages = torch.tensor([0, 2]), tensor([[[1], [-1]]])
    logp = logits.log_softmax(-1)[picks].reshape(1, 2, 1)
    loss, _ = grpo_loss(logp, logp.detach(), logp.detach(), advantages, 0.2, 0.1, "pick")
    after = (logits - 0.1 * gradient(loss, logits)).softmax(-1)
    assert after[0] > 1 / 3 > after[2]


@pytest.mark.parametrize(
    ("ratio", "advantage", "moves"), [(1.3, 1, False), (0.7, -1, False), (1.3, -1, True), (0.7, 1, True)]
)
def test_the_clip_stops_only_what_has_gone_far_enough(ratio: float, advantage: float, moves: bool) -> None:
    """Outside 1 +- .2 the gradient is 0 where the policy already moved the right way, alive where it must come back."""
    logp = tensor([[[-1.0]]]).requires_grad_()
    old = logp.detach() - math.log(ratio)
    loss, _ = grpo_loss(logp, old, logp.detach(), tensor([[[advantage]]]), 0.2, 0.0, "pick")
    expected = -ratio * advantage if moves else 0.0
    assert gradient(loss, logp).item() == pytest.approx(expected)
    unclipped, diagnostics = grpo_loss(logp, old, logp.detach(), tensor([[[advantage]]]), None, 0.0, "pick")
    assert gradient(unclipped, logp).item() == pytest.approx(-ratio * advantage)
    assert diagnostics["clipfrac"] == 0


def test_the_kl_pulls_towards_the_reference() -> None:
    """d k3 / d logp = 1 - r with r = ref / policy: at r = e^.5 > 1 the descent raises logp, at r < 1 it lowers it."""
    logp = tensor([[[-1.0, -1.0]]]).requires_grad_()
    ref = logp.detach() + tensor([0.5, -0.5])
    loss, _ = grpo_loss(logp, logp.detach(), ref, tensor([[[0]]]), 0.2, 0.4, "pick")
    expected = 0.4 * (1 - tensor([[[0.5, -0.5]]]).exp()) / 2
    torch.testing.assert_close(gradient(loss, logp), expected)
    assert expected[0, 0, 0] < 0 < expected[0, 0, 1]


@pytest.mark.parametrize("level", ["pick", "trajectory"])
def test_what_lies_under_the_mask_is_ignored(level: Any) -> None:
    """Padding by -inf, NaN or another trajectory changes no value and no gradient."""
    case = random_case(trajectory=level == "trajectory")
    mask = case["mask_BGT"].clone()
    mask[1, 0] = False  # a whole trajectory, as in a group that is smaller than the others
    case["mask_BGT"] = mask
    loss, diagnostics = grpo_loss(**case, clip_epsilon=0.2, kl_beta=0.3, ratio_level=level)
    kept = gradient(loss, case["logp_BGT"])
    assert (kept[~mask] == 0).all()
    assert (kept[mask] != 0).any()
    for name, hidden in (("logp_BGT", -math.inf), ("logp_old_BGT", -math.inf), ("logp_ref_BGT", math.nan)):
        case[name] = case[name].detach().masked_fill(~mask, hidden)
    case["advantages_BGT"] = case["advantages_BGT"].clone()
    case["advantages_BGT"][1, 0] = math.nan
    case["logp_BGT"].requires_grad_()
    again, again_diagnostics = grpo_loss(**case, clip_epsilon=0.2, kl_beta=0.3, ratio_level=level)
    torch.testing.assert_close(again, loss)
    torch.testing.assert_close(again_diagnostics, diagnostics)
    torch.testing.assert_close(gradient(again, case["logp_BGT"]), kept)


def test_grpo_is_invariant_to_permutation_within_the_group() -> None:
    case, order = random_case(), [2, 0, 1]
    loss, diagnostics = grpo_loss(**case, clip_epsilon=0.2, kl_beta=0.3, ratio_level="pick")
    permuted = {name: value[:, order] for name, value in case.items()}
    again, again_diagnostics = grpo_loss(**permuted, clip_epsilon=0.2, kl_beta=0.3, ratio_level="pick")
    torch.testing.assert_close(again, loss)
    torch.testing.assert_close(again_diagnostics, diagnostics)


def test_both_levels_agree_on_a_single_pick() -> None:
    case = {name: value[..., :1] for name, value in random_case().items()}
    by_pick = grpo_loss(**case, clip_epsilon=0.2, kl_beta=0.3, ratio_level="pick")
    by_trajectory = grpo_loss(**case, clip_epsilon=0.2, kl_beta=0.3, ratio_level="trajectory")
    torch.testing.assert_close(by_trajectory, by_pick)


def test_one_advantage_serves_every_pick() -> None:
    case = random_case(trajectory=True)
    narrow = grpo_loss(**case, clip_epsilon=0.2, kl_beta=0.3, ratio_level="pick")
    case["advantages_BGT"] = case["advantages_BGT"].expand(2, 3, 4)
    torch.testing.assert_close(grpo_loss(**case, clip_epsilon=0.2, kl_beta=0.3, ratio_level="pick"), narrow)


def test_beta_zero_measures_the_kl_and_does_not_use_it() -> None:
    logp = tensor([[[-1.0]]])
    loss, diagnostics = grpo_loss(logp, logp, logp + 1000, tensor([[[1]]]), 0.2, 0.0, "pick")
    assert loss.item() == -1
    assert diagnostics["kl"] == math.inf


def test_gradient_flows_into_the_policy_alone() -> None:
    case = random_case()
    for name in ("logp_old_BGT", "logp_ref_BGT", "advantages_BGT"):
        case[name].requires_grad_()
    loss, _ = grpo_loss(**case, clip_epsilon=0.2, kl_beta=0.3, ratio_level="pick")
    names = ("logp_BGT", "logp_old_BGT", "logp_ref_BGT", "advantages_BGT")
    gradients = torch.autograd.grad(loss, [case[name] for name in names], allow_unused=True)
    assert gradients[0] is not None
    assert all(other is None for other in gradients[1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"advantages_BGT": torch.zeros(2, 3, 2)}, "advantages of shape"),
        ({"advantages_BGT": torch.zeros(2, 3)}, "advantages of shape"),
        ({"ratio_level": "trajectory"}, "one advantage for each trajectory"),
        ({"ratio_level": "token"}, "unknown"),
        ({"logp_old_BGT": torch.zeros(2, 3, 1)}, "one shape BGT"),
        ({"mask_BGT": torch.ones(2, 3, 4)}, "bool mask"),
        ({"mask_BGT": torch.zeros(2, 3, 4, dtype=torch.bool)}, "valid pick"),
        ({"clip_epsilon": 0.0}, "clip_epsilon"),
        ({"clip_epsilon": 1.0}, "clip_epsilon"),
        ({"kl_beta": -0.1}, "kl_beta"),
        ({"kl_beta": math.nan}, "kl_beta"),
    ],
)
def test_grpo_refuses(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {**random_case(), "clip_epsilon": 0.2, "kl_beta": 0.1, "ratio_level": "pick"}
    with pytest.raises(LeverlabError, match=message):
        grpo_loss(**{**arguments, **change})


def test_a_batch_without_groups_is_refused() -> None:
    empty = torch.zeros(0, 3, 4)
    with pytest.raises(LeverlabError, match="all flat"):
        grpo_loss(empty, empty, empty, empty, 0.2, 0.1, "pick")
