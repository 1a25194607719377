"""GRPO on demo lists, and its equal-budget control.

Both arms draw the same number of lists from their own policy, have the VLM score them, and take the same number of
optimiser steps; they differ in the objective alone. GRPO (DeepSeekMath, arXiv 2402.03300) compares lists inside a
group; the control, rejection sampling (RAFT, arXiv 2304.06767), imitates the best lists of a group. What GRPO gains
over the control belongs to the objective.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from leverlab.config.grpo import PriorityParams
from leverlab.config.schedule import Schedule
from leverlab.errors import LeverlabError
from leverlab.rl.advantages import group_advantages, group_advantages_per_pick, reward_to_go
from leverlab.rl.losses import grpo_loss, sequence_cross_entropy
from leverlab.rl.modes import AdvantageMode, RatioLevel
from leverlab.rl.sampling import epoch_order, practice_weights, prioritised_batches
from leverlab.selector.network import Selector
from leverlab.training.loop import Loss, Row
from leverlab.training.rollouts import Moment, Trajectories

Credit = Literal["list", "to_go"]


class Rollouts(Protocol):
    """Where trajectories come from: `OnlineRollouts` or `StoredRollouts`, and for which queries."""

    query_ids: Sequence[str]

    def draw(self, policy: Selector, query_ids: Sequence[str], at: Moment, lists: int, shots: int) -> Trajectories:
        """Return scored trajectories of the queries."""


class Objective(Protocol):
    """What an arm makes of trajectories."""

    def prepare(self, policy: Selector, drawn: Trajectories, progress: float) -> Callable[[], Loss]:
        """Return the loss closure of `drawn`, to be called once for each update; schedules stand at `progress`."""


@dataclass(frozen=True)
class Grpo:
    """The GRPO objective. Policy log-probabilities are computed in evaluation mode: dropout would make ratios noise."""

    reference: Selector
    advantage: AdvantageMode
    credit: Credit
    shot_weights: tuple[float, ...]
    clip_epsilon: Schedule | None
    beta: Schedule
    ratio_level: RatioLevel

    def prepare(self, policy: Selector, drawn: Trajectories, progress: float) -> Callable[[], Loss]:
        """Return the clipped loss against the policy as it is now (which drew, or last visited, the trajectories)."""
        advantages_BGT, live_B = self._advantages(drawn.rewards_BGT)
        if not bool(live_B.any()):
            return lambda: _no_signal(drawn)
        policy.eval()
        query, demos = (tuple(part[live_B] for part in parts) for parts in (drawn.inputs.query, drawn.inputs.demos))
        picks_BGT, advantages_BGT = drawn.picks_BGT[live_B], advantages_BGT[live_B].float()
        logp_old_BGT: Tensor | None = None
        with torch.no_grad():
            logp_ref_BGT = self.reference.list_logp(self.reference.encode(query, demos), picks_BGT)  # type: ignore[arg-type]
        flat = 1 - live_B.float().mean()
        epsilon, beta = None if self.clip_epsilon is None else self.clip_epsilon.at(progress), self.beta.at(progress)

        def loss() -> Loss:
            nonlocal logp_old_BGT
            logp_BGT = policy.list_logp(policy.encode(query, demos), picks_BGT)  # type: ignore[arg-type]
            if logp_old_BGT is None:  # the first update is that of the policy as it was
                logp_old_BGT = logp_BGT.detach()
            value, diagnostics = grpo_loss(
                logp_BGT, logp_old_BGT, logp_ref_BGT, advantages_BGT, epsilon, beta, self.ratio_level
            )
            # `kl` in the metrics is the exact one on validation questions
            diagnostics |= {"kl_train": diagnostics.pop("kl"), "kl_beta": torch.tensor(beta)}
            return value, {**diagnostics, "reward": drawn.rewards_BGT.mean(), "flat_groups": flat}

        return loss

    def _advantages(self, rewards_BGT: Tensor) -> tuple[Tensor, Tensor]:
        weights_T = torch.tensor(self.shot_weights, dtype=rewards_BGT.dtype)
        weighted_BGT = rewards_BGT * weights_T * (len(weights_T) / weights_T.sum())
        if self.credit == "to_go":
            return group_advantages_per_pick(reward_to_go(weighted_BGT), self.advantage)
        advantages_BG, live_B = group_advantages(weighted_BGT.mean(-1), self.advantage)
        return advantages_BG[..., None], live_B


@dataclass(frozen=True)
class Rejection:
    """Rejection sampling: cross-entropy on the `keep` best lists of every group that has a spread of rewards."""

    keep: int
    shot_weights: tuple[float, ...]

    def prepare(self, policy: Selector, drawn: Trajectories, progress: float) -> Callable[[], Loss]:
        """Return the cross-entropy of the best lists. Raises `LeverlabError` when a group has fewer than `keep`."""
        if self.keep > drawn.rewards_BGT.shape[1]:
            raise LeverlabError(
                f"grpo.control.keep = {self.keep} lists cannot be kept of a group of {drawn.rewards_BGT.shape[1]}; "
                "lower it"
            )
        weights_T = torch.tensor(self.shot_weights, dtype=drawn.rewards_BGT.dtype)
        rewards_BG = (drawn.rewards_BGT * weights_T).sum(-1) / weights_T.sum()
        _, live_B = group_advantages(rewards_BG, "mean_centred")
        if not bool(live_B.any()):
            return lambda: _no_signal(drawn)
        policy.eval()
        query, demos = (tuple(part[live_B] for part in parts) for parts in (drawn.inputs.query, drawn.inputs.demos))
        best_BG = rewards_BG[live_B].topk(self.keep, dim=1).indices
        picks_BGT = drawn.picks_BGT[live_B].gather(1, best_BG[..., None].expand(-1, -1, drawn.picks_BGT.shape[2]))
        uniform_BG = torch.full(best_BG.shape, 1 / self.keep)
        flat = 1 - live_B.float().mean()

        def loss() -> Loss:
            logp_BG = policy.list_logp(policy.encode(query, demos), picks_BGT).sum(-1)  # type: ignore[arg-type]
            value, diagnostics = sequence_cross_entropy(logp_BG, uniform_BG)
            return value, {**diagnostics, "reward": drawn.rewards_BGT.mean(), "flat_groups": flat}

        return loss


def _no_signal(drawn: Trajectories) -> Loss:
    """Return what an update reports of trajectories whose groups are all flat."""
    return None, {"reward": drawn.rewards_BGT.mean(), "flat_groups": torch.tensor(1.0)}


class Practice:
    """How often each query was answered rightly when it was last drawn: the memory of prioritised sampling."""

    def __init__(self) -> None:
        self.success: dict[str, float] = {}

    def note(self, drawn: Trajectories) -> None:
        """Take over the success of the queries that were drawn."""
        self.success |= dict(zip(drawn.inputs.query_ids, drawn.success_B.tolist(), strict=True))

    def state_dict(self) -> dict[str, float]:
        """Return query id → success."""
        return dict(self.success)

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take over a state. Raises `ValueError` when it is none."""
        if not all(isinstance(query, str) and 0 <= value <= 1 for query, value in state.items()):
            raise ValueError("it must hold a success from 0 to 1 for each query")
        self.success = dict(state)


@dataclass(frozen=True)
class Curriculum:
    """In the first `epochs` epochs `query_ids` alone are drawn, and the best and worst `keep` lists of a group kept."""

    epochs: int
    query_ids: frozenset[str]
    keep: int


def policy_losses(
    policy: Selector,
    rollouts: Rollouts,
    objective: Callable[[Sequence[Row]], Objective],
    practice: Practice,
    *,
    epochs: int,
    batch: int,
    lists: int,
    shots: int,
    updates: int,
    seed: int,
    priority: PriorityParams,
    curriculum: Curriculum | None,
) -> Callable[[int, Sequence[Row]], Iterator[Callable[[], Loss]]]:
    """Return the losses of an epoch: for each batch of queries `lists` trajectories, then `updates` updates on them.

    Groups without spread carry no signal and are dropped; a batch of nothing else has no loss. `objective(rows)` is
    asked anew for each epoch, so that its settings may follow what the epochs before showed. `practice` learns what is
    drawn, and decides which queries come again under `priority`.
    """
    ordered = sorted(rollouts.query_ids)
    per_epoch = -(-len(ordered) // batch)

    def epoch_losses(epoch: int, rows: Sequence[Row]) -> Iterator[Callable[[], Loss]]:
        arm = objective(rows)
        lesson = curriculum if curriculum is not None and epoch <= curriculum.epochs else None
        queries = ordered if lesson is None else [query for query in ordered if query in lesson.query_ids]
        weights = practice_weights([practice.success.get(query) for query in queries], priority.failure_factor)
        order = epoch_order(len(queries), seed, epoch)
        for index, positions in enumerate(prioritised_batches(order, weights, batch, priority.share, seed, epoch)):
            step = (epoch - 1) * per_epoch + index
            at = Moment(epoch, step, step / max(epochs * per_epoch - 1, 1))
            drawn = rollouts.draw(policy, [queries[position] for position in positions], at, lists, shots)
            practice.note(drawn)
            loss = arm.prepare(policy, drawn if lesson is None else drawn.best_and_worst(lesson.keep), at.progress)
            for _ in range(updates):
                yield loss

    return epoch_losses
