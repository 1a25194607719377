"""The training losses of the selector: weighted sequence cross-entropy (SFT, RCE) and GRPO.

Every loss returns `(loss, diagnostics)`: a scalar to differentiate, and detached scalar tensors under fixed names.
Log-probabilities are natural logarithms and are to be computed in eval mode: dropout would be noise in the ratios.
"""

import math

import torch
from torch import Tensor

from leverlab.errors import LeverlabError
from leverlab.rl.kl import k3
from leverlab.rl.modes import RATIO_LEVELS, RatioLevel


def sequence_cross_entropy(logp_BG: Tensor, weights_BG: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return `(loss, diagnostics)` of L = -sum_i w_i log pi(trajectory_i | query), averaged over the queries.

    `logp_BG` sums the log-probabilities of a trajectory's picks. `weights_BG` are used as they are (sum 1 in a group by
    convention): uniform for SFT, `rce_weights` for RCE. A trajectory of weight 0 is ignored, whatever its `logp`.
    Diagnostics: `logp_mean`, over trajectories of non-zero weight, and `effective_sample_size`, (sum w)^2 / sum w^2,
    mean over the queries, in [1, G]. Raises `LeverlabError` when the shapes differ.
    Source with `rce_weights`: reward-weighted regression (Peters and Schaal, ICML 2007); advantage-weighted regression
    (arXiv 1910.00177) writes the same regression with exp(advantage / beta) as weights.
    """
    if logp_BG.dim() != 2 or logp_BG.shape != weights_BG.shape or logp_BG.numel() == 0:
        raise LeverlabError(
            "sequence_cross_entropy needs logp and weights of one non-empty shape BG, "
            f"got {tuple(logp_BG.shape)} and {tuple(weights_BG.shape)}"
        )
    weights_BG = weights_BG.detach()
    used_BG = weights_BG != 0
    logp_BG = torch.where(used_BG, logp_BG, torch.zeros_like(logp_BG))
    loss = -(weights_BG * logp_BG).sum(dim=1).mean()
    effective_B = weights_BG.sum(dim=1).square() / weights_BG.square().sum(dim=1)
    return loss, {
        "logp_mean": logp_BG.detach().sum() / used_BG.sum(),
        "effective_sample_size": effective_B.mean(),
    }


def rce_weights(rewards_BG: Tensor, tau: float, mask_BG: Tensor | None = None) -> Tensor:
    """Return `weights_BG` = softmax(reward / tau) over the valid trajectories of each group; masked ones weigh 0.

    The weights sum to 1 in every group: tau to infinity makes them uniform, tau to 0 keeps the best trajectory alone.
    `mask_BG` is True where a trajectory is valid; rewards under the mask are never read.
    Raises `LeverlabError` for tau <= 0, a group without a valid trajectory, or a valid reward that is NaN or infinite.
    Source: the exponential transformation of rewards in Peters and Schaal, ICML 2007, normalised inside the group.
    """
    if not 0 < tau < math.inf:
        raise LeverlabError(f"the temperature tau of the RCE weights must be positive and finite, got {tau}")
    if mask_BG is None:
        mask_BG = torch.ones_like(rewards_BG, dtype=torch.bool)
    if rewards_BG.dim() != 2 or mask_BG.shape != rewards_BG.shape:
        raise LeverlabError(
            "rce_weights needs rewards and mask of one shape BG, "
            f"got {tuple(rewards_BG.shape)} and {tuple(mask_BG.shape)}"
        )
    bad_B = (~torch.isfinite(rewards_BG) & mask_BG).any(dim=1) | ~mask_BG.any(dim=1)
    if bad_B.any():
        group = int(bad_B.nonzero()[0, 0])
        raise LeverlabError(
            f"group {group} has no valid trajectory or a valid reward that is NaN or infinite: "
            f"{rewards_BG[group].tolist()}; score it again or drop the group"
        )
    return torch.softmax((rewards_BG / tau).masked_fill(~mask_BG, -math.inf), dim=1)


def grpo_loss(
    logp_BGT: Tensor,
    logp_old_BGT: Tensor,
    logp_ref_BGT: Tensor,
    advantages_BGT: Tensor,
    clip_epsilon: float | None,
    kl_beta: float,
    ratio_level: RatioLevel,
    mask_BGT: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return `(loss, diagnostics)` of L = -mean(min(rho A, clip(rho, 1 - eps, 1 + eps) A)) + beta * mean(k3).

    `logp_BGT` belongs to the policy in training and carries the gradient; `logp_old_BGT` to the policy that produced or
    last visited the data, rho = exp(logp - logp_old); `logp_ref_BGT` to the KL reference, k3 = r - 1 - log r with
    r = ref / policy. `mask_BGT` is True where a pick is valid; all else is ignored. `clip_epsilon` None means no clip;
    with `kl_beta` 0 the KL is measured but does not enter the loss.

    - `ratio_level="pick"`: one ratio for every pick; `advantages_BGT` is [B, G, T], or [B, G, 1] to serve every pick.
      Means run over all valid picks, so with equal lengths this is the double mean of GRPO.
    - `ratio_level="trajectory"`: log-probabilities are summed over the valid picks first: one ratio and one k3 for each
      trajectory (nats per trajectory, about T times those per pick); `advantages_BGT` must be [B, G, 1].

    Diagnostics, all over valid entries: `policy_loss`; `kl`, k3 to the reference; `approx_kl`, k3 to the old policy;
    `clipfrac`, share of ratios outside 1 +- eps; `ratio_max`. `kl` is an unbiased estimate only for trajectories drawn
    from the policy itself; on stored groups it is a penalty on the stored picks.
    Raises `LeverlabError` for wrong shapes or settings, and when no pick is valid (a batch of flat groups: skip it).
    Source: GRPO in DeepSeekMath, arXiv 2402.03300, eq. 3 (objective) and eq. 4 (k3); the clip is that of PPO, arXiv
    1707.06347, eq. 7.
    """
    if mask_BGT is None:
        mask_BGT = torch.ones_like(logp_BGT, dtype=torch.bool)
    _check_grpo(logp_BGT, logp_old_BGT, logp_ref_BGT, advantages_BGT, mask_BGT, ratio_level)
    if clip_epsilon is not None and not 0 < clip_epsilon < 1:
        raise LeverlabError(f"clip_epsilon must lie in (0, 1), or be None for no clip, got {clip_epsilon}")
    if not 0 <= kl_beta < math.inf:
        raise LeverlabError(f"kl_beta must be 0 or positive, got {kl_beta}")

    zero = torch.zeros_like(logp_BGT)
    log_ratio = torch.where(mask_BGT, logp_BGT - logp_old_BGT.detach(), zero)
    log_ref_ratio = torch.where(mask_BGT, logp_ref_BGT.detach() - logp_BGT, zero)
    mask = mask_BGT
    if ratio_level == "trajectory":
        log_ratio, log_ref_ratio = log_ratio.sum(-1, keepdim=True), log_ref_ratio.sum(-1, keepdim=True)
        mask = mask_BGT.any(-1, keepdim=True)
    advantages = advantages_BGT.detach().expand_as(log_ratio)

    ratio = log_ratio.exp()
    surrogate = ratio * advantages
    outside = torch.zeros_like(ratio)
    if clip_epsilon is not None:
        surrogate = torch.minimum(surrogate, ratio.clamp(1 - clip_epsilon, 1 + clip_epsilon) * advantages)
        outside = ((ratio.detach() - 1).abs() > clip_epsilon).to(ratio.dtype)
    policy_loss = -_masked_mean(surrogate, mask)
    kl = _masked_mean(k3(log_ref_ratio), mask)
    # Not `+ 0 * kl`: an infinite KL would turn a loss that does not use it into NaN.
    loss = policy_loss + kl_beta * kl if kl_beta > 0 else policy_loss
    return loss, {
        "policy_loss": policy_loss.detach(),
        "kl": kl.detach(),
        "approx_kl": _masked_mean(k3(log_ratio.detach()), mask),
        "clipfrac": _masked_mean(outside, mask),
        "ratio_max": ratio.detach().masked_fill(~mask, -math.inf).amax(),
    }


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, torch.zeros_like(values)).sum() / mask.sum()


def _check_grpo(
    logp: Tensor, logp_old: Tensor, logp_ref: Tensor, advantages: Tensor, mask: Tensor, ratio_level: RatioLevel
) -> None:
    if ratio_level not in RATIO_LEVELS:
        raise LeverlabError(f"ratio level {ratio_level!r} is unknown; use one of {', '.join(RATIO_LEVELS)}")
    if logp.dim() != 3 or not logp.shape == logp_old.shape == logp_ref.shape == mask.shape:
        raise LeverlabError(
            "grpo_loss needs logp, logp_old, logp_ref and mask of one shape BGT, got "
            + ", ".join(str(tuple(tensor.shape)) for tensor in (logp, logp_old, logp_ref, mask))
        )
    groups, trajectories, picks = logp.shape
    widths = (1,) if ratio_level == "trajectory" else (1, picks)
    if tuple(advantages.shape) not in {(groups, trajectories, width) for width in widths}:
        raise LeverlabError(
            f"grpo_loss at ratio level '{ratio_level}' needs advantages of shape "
            + " or ".join(str((groups, trajectories, width)) for width in widths)
            + f", got {tuple(advantages.shape)}; a trajectory ratio has one advantage for each trajectory"
        )
    if mask.dtype != torch.bool or not mask.any():
        raise LeverlabError("grpo_loss needs a bool mask with a valid pick; skip a batch whose groups are all flat")
