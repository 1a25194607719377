"""grpo: group-relative policy optimisation of the selector, and its equal-budget control in a process beside it."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leverlab.config.grpo import GrpoParams
from leverlab.config.reward import RewardParams
from leverlab.config.vlm import EvalParams, VlmParams
from leverlab.errors import LeverlabError
from leverlab.evaluation.vqa_metric import vqa_accuracy
from leverlab.parallel import run_tasks
from leverlab.rl.kl import adapt_beta
from leverlab.rl.rewards import mode_rewards, required_terms
from leverlab.selector.network import Selector
from leverlab.stage import Stage, run_stage, workspace_store
from leverlab.training.groups import read_groups
from leverlab.training.grpo import Grpo, Objective, Rejection, Rollouts, policy_losses
from leverlab.training.imitation import updates_per_epoch
from leverlab.training.loop import Optimisation, Row, describe, train
from leverlab.training.prepared import Prepared
from leverlab.training.rollouts import OnlineRollouts, StoredRollouts
from leverlab.training.runs import load_epoch, publish_run
from leverlab.training.validation import Validator
from leverlab.vlm.scoring import Scorer

ARMS = ("grpo", "sft_control")


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


def train_arm(arm: Arm) -> list[str]:
    """Train an arm in its folder and return one line an epoch."""
    params, lines = arm.params, list[str]()
    data = Prepared(Path("data/prepared"), ["train", "val"])
    questions = [*data.splits["train"], *data.splits["val"]]
    scorer = data.scorer(questions, workspace_store() / "scores.sqlite", arm.vlm)
    validator = Validator(data.queries, data.splits["val"], scorer, arm.shots)
    policy = load_epoch(Path(f"models/{params.init}/{arm.seed}"), "best")
    reference = load_epoch(Path(f"models/{params.reference}/{arm.seed}"), "best").requires_grad_(False)
    rollouts = make_rollouts(arm, data, scorer)
    losses = policy_losses(
        policy,
        rollouts,
        lambda rows: make_objective(arm, reference, rows),
        batch=params.batch,
        lists=params.group,
        shots=arm.shots,
        updates=params.updates,
        seed=arm.seed,
    )
    updates = updates_per_epoch(len(rollouts.query_ids), params.batch) * params.updates
    settings = Optimisation.of(params, updates, arm.seed)
    if arm.name == "sft_control":
        settings = replace(settings, lr=params.control.lr)

    def say(row: Row) -> None:
        lines.append(f"{arm.name} {describe(row, params.epochs)}")
        print(f"grpo@{arm.seed}: {lines[-1]}", flush=True)

    train(policy, settings, losses, lambda selector: validator(selector, reference), arm.folder, say)
    return lines


def make_rollouts(arm: Arm, data: Prepared, scorer: Scorer) -> Rollouts:
    """Return where the arm's trajectories come from."""

    def reward(terms: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        return np.asarray(mode_rewards(arm.reward.mode, dict(terms), arm.reward.weights), np.float64)

    if arm.params.rollouts == "offline":
        groups = read_groups(Path("data/rl/groups.parquet"), arm.shots)
        return StoredRollouts(data.queries, groups, reward)
    needed = set(required_terms(arm.reward.mode, arm.reward.weights))
    if unknown := needed - {"correct", "vqa_accuracy", "answer_prob"}:
        raise LeverlabError(
            f"online rollouts cannot score {sorted(unknown)}; weigh correct, vqa_accuracy and answer_prob in "
            "reward.weights, or set grpo.rollouts to offline"
        )
    answers = {question.id: question.answers for question in data.splits["train"]}
    vqa = (lambda query, text: vqa_accuracy(text, answers[query])) if "vqa_accuracy" in needed else None
    return OnlineRollouts(data.queries, scorer, reward, vqa, list(answers), arm.seed)


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


def beta_after(params: GrpoParams, divergences: Sequence[float]) -> float:
    """Return the KL coefficient after epochs with the given divergences; a function of history alone, so resume is
    exact."""
    beta, adaptive = params.kl_beta, params.adaptive_kl
    if adaptive.enabled:
        for kl in divergences:
            beta = adapt_beta(
                beta, kl, adaptive.low, adaptive.high, adaptive.factor, adaptive.minimum, adaptive.maximum
            )
    return beta


def body(stage: Stage, seed: int) -> None:
    """Train both arms of one seed and write a checkpoint of every epoch."""
    params, reward = stage.section("grpo", GrpoParams), stage.section("reward", RewardParams)
    vlm, shots = stage.section("vlm", VlmParams), stage.section("eval", EvalParams).shots
    for needed in (
        "data/prepared",
        "data/rl/groups.parquet",
        f"models/{params.init}/{seed}",
        f"models/{params.reference}/{seed}",
    ):
        stage.dep(needed)
    arms = [Arm(name, seed, params, reward, vlm, shots, stage.state_dir / name) for name in ARMS]
    for _ in run_tasks(train_arm, arms):
        pass
    for arm in arms:
        publish_run(arm.folder, stage.out(f"models/grpo/{seed}") / arm.name)


if __name__ == "__main__":
    seed = int(sys.argv[1])
    run_stage("grpo", lambda stage: body(stage, seed), {"seed": str(seed)})
