"""Feature tables, and encoders against slow loops on tiny models."""

import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from leverlab.errors import LeverlabError
from leverlab.records import write_examples
from leverlab.selector import encoders
from leverlab.selector.encoders import compute_features_clip, compute_features_vlm, exact_on_cpu
from leverlab.selector.features import FeatureTable, read_features, write_features
from leverlab.vlm.model import Vlm
from leverlab.vlm.tiny import build_model, build_processor, build_tokenizer
from leverlab.worlds.digits import digits_world
from tests.instruction_sets import SSE

POOL = digits_world(12, 1, 1, 1, 0.0, seed=0).pool
IDS = ("a", "b", "c")


def table(**changes: object) -> FeatureTable:
    rng = np.random.default_rng(0)
    widths = {"image_ND": 4, "question_ND": 3, "answer_ND": 3}
    vectors = {name: rng.normal(size=(3, width)).astype(np.float32) for name, width in widths.items()}
    return FeatureTable(**({"ids": IDS} | vectors | changes))


def test_rows_are_found_in_the_order_asked_for():
    rows = table().rows(["c", "a", "c"])
    assert rows.tolist() == [2, 0, 2]
    assert rows.dtype == np.int64


def test_an_unknown_id_is_refused():
    with pytest.raises(LeverlabError, match="'z' is a demo id that no pool has"):
        table().rows(["a", "z"])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused(value):
    vectors = table().image_ND.copy()
    vectors[1, 2] = value
    with pytest.raises(LeverlabError, match="image features of 'b'"):
        table(image_ND=vectors)


def test_shapes_types_and_ids_must_fit():
    with pytest.raises(LeverlabError, match="question features must be float32"):
        table(question_ND=np.zeros((2, 3), np.float32))
    with pytest.raises(LeverlabError, match="answer features must be float32"):
        table(answer_ND=np.zeros((3, 3)))
    with pytest.raises(LeverlabError, match="an id twice"):
        table(ids=("a", "b", "a"))


def test_a_written_table_reads_back_bit_for_bit(tmp_path):
    write_features(tmp_path / "features.parquet", table())
    back = read_features(tmp_path / "features.parquet")
    assert back.ids == IDS
    for name in ("image_ND", "question_ND", "answer_ND"):
        np.testing.assert_array_equal(getattr(back, name), getattr(table(), name))


@pytest.mark.parametrize("bad", [[[1.0, 2.0], [1.0]], [[1.0], None], [[1.0], [None]]])
def test_a_ragged_file_is_refused(tmp_path, bad):
    good = [[1.0], [2.0]]
    pq.write_table(pa.table({"id": ["a", "b"], "image": bad, "question": good, "answer": good}), tmp_path / "f.parquet")
    with pytest.raises(LeverlabError, match="column 'image'"):
        read_features(tmp_path / "f.parquet")


def test_a_cut_file_is_refused(tmp_path):
    path = tmp_path / "features.parquet"
    write_features(path, table())
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(LeverlabError, match="damaged"):
        read_features(path)


@pytest.fixture(scope="module")
def vlm() -> Vlm:
    torch.manual_seed(0)
    tokenizer = build_tokenizer([text for demo in POOL for text in (demo.question, f" {demo.answer}")])
    return Vlm(build_model(tokenizer).eval(), build_processor(tokenizer), "digest")


@torch.no_grad()
def test_vlm_features_equal_a_loop_over_single_examples(vlm):
    """The image vector is the only merged token (16 by 16 is one token), texts are means over their tokens."""
    features = compute_features_vlm(vlm, POOL)
    embeddings = vlm.model.get_input_embeddings().weight
    for row, demo in enumerate(POOL):
        inputs = vlm.processor.image_processor(images=[demo.open_image()], return_tensors="pt")
        image = vlm.model.model.get_image_features(**inputs).pooler_output[0]
        assert len(image) == 1
        np.testing.assert_allclose(features.image_ND[row], image[0].numpy(), atol=1e-5)
        for vectors, text in ((features.question_ND, demo.question), (features.answer_ND, " " + demo.answer)):
            ids = vlm.processor.tokenizer(text, add_special_tokens=False).input_ids
            expected = sum(embeddings[token] for token in ids) / len(ids)
            np.testing.assert_allclose(vectors[row], expected.numpy(), atol=1e-6)


@torch.no_grad()
def test_larger_images_are_averaged_over_their_tokens(vlm):
    image, buffer = POOL[0].open_image().resize((32, 64)), io.BytesIO()
    image.save(buffer, format="PNG")
    inputs = vlm.processor.image_processor(images=[image], return_tensors="pt")
    tokens = vlm.model.model.get_image_features(**inputs).pooler_output[0]
    assert len(tokens) == 8
    mixed = compute_features_vlm(vlm, [*POOL[:3], replace(POOL[0], id="large", image=buffer.getvalue())])
    np.testing.assert_allclose(mixed.image_ND[3], tokens.mean(0).numpy(), atol=1e-5)
    np.testing.assert_allclose(mixed.image_ND[:3], compute_features_vlm(vlm, POOL[:3]).image_ND, atol=1e-5)


def test_features_follow_the_order_of_the_examples(vlm):
    forward, backward = compute_features_vlm(vlm, POOL), compute_features_vlm(vlm, POOL[::-1])
    assert backward.ids == forward.ids[::-1]
    np.testing.assert_allclose(backward.image_ND, forward.image_ND[::-1], atol=1e-5)
    np.testing.assert_array_equal(backward.question_ND, forward.question_ND[::-1])


def test_equal_images_are_encoded_once(vlm):
    seen = []
    examples = [POOL[0], replace(POOL[0], id="again"), POOL[1]]
    features = compute_features_vlm(
        vlm, examples, track=lambda batches: (seen.append(batch) or batch for batch in batches)
    )
    assert seen == [[POOL[0].image, POOL[1].image]]
    np.testing.assert_array_equal(features.image_ND[0], features.image_ND[1])
    assert np.abs(features.image_ND[0] - features.image_ND[2]).max() > 1e-3


def test_batches_that_were_kept_are_not_encoded_again(vlm, tmp_path, monkeypatch):
    """A run is cut off after its first batch of two; the next one encodes the other batch alone, to the same bytes."""
    monkeypatch.setattr(encoders, "IMAGES_PER_BATCH", 2)
    whole = compute_features_vlm(vlm, POOL[:4])

    def cut(batches):
        yield batches[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compute_features_vlm(vlm, POOL[:4], tmp_path, cut)
    encoded = []
    encode_images = encoders.encode_images
    monkeypatch.setattr(
        encoders, "encode_images", lambda *inputs: encoded.append(len(inputs[2])) or encode_images(*inputs)
    )
    resumed = compute_features_vlm(vlm, POOL[:4], tmp_path)
    assert encoded == [2]
    np.testing.assert_array_equal(resumed.image_ND, whole.image_ND)
    (tmp_path / "images-1.npy").write_bytes((tmp_path / "images-1.npy").read_bytes()[:-8])
    with pytest.raises(LeverlabError, match=r"images-1\.npy is damaged"):
        compute_features_vlm(vlm, POOL[:4], tmp_path)
    np.save(tmp_path / "images-1.npy", whole.image_ND[:1])
    with pytest.raises(LeverlabError, match="not float32 of 2 rows"):
        compute_features_vlm(vlm, POOL[:4], tmp_path)


def test_a_bfloat16_model_gives_float32_features_close_to_those_of_float32(vlm):
    torch.manual_seed(0)
    half = Vlm(build_model(vlm.processor.tokenizer).eval().to(torch.bfloat16), vlm.processor, "digest")
    features = compute_features_vlm(half, POOL)
    assert features.image_ND.dtype == np.float32
    np.testing.assert_allclose(features.image_ND, compute_features_vlm(vlm, POOL).image_ND, atol=0.02)


FEATURES = """
import hashlib, sys
from contextlib import nullcontext
from pathlib import Path
from leverlab.records import read_examples
from leverlab.selector import encoders
from leverlab.vlm.model import load_vlm

vlm, clip, pool, exact = sys.argv[1:]
if exact == "no":
    encoders.exact_on_cpu = nullcontext
examples = read_examples(Path(pool))
for table in (
    encoders.compute_features_vlm(load_vlm(vlm, "bfloat16"), examples),
    encoders.compute_features_clip(clip, examples),
):
    print(hashlib.sha256(b"".join(map(bytes, (table.image_ND, table.question_ND, table.answer_ND)))).hexdigest())
"""


@pytest.mark.parametrize(("exact", "kinds"), [("yes", 1), ("no", 2)])
def test_features_have_the_same_bytes_under_other_instruction_sets(vlm, clip, tmp_path, exact, kinds):
    """Of a checkpoint in bfloat16 and of CLIP, with float64 sums. Sums in the model's own dtype differ."""
    half = Vlm(build_model(vlm.processor.tokenizer).to(torch.bfloat16), vlm.processor, "digest")
    half.model.save_pretrained(tmp_path)
    half.processor.save_pretrained(tmp_path)
    write_examples(tmp_path / "pool.parquet", POOL)
    command = [sys.executable, "-c", FEATURES, str(tmp_path), str(clip), str(tmp_path / "pool.parquet"), exact]
    found = [
        subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=True).stdout
        for settings in ({}, SSE)
    ]
    assert [len(set(digests)) for digests in zip(*map(str.split, found), strict=True)] == [kinds, kinds]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_encoder_that_computed_exactly_is_as_it_was(dtype):
    module = torch.nn.Linear(3, 2).to(dtype)
    module.register_buffer("frequencies", torch.rand(3, dtype=torch.float32))  # as a rotary embedding has them
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with exact_on_cpu(module):
        assert module.weight.dtype == torch.float64
    after = module.state_dict()
    assert {name: value.dtype for name, value in after.items()} == {name: value.dtype for name, value in before.items()}
    assert all(torch.equal(value, before[name]) for name, value in after.items())


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """A tiny random CLIP with a byte-level vocabulary and no merges, in the hub's format."""
    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + ["?"]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=40)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16).save_pretrained(folder)
    end = len(tokens) - 1
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end}
    text = small | special | {"vocab_size": len(tokens), "max_position_embeddings": 40}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config=small | {"image_size": 16, "patch_size": 8}, projection_dim=8)
    CLIPModel(config).save_pretrained(folder)
    return folder


@torch.no_grad()
def test_clip_features_equal_single_calls_without_padding(clip):
    features = compute_features_clip(str(clip), POOL)
    model, tokenizer = CLIPModel.from_pretrained(clip).eval(), CLIPTokenizer.from_pretrained(clip)
    processor = CLIPImageProcessorPil.from_pretrained(clip)
    assert features.image_ND.shape == features.question_ND.shape == features.answer_ND.shape == (12, 8)
    for row, demo in enumerate(POOL):
        image = model.get_image_features(**processor(images=demo.open_image(), return_tensors="pt")).pooler_output[0]
        np.testing.assert_allclose(features.image_ND[row], image.numpy(), atol=1e-5)
        for vectors, text in ((features.question_ND, demo.question), (features.answer_ND, demo.answer)):
            expected = model.get_text_features(**tokenizer(text, return_tensors="pt")).pooler_output[0]
            np.testing.assert_allclose(vectors[row], expected.numpy(), atol=1e-5)
    assert np.abs(features.question_ND - features.question_ND[0]).max() > 0.01


@torch.no_grad()
def test_clip_reads_a_text_that_spells_a_control_token_as_text(clip, tmp_path):
    """A CLIP reads a text up to its first end token, so a text that spells one would be cut there. This vocabulary has
    letters alone, so the control token is spelled in letters."""
    model, tokenizer = CLIPModel.from_pretrained(clip).eval(), CLIPTokenizer.from_pretrained(clip)
    plain = tokenizer("which zebra? is it?", return_tensors="pt")
    for path in clip.iterdir():
        shutil.copy(path, tmp_path)
    tokenizer.add_tokens([AddedToken("zebra?", special=True, normalized=False)])
    tokenizer.save_pretrained(tmp_path)
    features = compute_features_clip(str(tmp_path), [replace(POOL[0], question="which zebra? is it?")])
    wanted = model.get_text_features(**plain).pooler_output[0]
    np.testing.assert_allclose(features.question_ND[0], wanted.numpy(), atol=1e-5)


def test_a_long_question_is_cut_to_the_models_length(clip):
    demo = replace(POOL[0], question="which " * 60)
    assert np.isfinite(compute_features_clip(str(clip), [demo]).question_ND).all()


def test_an_encoder_that_is_none_is_refused(clip, tmp_path):
    with pytest.raises(LeverlabError, match="cannot be loaded"):
        compute_features_clip(str(tmp_path), POOL)
    for path in clip.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(LeverlabError, match="cannot be loaded"):
        compute_features_clip(str(tmp_path), POOL)


def test_an_encoder_that_lacks_a_tensor_is_refused(clip, tmp_path):
    for path in clip.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(clip / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LeverlabError, match=r"lacks the tensors \['visual_projection.weight'\]"):
        compute_features_clip(str(tmp_path), POOL)
