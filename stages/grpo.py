"""grpo: group-relative policy optimisation of the selector, and its equal-budget control in a process beside it."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leverlab.config.grpo import GrpoParams
from leverlab.config.reward import RewardParams
from leverlab.config.schedule import Schedule
from leverlab.config.vlm import EvalParams, VlmParams
from leverlab.evaluation.vqa_metric import vqa_accuracy
from leverlab.live import Live, Training
from leverlab.parallel import run_tasks
from leverlab.rl.kl import adapt_beta
from leverlab.selector.network import Selector
from leverlab.stage import Stage, run_stage, workspace_store
from leverlab.training.groups import read_groups
from leverlab.training.grpo import Curriculum, Grpo, Objective, Practice, Rejection, Rollouts, policy_losses
from leverlab.training.imitation import updates_per_epoch
from leverlab.training.loop import Optimisation, Row, describe, train
from leverlab.training.prepared import Prepared, features_of
from leverlab.training.reward import Terms, list_reward, prefix_reward, terms_read
from leverlab.training.rollouts import OnlineRollouts, StoredRollouts
from leverlab.training.runs import load_epoch, publish_run
from leverlab.training.validation import Validator
from leverlab.vlm.scoring import Scorer

ARMS = ("grpo", "sft_control")
GROUPS = Path("data/rl/groups.parquet")


@dataclass(frozen=True)
class Arm:
    """One arm of one seed: everything that a process needs to train it."""

    name: str
    seed: int
    params: GrpoParams
    reward: RewardParams
    vlm: VlmParams
    shots: int
    folder: Path  # checkpoints and resume state
    training: Training


def train_arm(arm: Arm) -> int:
    """Train an arm in its folder; return how many prompts went through the VLM."""
    params = arm.params
    data = Prepared(Path("data/prepared"), ["train", "val"], features_of(Path(f"models/sft/{arm.seed}")))
    questions = [*data.splits["train"], *data.splits["val"]]
    scorer = data.scorer(questions, workspace_store() / "scores.sqlite", arm.vlm)
    validator = Validator(data.queries, data.splits["val"], scorer, arm.shots)
    policy = load_epoch(Path(f"models/{params.init}/{arm.seed}"), "best")
    reference = load_epoch(Path(f"models/{params.reference}/{arm.seed}"), "best").requires_grad_(False)
    rollouts, practice = make_rollouts(arm, data, scorer, policy.architecture.stop), Practice()
    losses = policy_losses(
        policy,
        rollouts,
        lambda rows: make_objective(arm, reference, rows),
        practice,
        epochs=params.epochs,
        batch=params.batch,
        lists=params.group,
        shots=arm.shots,
        updates=params.updates,
        seed=arm.seed,
        priority=params.priority,
        curriculum=make_curriculum(arm),
    )
    updates = updates_per_epoch(len(rollouts.query_ids), params.batch) * params.updates
    settings, guard = Optimisation.of(params, updates, arm.seed), None
    if arm.name == "sft_control":
        settings = replace(settings, lr=params.control.lr)
    else:
        guard = params.guard

    def say(row: Row) -> None:
        print(f"grpo@{arm.seed}: {arm.name} {describe(row, params.epochs)}", flush=True)

    validate = partial(validator, reference=reference)
    with Live(arm.training) as live:
        train(policy, settings, losses, validate, arm.folder, live.also(say), guard, practice)
    return scorer.computed


def make_rollouts(arm: Arm, data: Prepared, scorer: Scorer, stop: bool) -> Rollouts:
    """Return where the trajectories of an arm come from, whose policy may `stop`."""

    def reward(terms: Terms, progress: float) -> NDArray[np.float64]:
        return prefix_reward(arm.reward, terms, progress)

    if arm.params.rollouts == "offline":
        groups = read_groups(GROUPS, arm.shots)
        return StoredRollouts(data.queries, [group.stopped() for group in groups] if stop else groups, reward)
    answers = {question.id: question.answers for question in data.splits["train"]}
    return OnlineRollouts(
        data.queries,
        scorer,
        reward,
        lambda query, text: vqa_accuracy(text, answers[query]),
        terms_read(arm.reward),
        list(answers),
        arm.seed,
    )


def make_curriculum(arm: Arm) -> Curriculum | None:
    """Return the first epochs' queries: of those with a stored group the share that is best rewarded there."""
    params, reward = arm.params.curriculum, arm.reward
    if params.epochs == 0:
        return None
    groups = read_groups(GROUPS, arm.shots)
    rewards = {group.query_id: list_reward(reward, group.terms, 0.0).mean() for group in groups}
    easy = sorted(rewards, key=lambda query: (-rewards[query], query))[: math.ceil(params.queries * len(rewards))]
    return Curriculum(params.epochs, frozenset(easy), params.keep)


def make_objective(arm: Arm, reference: Selector, rows: Sequence[Row]) -> Objective:
    """Return the arm's objective for the next epoch."""
    params = arm.params
    if arm.name == "sft_control":
        return Rejection(params.control.keep, arm.reward.shot_weights)
    return Grpo(
        reference,
        params.advantage,
        params.credit,
        arm.reward.shot_weights,
        params.clip_epsilon,
        beta_after(params, [row["kl"] for row in rows[1:]]),
        params.ratio_level,
    )


def beta_after(params: GrpoParams, divergences: Sequence[float]) -> Schedule:
    """Return the KL coefficient after epochs with the given divergences; a function of history alone, so resume is
    exact."""
    adaptive = params.adaptive_kl
    if not adaptive.enabled:
        return params.kl_beta
    beta = params.kl_beta.start
    for kl in divergences:
        beta = adapt_beta(beta, kl, adaptive.low, adaptive.high, adaptive.factor, adaptive.minimum, adaptive.maximum)
    return Schedule.model_validate(beta)


def body(stage: Stage, seed: int) -> None:
    """Train both arms of one seed and write a checkpoint of every epoch."""
    params, reward = stage.section("grpo", GrpoParams), stage.section("reward", RewardParams)
    vlm, shots = stage.section("vlm", VlmParams), stage.section("eval", EvalParams).shots
    for needed in (
        "data/prepared",
        "data/rl/groups.parquet",
        f"models/sft/{seed}",
        f"models/{params.init}/{seed}",
        f"models/{params.reference}/{seed}",
    ):
        stage.dep(needed)
    arms = []
    for name in ARMS:
        training = Training.of(stage, "epoch", params.epochs, "val_accuracy", name)
        arms.append(Arm(name, seed, params, reward, vlm, shots, stage.state_dir / name, training))
    asked = sum(run_tasks(train_arm, arms))
    stage.say(f"{asked} prompts went through the VLM, all others were in the score cache")
    for arm in arms:
        publish_run(arm.folder, stage.out(f"models/grpo/{seed}") / arm.name)


if __name__ == "__main__":
    seed = int(sys.argv[1])
    run_stage("grpo", lambda stage: body(stage, seed), {"seed": str(seed)})
