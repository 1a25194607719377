"""How a policy does on questions that it does not learn from: what the guard looks at, and what checkpoints are chosen
by."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from trl.trainer.utils import use_adapter

from leverlab.errors import LeverlabError
from leverlab.lm.chat import Chat
from leverlab.lm.dialogues import Dialogue, terms, verified_reward
from leverlab.lm.grounding import exploits
from leverlab.lm.loop import REFERENCE, Row
from leverlab.lm.proxy import proxy_reward
from leverlab.lm.questions import Question
from leverlab.lm.rollouts import Limits, Rollout, roll_out
from leverlab.rl.kl import categorical_kl

_BATCH = 64  # dialogues of one forward pass


def figures(dialogues: Sequence[Dialogue], alpha: float, high: float) -> Row:
    """Return the figures of dialogues on several questions, each a mean or a share; with a few their standard errors
    (`…_se`), NaN for fewer than two dialogues.

    alpha: cost of a needless ask in `reward`, the verified one. high: the proxy reward from which on a dialogue is paid
    well, of which `format_exploit` counts those that are wrong or ungrounded. Shares among no dialogue are NaN.
    """
    needed = [found for found in dialogues if found.question.needs_ask]
    others = [found for found in dialogues if not found.question.needs_ask]
    formed = [all(turn.parses and turn.thought for turn in found.turns) for found in dialogues]
    paid = [proxy_reward(found).total for found in dialogues]
    chosen_by: dict[str, Sequence[float]] = {  # what select-best may go by
        "reward": [verified_reward(terms(found), alpha) for found in dialogues],
        "success": [found.success for found in dialogues],
        "need_success": [found.success for found in needed],
    }
    return {
        **{name: _mean(values) for name, values in chosen_by.items()},
        **{f"{name}_se": _standard_error(values) for name, values in chosen_by.items()},
        "over_clarification": _mean([bool(found.asks) for found in others]),
        "turns": _mean([len(found.turns) for found in dialogues]),
        "format": _mean(formed),
        "spam": _mean([found.spam for found in dialogues]),
        "format_exploit": _mean([exploits(found, proxy, high) for found, proxy in zip(dialogues, paid, strict=True)]),
        "proxy": _mean(paid),
    }


@torch.no_grad()
def exact_kl(policy: PeftModel, rollouts: Sequence[Rollout], pad: int) -> tuple[float, float]:
    """Return the KL from the reference adapter and the entropy, means over the policy's tokens, in nats a token.

    The divergence is exact over the vocabulary, at temperature 1, in the states of `rollouts`, which the policy should
    have sampled itself.
    """
    total = entropy = count = 0.0
    for start in range(0, len(rollouts), _BATCH):
        ids_BP, own_BP = _padded(rollouts[start : start + _BATCH], pad, policy.device)
        with use_adapter(policy, "default"):
            logits = _logits(policy, ids_BP, own_BP)
        with use_adapter(policy, REFERENCE):
            reference = _logits(policy, ids_BP, own_BP)
        total += float(categorical_kl(logits, reference).sum())
        entropy -= float((torch.log_softmax(logits, -1) * torch.softmax(logits, -1)).sum())
        count += len(logits)
    return total / count, entropy / count


class Validator:
    """Greedy dialogues on fixed questions, and sampled ones for KL and entropy; the same random numbers each time."""

    def __init__(self, chat: Chat, questions: Sequence[Question], limits: Limits, alpha: float, high: float, seed: int):
        """Take what stays the same. Raises `LeverlabError` for no question."""
        if not questions:
            raise LeverlabError("there is no validation question; raise the number of validation questions in params")
        self._chat, self._questions, self._limits = chat, questions, limits
        self._alpha, self._high, self._seed = alpha, high, seed

    def greedy(self, policy: Any) -> Row:
        """Return `figures` of the greedy dialogues."""
        rollouts = roll_out(policy, self._chat, self._questions, 1, self._limits, 0.0)
        return figures([one.dialogue for one in rollouts], self._alpha, self._high)

    def __call__(self, policy: PeftModel) -> Row:
        """Return those, with `sampled_reward` (temperature 1), `kl` and `entropy`."""
        generator = torch.Generator(policy.device).manual_seed(self._seed)
        sampled = roll_out(policy, self._chat, self._questions, 1, self._limits, 1.0, generator)
        kl, entropy = exact_kl(policy, sampled, self._chat.pad)
        reward = figures([one.dialogue for one in sampled], self._alpha, self._high)["reward"]
        return self.greedy(policy) | {"sampled_reward": reward, "kl": kl, "entropy": entropy}


def _logits(policy: Any, ids_BP: torch.Tensor, own_BP: torch.Tensor) -> torch.Tensor:
    """Return the float32 logits (tokens, vocabulary) that predict the policy's tokens."""
    logits: torch.Tensor = policy(input_ids=ids_BP, use_cache=False).logits[:, :-1][own_BP[:, 1:]]
    return logits.float()


def _padded(rollouts: Sequence[Rollout], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and the mask of the policy's tokens, padded on the right, behind the causal mask."""
    rows = [(one.prompt + one.completion, [False] * len(one.prompt) + one.own) for one in rollouts]
    length = max(len(ids) for ids, _ in rows)
    ids = [ids + [pad] * (length - len(ids)) for ids, _ in rows]
    own = [own + [False] * (length - len(own)) for _, own in rows]
    return torch.tensor(ids, device=device), torch.tensor(own, device=device)


def _standard_error(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan")


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
