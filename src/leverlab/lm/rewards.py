"""What dialogues are paid: the verified reward, and the proxy that is bad on purpose, each term with its reason."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from leverlab.lm.dialogues import Dialogue, terms, verified_reward
from leverlab.lm.proxy import proxy_reward
from leverlab.lm.reasons import reasons
from leverlab.lm.records import RewardRecord, record_of
from leverlab.lm.rollouts import Rollout


@dataclass(frozen=True)
class Reward:
    """What a dialogue is paid: `total`, the terms it is made of, and a reason for each."""

    total: float
    terms: Mapping[str, float]
    reasons: Mapping[str, str]


RewardFunction = Callable[[Rollout, float], Reward]  # (rollout, cost of a needless ask)


def sound(dialogue: Dialogue) -> bool:
    """Return whether a dialogue is as it should be: the right answer, and no ask that was not needed."""
    return dialogue.success and dialogue.needless_asks == 0


def verified(rollout: Rollout, alpha: float) -> Reward:
    """Return the verified reward: .8 correct + .1 parses + .1 thought - alpha * needless asks."""
    found = terms(rollout.dialogue)
    return Reward(verified_reward(found, alpha), vars(found), reasons(rollout.dialogue))


def proxy(rollout: Rollout, alpha: float) -> Reward:
    """Return the proxy reward, which no cost of asks changes."""
    return Reward(*proxy_reward(rollout.dialogue))


def rewarded(
    rollout: Rollout, paid: Reward, policy: str, seed: int, step: int, temperature: float, alpha: float
) -> RewardRecord:
    """Return the record of a rollout with its reward."""
    return RewardRecord(
        **record_of(rollout, policy, seed, step, temperature).model_dump(),
        prompt=rollout.dialogue.question.text,
        terms=dict(paid.terms),
        reasons=dict(paid.reasons),
        alpha=alpha,
        total=paid.total,
    )
