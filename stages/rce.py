"""rce: reward-weighted cross-entropy over each group, with the temperature annealed."""

import copy
import sys
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from leverlab.config.rce import RceParams
from leverlab.config.reward import RewardParams
from leverlab.config.vlm import EvalParams, VlmParams
from leverlab.live import Live, Training
from leverlab.rl.losses import rce_weights
from leverlab.stage import Stage, run_stage, workspace_store
from leverlab.training.groups import read_groups
from leverlab.training.imitation import imitation_losses, updates_per_epoch
from leverlab.training.loop import Optimisation, describe, train
from leverlab.training.prepared import Prepared, features_of
from leverlab.training.reward import list_reward
from leverlab.training.runs import load_epoch, publish_run
from leverlab.training.validation import Validator


def body(stage: Stage, seed: int) -> None:
    """Train one seed from its SFT checkpoint and write a checkpoint of every epoch."""
    vlm, shots = stage.section("vlm", VlmParams), stage.section("eval", EvalParams).shots
    params, reward = stage.section("rce", RceParams), stage.section("reward", RewardParams)
    sft = stage.dep(f"models/sft/{seed}")
    data = Prepared(stage.dep("data/prepared"), ["val"], features_of(sft))
    groups = read_groups(stage.dep("data/rl/groups.parquet"), shots)
    scorer = data.scorer(data.splits["val"], workspace_store() / "scores.sqlite", vlm)
    validator = Validator(data.queries, data.splits["val"], scorer, shots)
    selector = load_epoch(sft, params.init)
    start = copy.deepcopy(selector)
    if selector.architecture.stop:
        groups = [group.stopped() for group in groups]
    terms = {group.query_id: group.terms for group in groups}

    def weights(query_ids: Sequence[str], epoch: int) -> Tensor:
        progress = (epoch - 1) / max(params.epochs - 1, 1)
        rewards = [list_reward(reward, terms[query], progress) for query in query_ids]
        return rce_weights(torch.from_numpy(np.stack(rewards)), params.tau.at(progress))

    lists = {group.query_id: group.lists for group in groups}
    losses = imitation_losses(selector, data.queries, lists, weights, shots, params.batch, seed)
    updates = updates_per_epoch(len(lists), params.batch)
    settings = Optimisation.of(params, updates, seed)

    with Live(Training.of(stage, "epoch", params.epochs, "val_accuracy")) as live:
        say = live.also(lambda row: stage.say(describe(row, params.epochs)))
        train(selector, settings, losses, lambda policy: validator(policy, start), stage.state_dir, say)
    publish_run(stage.state_dir, stage.out(f"models/rce/{seed}"))


if __name__ == "__main__":
    seed = int(sys.argv[1])
    run_stage("rce", lambda stage: body(stage, seed), {"seed": str(seed)})
