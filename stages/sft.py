"""sft: teach the selector to write the best beams (cross-entropy, teacher forcing)."""

import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from leverlab.config.prepare import PrepareEncoder
from leverlab.config.selector import SelectorParams
from leverlab.config.sft import SftParams
from leverlab.config.vlm import EvalParams, VlmParams
from leverlab.live import Listener, Live, Training
from leverlab.records import read_examples
from leverlab.selector.architecture import Architecture
from leverlab.selector.batches import QueryData
from leverlab.selector.encoders import ClipImageEncoder, ImageEncoder, VlmImageEncoder, image_features, load_clip
from leverlab.selector.features import read_features, write_features
from leverlab.selector.network import Selector
from leverlab.stage import Stage, run_stage, workspace_store
from leverlab.training.encoder import ImageTable, describe_encoder, make_trainable, save_encoder, train_encoder
from leverlab.training.groups import read_beams
from leverlab.training.imitation import Lists, imitation_losses, uniform_weights, updates_per_epoch
from leverlab.training.loop import Optimisation, describe, train
from leverlab.training.prepared import FEATURES, Prepared
from leverlab.training.runs import publish_run
from leverlab.training.validation import Validator
from leverlab.vlm.model import load_vlm

ENCODER = "encoder"  # folder of the trained weights of the encoder


def body(stage: Stage, seed: int) -> None:
    """Train one seed and write a checkpoint of every epoch."""
    vlm, shots = stage.section("vlm", VlmParams), stage.section("eval", EvalParams).shots
    params, policy = stage.section("sft", SftParams), stage.section("selector", SelectorParams)
    data = Prepared(stage.dep("data/prepared"), ["train", "val"])
    beams = read_beams(stage.dep("data/rl/beams.parquet"), shots, policy.stop)
    out, queries = stage.out(f"models/sft/{seed}"), data.queries
    if params.encoder.train != "none":
        with Live(Training.of(stage, "epoch", params.encoder.epochs, arm="encoder")) as live:
            say = live.also(lambda row: stage.say(describe_encoder(row, params.encoder.epochs)))
            features = encode_anew(stage, params, vlm, policy, data, beams, shots, seed, say)
        queries = data.queries_with(features)
    scorer = data.scorer(data.splits["val"], workspace_store() / "scores.sqlite", vlm)
    validator = Validator(queries, data.splits["val"], scorer, shots)
    selector = fresh_selector(queries, data, policy, seed)
    width = len(next(iter(beams.values())))
    losses = imitation_losses(selector, queries, beams, uniform_weights(width), shots, params.batch, seed)
    updates = updates_per_epoch(len(beams), params.batch)
    settings = Optimisation.of(params, updates, seed)

    with Live(Training.of(stage, "epoch", params.epochs, "val_accuracy")) as live:
        say = live.also(lambda row: stage.say(describe(row, params.epochs)))
        train(selector, settings, losses, validator, stage.state_dir, say)
    publish_run(stage.state_dir, out)
    if params.encoder.train != "none":
        shutil.copyfile(stage.state_dir / FEATURES, out / FEATURES)
        left_by_a_kill = shutil.ignore_patterns("*.partial")
        shutil.copytree(stage.state_dir / ENCODER, out / ENCODER, ignore=left_by_a_kill)


def fresh_selector(queries: QueryData, data: Prepared, policy: SelectorParams, seed: int) -> Selector:
    """Return an untrained selector that knows the statistics of the features."""
    torch.manual_seed(seed)
    selector = Selector(queries.widths, Architecture.of(policy), policy.dropout)
    queries.standardise(selector, [demo.id for demo in data.pool], [query.id for query in data.splits["train"]])
    return selector


def encode_anew(
    stage: Stage,
    params: SftParams,
    vlm: VlmParams,
    policy: SelectorParams,
    data: Prepared,
    beams: Mapping[str, Lists],
    shots: int,
    seed: int,
    on_epoch: Listener,
) -> Path:
    """Train the image encoder, keep it in the state folder, and return the file of the features that it gives."""
    path, source = stage.state_dir / FEATURES, stage.section("prepare", PrepareEncoder).encoder
    if path.exists():
        return path
    encoder: ImageEncoder
    if source == "vlm":
        source, encoder = vlm.source, VlmImageEncoder(load_vlm(vlm.source, "float32"))
    else:
        model, processor, _ = load_clip(source)
        encoder = ClipImageEncoder(model, processor)
    torch.manual_seed(seed)  # an adapter starts at random
    config = make_trainable(encoder.module, params.encoder, source)
    selector = fresh_selector(data.queries, data, policy, seed)
    images = ImageTable.of(encoder, [*data.pool, *data.splits["train"]])
    folder = stage.state_dir
    train_encoder(encoder, selector, data.queries, images, beams, shots, params, seed, folder, on_epoch)
    save_encoder(folder / ENCODER, encoder.module, config)
    prepared = stage.dep("data/prepared")
    splits = [data.pool, *data.splits.values(), read_examples(prepared / "test.parquet")]
    everything = {example.id: example for examples in splits for example in examples}
    before = read_features(prepared / FEATURES)
    vectors = image_features(encoder, [everything[identifier] for identifier in before.ids])
    write_features(path.with_suffix(".part"), replace(before, image_ND=vectors))
    path.with_suffix(".part").replace(path)
    return path


if __name__ == "__main__":
    seed = int(sys.argv[1])
    run_stage("sft", lambda stage: body(stage, seed), {"seed": str(seed)})
