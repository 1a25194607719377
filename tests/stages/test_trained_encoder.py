"""Training of the image encoder through the stages: what SFT publishes, and who reads it, on a world of 66 examples.

Two copies of the repository run from SFT to the answers, one without training of the encoder and one with LoRA.
"""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from leverlab.config.base import parse_section, read_params
from leverlab.config.selector import SelectorParams
from leverlab.config.sft import SftParams
from leverlab.config.vlm import VlmParams
from leverlab.files import digest
from leverlab.pipeline.plans import load_plan
from leverlab.rl.kl import categorical_entropy
from leverlab.selector.batches import QueryData
from leverlab.selector.checkpoints import load_selector
from leverlab.selector.decoding import greedy
from leverlab.selector.encoders import ClipImageEncoder, VlmImageEncoder, compute_features_clip, image_features
from leverlab.selector.features import FeatureTable, read_features, write_features
from leverlab.selector.inference import InferenceSelector
from leverlab.training.groups import read_beams
from leverlab.training.prepared import Prepared
from leverlab.vlm.model import load_vlm
from stages.select_best import run_folders
from stages.sft import encode_anew
from tests.stages.clones import Clone

pytestmark = pytest.mark.slow

SEEDS, SHOTS = (0, 1), 2
METHODS = ("sft", "rce", "grpo", "sft_control")
SMALLER = {
    "data.pool": 40,
    "data.train": 12,
    "data.val": 6,
    "data.test": 8,
    "prepare.candidates": 8,
    "rl_data.queries": 8,
    "rl_data.health.min_distinct_candidates": 0.0,
    "eval.shots": SHOTS,
    "reward.shot_weights": [1.0] * SHOTS,
    "report.gates.grpo_over_control.metric": f"comparisons.sft_control.shots_{SHOTS}.ci_low",
    "selector.width": 32,
    "sft.batch": 4,
    "sft.encoder.epochs": 2,
    "sft.encoder.lr": 0.005,
    "grpo.epochs": 1,
    "grpo.batch": 8,
}
TRAINING = [[f"stages.{stage}", str(seed)] for stage in ("sft", "rce", "grpo") for seed in SEEDS]
AFTER_SFT = [*TRAINING[2:], ["stages.select_best"], ["stages.convert"], ["stages.infer_800"]]

# Runs stages one after the other, each in a forked child, so that imports cost their seconds once.
RUN = """\
import json, os, runpy, signal, sys

import datasets, pandas, peft, torch, transformers
from leverlab.evaluation import summary
from leverlab.training import encoder, validation
from leverlab.vlm import vision

for module, *arguments in json.loads(sys.argv[1]):
    if (child := os.fork()) == 0:
        sys.argv[1:] = arguments
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        sys.exit()
    status = os.waitpid(child, 0)[1]
    if status != (signal.SIGKILL if module == "killed_sft" else 0):
        sys.exit(f"{module} {arguments} ended with {status}")
"""

# sft of seed 1, killed where it would call a function; it leaves half a file behind, as a kill may.
KILLED_SFT = """\
import os, shutil, signal, sys
from pathlib import Path

from leverlab.stage import Stage, run_stage
from stages import sft


def killed(*arguments, **options):
    for folder in Path(".leverlab/state/sft@1").glob("*/encoder"):
        (folder / ".adapter_model.safetensors.1.partial").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)


if not Path("unbroken").exists():
    shutil.copytree("models/sft/1", "unbroken")
setattr(Stage if sys.argv[1] == "say" else sft, sys.argv[1], killed)
run_stage("sft", lambda stage: sft.body(stage, 1), {"seed": "1"})
"""
KILLS = [["killed_sft", where] for where in ("say", "save_encoder", "write_features", "train", "publish_run")]


def run_stages(clone: Clone, stages: list[list[str]]) -> str:
    return clone.run(sys.executable, "-c", RUN, json.dumps(stages))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """The run without training of the encoder."""
    clone = Clone(tmp_path_factory.mktemp("plain") / "leverlab", workers=1)
    clone.set_params({**load_plan(clone.root, "tiny").overrides, **SMALLER})
    run_stages(clone, [["stages.prepare"], ["stages.rl_data"], *TRAINING[:2], *AFTER_SFT])
    return clone


@pytest.fixture(scope="module")
def lora_run(plain: Clone, tmp_path_factory: pytest.TempPathFactory) -> tuple[Clone, str]:
    """The run with LoRA, in which SFT of seed 1 is run a second time with kills, and what it printed."""
    clone = Clone(tmp_path_factory.mktemp("lora") / "leverlab", workers=1, source=plain)
    shutil.rmtree(clone.root / "models")
    clone.set_params({"sft.encoder.train": "lora"})
    (clone.root / "killed_sft.py").write_text(KILLED_SFT)
    return clone, run_stages(clone, [*TRAINING[:2], *KILLS, TRAINING[1], *AFTER_SFT])


@pytest.fixture(scope="module")
def lora(lora_run: tuple[Clone, str]) -> Clone:
    return lora_run[0]


def features_in(clone: Clone, seed: int) -> FeatureTable:
    return read_features(clone.root / f"models/sft/{seed}/features.parquet")


def answers_in(clone: Clone) -> pd.DataFrame:
    return pq.read_table(clone.root / "data/answers.parquet").to_pandas()


def queries_in(clone: Clone, features: Path | None) -> QueryData:
    return Prepared(clone.root / "data/prepared", ["val", "test"], features).queries


def ids_in(clone: Clone, split: str) -> list[str]:
    return [example.id for example in Prepared(clone.root / "data/prepared", [split]).splits[split]]


def test_the_features_of_a_run_differ_from_those_of_prepare_in_the_image_alone(lora: Clone) -> None:
    before = read_features(lora.root / "data/prepared/features.parquet")
    tables = [features_in(lora, seed) for seed in SEEDS]
    assert len(before.ids) == 66
    for table in tables:
        assert table.ids == before.ids
        np.testing.assert_array_equal(table.question_ND, before.question_ND)
        np.testing.assert_array_equal(table.answer_ND, before.answer_ND)
        assert (np.abs(table.image_ND - before.image_ND).max(axis=1) > 0.1).all()
    assert (np.abs(tables[0].image_ND - tables[1].image_ND).max(axis=1) > 0.1).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_the_published_adapter_gives_the_published_features(lora: Clone, seed: int) -> None:
    vlm = load_vlm(str(lora.root / "worlds/digits/vlm"), "float32")
    encoder = VlmImageEncoder(vlm)
    data = Prepared(lora.root / "data/prepared", ["train", "val", "test"])
    examples = {example.id: example for split in (data.pool, *data.splits.values()) for example in split}
    table = features_in(lora, seed)
    shown = [examples[name] for name in table.ids]
    bare = image_features(encoder, shown)
    PeftModel.from_pretrained(encoder.module, lora.root / f"models/sft/{seed}/encoder")
    np.testing.assert_allclose(image_features(encoder, shown), table.image_ND, atol=1e-4)
    assert np.abs(bare - table.image_ND).max() > 0.1


def test_adapters_of_two_seeds_start_apart(lora: Clone) -> None:
    """A first layer starts uniform within 1/8, 1/12 apart in the mean; four updates of .005 move it by .02 at most."""
    name = "base_model.model.blocks.0.attn.qkv.lora_A.weight"
    first, second = (
        load_file(lora.root / f"models/sft/{seed}/encoder/adapter_model.safetensors")[name] for seed in SEEDS
    )
    assert first.abs().max() < 0.125 + 0.02
    assert (first - second).abs().mean() > 0.05


def test_the_features_go_along_with_the_selectors(lora: Clone) -> None:
    models = lora.root / "models"
    overall = json.loads((models / "best/best.json").read_text())["overall"]["seed"]
    copies = {models / "selector/features.parquet": overall}
    copies |= {models / f"best/{seed}-features.parquet": seed for seed in SEEDS}
    copies |= {models / f"selectors/{method}-{seed}/features.parquet": seed for method in METHODS for seed in SEEDS}
    copies |= {models / f"sft/{seed}/features.parquet": seed for seed in SEEDS}
    assert set(models.rglob("*.parquet")) == set(copies)
    for path, seed in copies.items():
        assert path.read_bytes() == (models / f"sft/{seed}/features.parquet").read_bytes(), path


@torch.no_grad()
def entropy(clone: Clone, checkpoint: Path, features: Path | None) -> float:
    """The mean entropy per pick along the greedy lists of the validation questions."""
    selector = load_selector(checkpoint)
    batch = queries_in(clone, features).batch(ids_in(clone, "val"))
    encoded = selector.encode(batch.query, batch.demos)
    picks_B1T = greedy(selector, encoded, SHOTS)[:, None]
    return float(categorical_entropy(selector.list_logits(encoded, picks_B1T)).mean())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", SEEDS)
def test_every_checkpoint_was_judged_on_the_features_of_its_seed(lora: Clone, method: str, seed: int) -> None:
    """By the training stage and by select-best; with other features the entropy would be another."""
    own, others = (lora.root / f"models/sft/{number}/features.parquet" for number in (seed, 1 - seed))
    folder = lora.root / run_folders(seed)[method]
    recorded = pd.read_csv(folder / "metrics.csv")["entropy"].tolist()
    again = pd.read_csv(lora.root / "models/best/checkpoints.csv")
    again = again[(again["method"] == method) & (again["seed"] == seed)]["entropy"].tolist()
    checkpoints = sorted(folder.glob("epoch-*.safetensors"))
    expected = [entropy(lora, checkpoint, own) for checkpoint in checkpoints]
    assert recorded == pytest.approx(expected, rel=1e-5)
    assert again == pytest.approx(expected, rel=1e-5)
    for wrong in (None, others):
        mistaken = [entropy(lora, checkpoint, wrong) for checkpoint in checkpoints]
        assert max(abs(ours - theirs) for ours, theirs in zip(expected, mistaken, strict=True)) > 1e-4


@pytest.mark.parametrize("seed", SEEDS)
def test_the_selector_of_the_run_is_standardised_by_its_features(lora: Clone, seed: int) -> None:
    """Over the pool and the train questions."""
    table = features_in(lora, seed)
    data = Prepared(lora.root / "data/prepared", ["train"])
    rows = table.rows([example.id for example in [*data.pool, *data.splits["train"]]])
    selector = load_selector(lora.root / f"models/sft/{seed}/epoch-000.safetensors")
    np.testing.assert_allclose(selector.image_mean.numpy(), table.image_ND[rows].mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(selector.image_scale.numpy(), table.image_ND[rows].std(axis=0), atol=1e-4)


def test_the_conversion_is_proved(lora: Clone) -> None:
    picks = json.loads((lora.root / "models/selectors/proof.json").read_text())["equal_picks"]
    assert picks == {f"{method}-{seed}": 6 * SHOTS for method in METHODS for seed in SEEDS}


def picked(clone: Clone, method: str, seed: int, features: Path) -> dict[str, list[str]]:
    """Question → the demos that the converted selector picks on `features`."""
    batch = queries_in(clone, features).batch(ids_in(clone, "test"))
    selector = InferenceSelector.load(clone.root / f"models/selectors/{method}-{seed}")
    picks = selector.pick([part.numpy() for part in batch.query], [part.numpy() for part in batch.demos], SHOTS)
    return {
        query: [candidates[pick] for pick in row]
        for query, candidates, row in zip(batch.query_ids, batch.candidate_ids, picks.tolist(), strict=True)
    }


def test_the_answers_are_those_to_picks_on_these_features(lora: Clone) -> None:
    answers, moved = answers_in(lora), 0
    for method in METHODS:
        for seed in SEEDS:
            folder = lora.root / f"models/selectors/{method}-{seed}"
            expected = picked(lora, method, seed, folder / "features.parquet")
            rows = answers[(answers["method"] == method) & (answers["seed"] == seed)]
            for shots in range(1, SHOTS + 1):
                found = rows[rows["shots"] == shots]
                shown = {row.question_id: list(row.demos) for row in found.itertuples()}
                assert shown == {query: demos[:shots] for query, demos in expected.items()}
            moved += picked(lora, method, seed, lora.root / "data/prepared/features.parquet") != expected
    assert moved > 0


def test_the_answers_of_the_baselines_are_those_without_training(plain: Clone, lora: Clone) -> None:
    """The VLM, the candidates and the features that retrieval compares are the same, and so is the cache of scores."""
    kept = []
    for clone in (plain, lora):
        answers = answers_in(clone)
        assert set(METHODS) < set(answers["method"])
        assert answers["prediction"].notna().all()
        answers["demos"] = answers["demos"].map(list)
        kept.append(answers[~answers["method"].isin(METHODS)].reset_index(drop=True))
    baselines = {"zero_shot", "random", "fixed", "image_sim", "text_sim", "mix", "type_sim", "oracle"}
    assert set(kept[0]["method"]) == baselines
    pd.testing.assert_frame_equal(*kept)


def test_without_training_there_are_no_features_but_those_of_prepare(plain: Clone) -> None:
    found = [path.relative_to(plain.root).as_posix() for path in plain.root.rglob("*features.parquet")]
    assert found == ["data/prepared/features.parquet"]
    assert list((plain.root / "models").rglob("encoder*")) == []
    assert list((plain.root / "models").rglob("adapter*")) == []


def test_a_run_killed_at_every_step_ends_with_the_same_bytes(lora_run: tuple[Clone, str]) -> None:
    """Killed after the first epoch, before and after the adapter is kept, and twice while the selector is taught."""
    clone, output = lora_run
    names = sorted(path.name for path in (clone.root / "models/sft/1/encoder").iterdir())
    assert names == ["adapter_config.json", "adapter_model.safetensors"]
    assert digest(clone.root / "models/sft/1") == digest(clone.root / "unbroken")
    # the unbroken run says every epoch, the killed one is killed when it would say the first
    assert [output.count(f"sft@1: encoder epoch {epoch} of 2") for epoch in (1, 2)] == [1, 2]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A tiny random CLIP with a byte-level vocabulary and no merges, in the hub's format."""
    folder = tmp_path / "clip"
    folder.mkdir()
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + ["?"]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=40).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16).save_pretrained(folder)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    end = len(tokens) - 1
    special = {"bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end}
    text = small | special | {"vocab_size": len(tokens), "max_position_embeddings": 40}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config=small | {"image_size": 16, "patch_size": 8}, projection_dim=8)
    CLIPModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def with_clip(plain: Clone, clip: Path, tmp_path: Path) -> Prepared:
    """The prepared data with features of CLIP, in tmp_path / "prepared"."""
    folder = tmp_path / "prepared"
    shutil.copytree(plain.root / "data/prepared", folder)
    data = Prepared(folder, ["train", "val", "test"])
    everything = [example for split in (data.pool, *data.splits.values()) for example in split]
    write_features(folder / "features.parquet", compute_features_clip(str(clip), everything))
    return Prepared(folder, ["train", "val"])


def anew(plain: Clone, data: Prepared, folder: Path, clip: Path, train: str) -> Path:
    """Run `encode_anew` with the parts of a stage that it asks for."""
    params = read_params(plain.root / "params.yaml")
    params["prepare"]["encoder"], params["sft"]["encoder"]["train"] = str(clip), train
    folder.mkdir()

    def section(name: str, model: Any) -> Any:
        values = params[name] if name != "prepare" else {"encoder": params[name]["encoder"]}
        return parse_section(model, name, {name: values}, "params.yaml")

    stage: Any = SimpleNamespace(
        state_dir=folder, section=section, dep=lambda _: folder.parent / "prepared", say=lambda _: None
    )
    sft, vlm, policy = section("sft", SftParams), section("vlm", VlmParams), section("selector", SelectorParams)
    beams = read_beams(plain.root / "data/rl/beams.parquet", SHOTS, False)
    return encode_anew(stage, sft, vlm, policy, data, beams, SHOTS, seed=0, on_epoch=lambda row: None)


def test_a_clip_is_trained_whole(plain: Clone, with_clip: Prepared, clip: Path, tmp_path: Path) -> None:
    table = read_features(anew(plain, with_clip, tmp_path / "state", clip, "full"))
    before = read_features(tmp_path / "prepared/features.parquet")
    assert table.ids == before.ids
    np.testing.assert_array_equal(table.question_ND, before.question_ND)
    np.testing.assert_array_equal(table.answer_ND, before.answer_ND)
    assert np.abs(table.image_ND - before.image_ND).max() > 0.05
    model: Any = CLIPModel.from_pretrained(clip).eval()
    encoder = ClipImageEncoder(model, CLIPImageProcessorPil.from_pretrained(clip))
    data = Prepared(tmp_path / "prepared", ["train", "val", "test"])
    examples = {example.id: example for split in (data.pool, *data.splits.values()) for example in split}
    model.vision_model.load_state_dict(load_file(tmp_path / "state/encoder/model.safetensors"), strict=True)
    np.testing.assert_allclose(
        image_features(encoder, [examples[name] for name in table.ids]), table.image_ND, atol=1e-5
    )


def test_what_was_drawn_before_does_not_matter(plain: Clone, with_clip: Prepared, clip: Path, tmp_path: Path) -> None:
    """An adapter starts at random, in the seed alone."""
    results = []
    for draws in (1, 2):
        torch.manual_seed(draws)
        results.append(anew(plain, with_clip, tmp_path / f"state-{draws}", clip, "lora").parent)
    assert digest(results[0] / "encoder") == digest(results[1] / "encoder")
    assert digest(results[0] / "features.parquet") == digest(results[1] / "features.parquet")
