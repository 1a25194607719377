"""Kullback-Leibler divergence: an estimator from log-ratios, exact values from logits, and the adaptive coefficient."""

import math

import torch
from torch import Tensor

from leverlab.errors import LeverlabError


def k3(log_ratio: Tensor) -> Tensor:
    """Return (r - 1) - log r per sample: unbiased for KL(q || p), low variance, never negative.

    `log_ratio` is log p(x) - log q(x) with x drawn from q, any shape, in nats.
    Source: Schulman, Approximating KL Divergence, joschu.net/blog/kl-approx.html.
    """
    # expm1, because r - 1 loses every digit near r = 1, which is where training starts.
    return torch.expm1(log_ratio) - log_ratio


def categorical_kl(logits_p: Tensor, logits_q: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the exact KL(p || q) in nats over the last axis, shape `logits_p.shape[:-1]`.

    `mask` (bool, broadcastable to the logits) is True where an entry may be chosen; a logit of -inf means the same as
    False. Entries with p = 0 contribute 0, without NaN in the value or the gradient; p > 0 where q = 0 gives +inf.
    Raises `LeverlabError` when shapes differ or a row has no entry left.
    """
    if logits_p.shape != logits_q.shape:
        raise LeverlabError(
            f"categorical_kl needs logits of one shape, got {tuple(logits_p.shape)} and {tuple(logits_q.shape)}"
        )
    logp, logq = _masked_log_softmax(logits_p, mask), _masked_log_softmax(logits_q, mask)
    support = logp > -math.inf
    zero = torch.zeros_like(logp)
    # Both logs are replaced before they meet: -inf - -inf is NaN, and a NaN under `where` still poisons the gradient.
    difference = torch.where(support, logp, zero) - torch.where(support, logq, zero)
    return (logp.exp() * difference).sum(dim=-1)


def categorical_entropy(logits: Tensor) -> Tensor:
    """Return the entropy in nats over the last axis, shape `logits.shape[:-1]`, range [0, log(entries)].

    Entries with a logit of -inf cannot be chosen and contribute 0. Raises `LeverlabError` when a row has no entry left.
    """
    logp = _masked_log_softmax(logits, None)
    return -(logp.exp() * torch.where(logp > -math.inf, logp, torch.zeros_like(logp))).sum(dim=-1)


def adapt_beta(beta: float, kl: float, low: float, high: float, factor: float, minimum: float, maximum: float) -> float:
    """Return the KL coefficient for the next epoch: beta * factor above `high`, beta / factor below `low`, else beta.

    The window [low, high] between the two thresholds is the hysteresis: inside it beta rests. The result lies in
    [minimum, maximum]. After the adaptive KL penalty of PPO, arXiv 1707.06347, with a factor of choice.
    Raises `LeverlabError` for a KL that is not finite, a beta outside its bounds, or contradictory settings.
    """
    if not math.isfinite(kl):
        raise LeverlabError(f"the measured KL is {kl}; beta cannot be adapted to it, stop or roll back the run")
    if not 0 <= low < high:
        raise LeverlabError(f"the KL window must satisfy 0 <= low < high, got low={low}, high={high}")
    if not 1 < factor < math.inf:
        raise LeverlabError(f"the factor of the adaptive beta must be above 1, got {factor}")
    if not 0 < minimum <= beta <= maximum < math.inf:
        raise LeverlabError(f"beta {beta} must lie in its bounds [{minimum}, {maximum}], which must be positive")
    if kl > high:
        return min(beta * factor, maximum)
    if kl < low:
        return max(beta / factor, minimum)
    return beta


def _masked_log_softmax(logits: Tensor, mask: Tensor | None) -> Tensor:
    masked = logits if mask is None else logits.masked_fill(~mask, -math.inf)
    if (masked == -math.inf).all(dim=-1).any():
        raise LeverlabError("a row of logits has no entry that may be chosen; leave at least one entry unmasked")
    return torch.log_softmax(masked, dim=-1)
