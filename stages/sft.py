"""sft: teach the selector to write the best beams (cross-entropy, teacher forcing)."""

import sys

import torch

from leverlab.config.selector import SelectorParams
from leverlab.config.sft import SftParams
from leverlab.config.vlm import EvalParams, VlmParams
from leverlab.selector.architecture import Architecture
from leverlab.selector.network import Selector
from leverlab.stage import Stage, run_stage, workspace_store
from leverlab.training.groups import read_beams
from leverlab.training.imitation import imitation_losses, uniform_weights, updates_per_epoch
from leverlab.training.loop import Optimisation, describe, train
from leverlab.training.prepared import Prepared
from leverlab.training.runs import publish_run
from leverlab.training.validation import Validator


def body(stage: Stage, seed: int) -> None:
    """Train one seed and write a checkpoint of every epoch."""
    vlm, shots = stage.section("vlm", VlmParams), stage.section("eval", EvalParams).shots
    params, policy = stage.section("sft", SftParams), stage.section("selector", SelectorParams)
    data = Prepared(stage.dep("data/prepared"), ["train", "val"])
    beams = read_beams(stage.dep("data/rl/beams.parquet"), shots, policy.stop)
    scorer = data.scorer(data.splits["val"], workspace_store() / "scores.sqlite", vlm)
    validator = Validator(data.queries, data.splits["val"], scorer, shots)
    torch.manual_seed(seed)
    selector = Selector(data.queries.widths, Architecture.of(policy), policy.dropout)
    data.queries.standardise(selector, [demo.id for demo in data.pool], [query.id for query in data.splits["train"]])
    width = len(next(iter(beams.values())))
    losses = imitation_losses(selector, data.queries, beams, uniform_weights(width), shots, params.batch, seed)
    updates = updates_per_epoch(len(beams), params.batch)
    settings = Optimisation.of(params, updates, seed)

    train(selector, settings, losses, validator, stage.state_dir, lambda row: stage.say(describe(row, params.epochs)))
    publish_run(stage.state_dir, stage.out(f"models/sft/{seed}"))


if __name__ == "__main__":
    seed = int(sys.argv[1])
    run_stage("sft", lambda stage: body(stage, seed), {"seed": str(seed)})
