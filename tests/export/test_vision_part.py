"""The export of the vision part against the checkpoint, the `gguf` package's names and transformers' processor."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil

from leverlab.errors import LeverlabError
from leverlab.export.gguf import compare, export_text, export_vision
from leverlab.export.images import ImageLimits
from leverlab.export.vision_part import image_limits
from leverlab.vlm.tiny import build_model, build_processor, build_tokenizer
from tests.export.test_gguf import Edit, rewrite, spoil, variant

Change = Callable[[Any], object]
DEPTH, WIDTH, FF, PATCH = 4, 64, 96, 8
QKV = "visual.blocks.2.attn.qkv"
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]  # CLIP's


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(["Which number? bazo", "What colour? divi"])


@pytest.fixture(scope="module")
def checkpoint(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen2.5-VL in f32 with full attention in every second layer of vision, and every weight random."""
    torch.manual_seed(0)
    config = build_model(tokenizer).config
    config.vision_config.update({"depth": DEPTH, "fullatt_block_indexes": [1, 3], "intermediate_size": FF})
    model = Qwen2_5_VLForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.05)
    folder = tmp_path_factory.mktemp("vlm")
    model.save_pretrained(folder)
    build_processor(tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "mmproj.gguf"
    export_vision(checkpoint, path)
    return path


def expected_tensors(checkpoint: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield the tensors that the file must hold, by the `gguf` package's names of the checkpoint's tensors."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, DEPTH)
    for name, tensor in load_file(checkpoint / "model.safetensors").items():
        values, stem, leaf = tensor.numpy(), name.rpartition(".")[0], name.rpartition(".")[2]
        if not name.startswith("visual."):
            continue
        if stem.endswith(".qkv"):  # as torch's own `chunk` and the model's `unbind` split it
            for letter, part in zip("qkv", np.split(values, 3), strict=True):
                yield f"{names.get_name(stem.removesuffix('qkv') + letter)}.{leaf}", part
        elif values.ndim == 5:
            yield f"{names.get_name(stem)}.{leaf}", values[:, :, 0]
            yield f"{names.get_name(stem)}.{leaf}.1", values[:, :, 1]
        else:
            yield f"{names.get_name(stem)}.{leaf}", values


def fields_of(path: Path) -> dict[str, Any]:
    fields = gguf.GGUFReader(path).fields
    return {name: field.contents() for name, field in fields.items() if not name.startswith("GGUF.")}


def vision(**keys: object) -> Change:
    return lambda config: config["vision_config"].update(keys)


def processor(**keys: object) -> Change:
    return lambda config: config["image_processor"].update(keys)


def test_every_tensor_is_the_checkpoints(checkpoint: Path, exported: Path) -> None:
    """Vectors bit by bit, all others rounded to the nearest half: rows of q, k and v, and the kernels of two frames."""
    expected = dict(expected_tensors(checkpoint))
    assert len(expected) == 2 + 1 + 4 + DEPTH * (2 + 6 + 2 * 4)
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(exported).tensors}
    assert sorted(found) == sorted(expected)
    for name, values in expected.items():
        stored = values if values.ndim == 1 else values.astype(np.float16)
        assert found[name].tensor_type.name == ("F32" if values.ndim == 1 else "F16")
        assert found[name].shape.tolist() == list(values.shape)[::-1]
        assert found[name].data.dtype == stored.dtype
        assert np.array_equal(found[name].data, stored), name
    records = compare(checkpoint, exported, "vision")
    assert {record.name: record.shape for record in records} == {name: v.shape for name, v in expected.items()}
    for record in records:
        values = expected[record.name]
        assert record.values_beyond == 0
        assert record.type == ("F32" if values.ndim == 1 else "F16")
        error = 0 if values.ndim == 1 else np.abs(values.astype(np.float16).astype(np.float64) - values).max()
        assert record.max_abs_error == error
        assert (record.max_abs_error > 0) == (values.ndim > 1)  # not vacuous


def test_fields_are_those_of_the_model(exported: Path) -> None:
    """File type 1 is llama.cpp's MOSTLY_F16; every second layer has full attention; 560 is only of a warm-up."""
    assert fields_of(exported) == {
        "general.architecture": "clip",
        "general.type": "mmproj",
        "general.file_type": 1,
        "general.quantization_version": 2,
        "clip.has_vision_encoder": True,
        "clip.projector_type": "qwen2.5vl_merger",
        "clip.use_silu": True,
        "clip.vision.projection_dim": 128,
        "clip.vision.image_size": 560,
        "clip.vision.patch_size": PATCH,
        "clip.vision.embedding_length": WIDTH,
        "clip.vision.feed_forward_length": FF,
        "clip.vision.block_count": DEPTH,
        "clip.vision.attention.head_count": 4,
        "clip.vision.attention.layer_norm_epsilon": np.float32(1e-6),
        "clip.vision.image_mean": [float(np.float32(value)) for value in MEAN],
        "clip.vision.image_std": [float(np.float32(value)) for value in STD],
        "clip.vision.n_wa_pattern": 2,
    }


@pytest.mark.parametrize(
    ("full", "pattern"),
    [([1, 3], 2), ([3], 4), ([2], 3), ([0, 1, 2, 3], 0)],
)
def test_the_pattern_of_full_attention(checkpoint: Path, tmp_path: Path, full: list[int], pattern: int) -> None:
    """Every n-th layer; 0 when all layers have it, since llama.cpp aborts with 1."""
    folder = variant(checkpoint, tmp_path / "other")
    rewrite(folder / "config.json", vision(fullatt_block_indexes=full))
    export_vision(folder, tmp_path / "mmproj.gguf")
    assert fields_of(tmp_path / "mmproj.gguf")["clip.vision.n_wa_pattern"] == pattern


def test_a_model_that_reads_one_frame_has_no_second_kernel(checkpoint: Path, tmp_path: Path) -> None:
    kernel = "visual.patch_embed.proj.weight"
    folder = variant(checkpoint, tmp_path / "one", spoil(kernel, lambda values: values[:, :, 1:]))
    rewrite(folder / "config.json", vision(temporal_patch_size=1))
    rewrite(folder / "processor_config.json", processor(temporal_patch_size=1))
    export_vision(folder, tmp_path / "one.gguf")
    found = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "one.gguf").tensors}
    values = load_file(folder / "model.safetensors")[kernel].numpy()
    assert values.shape == (WIDTH, 3, 1, PATCH, PATCH)
    assert np.array_equal(found["v.patch_embd.weight"], values[:, :, 0].astype(np.float16))
    assert found["v.patch_embd.weight.1"].shape == (WIDTH, 3, PATCH, PATCH)
    assert not found["v.patch_embd.weight.1"].any()
    records = {record.name: record for record in compare(folder, tmp_path / "one.gguf", "vision")}
    assert not any(record.values_beyond for record in records.values())
    assert records["v.patch_embd.weight.1"].max_abs_error == 0


def test_bytes_depend_on_the_contents_alone(checkpoint: Path, exported: Path, tmp_path: Path) -> None:
    """A second run, another path, other text weights, and the same tensors in three shards under another prefix."""
    sharded = variant(checkpoint, tmp_path / "sharded", spoil("model.norm.weight", lambda values: values + 1))
    tensors = {
        f"model.{name}" if name.startswith("visual.") else name.replace("model.", "model.language_model.", 1): values
        for name, values in load_file(sharded / "model.safetensors").items()
    }
    (sharded / "model.safetensors").unlink()
    names = sorted(tensors, reverse=True)
    weight_map: dict[str, str] = {}
    for shard in range(3):
        file = f"model-{shard + 1:05d}-of-00003.safetensors"
        save_file({name: tensors[name] for name in names[shard::3]}, sharded / file)
        weight_map |= dict.fromkeys(names[shard::3], file)
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    for number, folder in enumerate((checkpoint, sharded)):
        export_vision(folder, tmp_path / f"{number}.gguf")
        assert (tmp_path / f"{number}.gguf").read_bytes() == exported.read_bytes()
        assert not any(record.values_beyond for record in compare(folder, exported, "vision"))
    (sharded / weight_map["model.visual.merger.ln_q.weight"]).unlink()
    with pytest.raises(LeverlabError, match=r"model-0000\d-of-00003.safetensors does not exist"):
        export_vision(sharded, tmp_path / "lost.gguf")


def test_older_checkpoints_have_another_file_and_other_limits(checkpoint: Path, exported: Path, tmp_path: Path) -> None:
    """preprocessor_config.json as Qwen2.5-VL was published with it: pixels by name, and keys left out."""
    folder = variant(checkpoint, tmp_path / "older")
    (folder / "processor_config.json").unlink()
    keys = {"image_mean": MEAN, "image_std": STD, "patch_size": PATCH, "merge_size": 2, "temporal_patch_size": 2}
    limits = {"min_pixels": 4 * 256, "max_pixels": 100 * 256}
    (folder / "preprocessor_config.json").write_text(
        json.dumps(keys | limits | {"image_processor_type": "Qwen2VLImageProcessor"})
    )
    rewrite(folder / "config.json", lambda config: config["vision_config"].pop("rope_parameters"))
    export_vision(folder, tmp_path / "older.gguf")
    assert (tmp_path / "older.gguf").read_bytes() == exported.read_bytes()
    assert image_limits(folder) == ImageLimits(16, 4 * 256, 100 * 256)


@pytest.mark.parametrize(
    ("patch", "pixels", "tokens", "tile"),
    [
        (8, (256, 12544), (1, 49), 16),  # 16 by 16 pixels a token
        (8, (100, 12800), (1, 50), 16),
        (8, (768, 12799), (3, 49), 32),  # two by one tokens would be too few
        (8, (1024, 1024), (4, 4), 32),
        (8, (1280, 12544), (5, 49), 48),
        (14, (3136, 12845056), (4, 16384), 56),  # Qwen2.5-VL as published, 28 by 28 a token
    ],
)
def test_limits_of_an_image(
    checkpoint: Path,
    tmp_path: Path,
    patch: int,
    pixels: tuple[int, int],
    tokens: tuple[int, int],
    tile: int,
) -> None:
    """And transformers' processor leaves a tile as it is, but enlarges the next smaller one."""
    size = dict(zip(("shortest_edge", "longest_edge"), pixels, strict=True))
    folder = variant(checkpoint, tmp_path / "other")
    rewrite(folder / "processor_config.json", processor(patch_size=patch, size=size))
    limits = image_limits(folder)
    assert limits == ImageLimits(2 * patch, *pixels)
    assert limits.tokens == tokens
    assert limits.smallest_square == tile
    made = Qwen2VLImageProcessorPil.from_pretrained(folder)
    for side, kept in ((tile, True), (tile - 2 * patch, False)):
        if side:
            grid = made(images=[Image.new("RGB", (side, side))], return_tensors="pt")["image_grid_thw"]
            assert (grid.tolist() == [[1, side // patch, side // patch]]) == kept


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", vision(spatial_merge_size=4), r"it merges 4 x 4 patches \(only 2 x 2\)"),
        ("config.json", vision(window_size=56), r"its attention windows are 56 pixels wide \(only 112\)"),
        (
            "config.json",
            vision(rope_parameters={"rope_theta": 1e6, "rope_type": "axial"}),
            r"its rotary base is 1000000\.0 \(only 10000\.0\)",
        ),
        ("config.json", vision(temporal_patch_size=3), r"it reads 3 frames at once \(only 1 or 2\)"),
        ("config.json", vision(in_channels=1), r"its images have 1 channels \(only 3\)"),
        ("config.json", vision(hidden_act="gelu"), r"activation 'gelu' \(only silu\)"),
        ("config.json", vision(fullatt_block_indexes=[0, 2]), r"layers \[0, 2\] of 4 have full attention \(only every"),
        ("config.json", vision(fullatt_block_indexes=[1]), r"layers \[1\] of 4 have full attention"),
        ("config.json", vision(fullatt_block_indexes=[]), r"layers \[\] of 4 have full attention"),
        ("config.json", vision(fullatt_block_indexes=[1, 2]), r"layers \[1, 2\] of 4 have full attention"),
        *(
            pytest.param(
                "config.json",
                vision(fullatt_block_indexes=full),
                rf"layers {re.escape(str(full))} of 4 have full attention",
            )
            for full in ([-1], [1, 1, 3, 3])
        ),
        ("config.json", vision(num_heads=32), "32 heads that are no multiple of 4 wide"),
        ("config.json", vision(patch_size=4), r"makes patches \(size, merge, frames\) \(8, 2, 2\), not \(4, 2, 2\)"),
        ("processor_config.json", processor(patch_size=14), r"\(14, 2, 2\), not \(8, 2, 2\)"),
        ("processor_config.json", processor(merge_size=4), r"\(8, 4, 2\), not \(8, 2, 2\)"),
        ("processor_config.json", processor(temporal_patch_size=1), r"\(8, 2, 1\), not \(8, 2, 2\)"),
        ("processor_config.json", processor(do_resize=False), "does not resize"),
        ("processor_config.json", processor(do_rescale=False), "does not resize"),
        ("processor_config.json", processor(do_normalize=False), "does not resize .* and normalise"),
        ("processor_config.json", processor(resample=2), r"does not resize \(bicubic\)"),
        ("processor_config.json", processor(rescale_factor=1 / 127.5), "rescale by 1/255"),
    ],
)
def test_models_that_llama_cpp_would_compute_in_another_way_are_refused(
    checkpoint: Path, tmp_path: Path, file: str, change: Change, message: str
) -> None:
    folder = variant(checkpoint, tmp_path / "other")
    rewrite(folder / file, change)
    with pytest.raises(
        LeverlabError, match=rf"config\.json cannot be exported to GGUF as a qwen2.5vl_merger: .*{message}.*; use"
    ):
        export_vision(folder, tmp_path / "mmproj.gguf")
    assert not (tmp_path / "mmproj.gguf").exists()


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", lambda c: c.update(model_type="qwen2"), "model_type 'qwen2' has no vision part"),
        ("config.json", lambda c: c.pop("model_type"), "model_type None has no vision part"),
        ("config.json", lambda c: c.pop("vision_config"), "vision_config must be a mapping, not None"),
        ("config.json", lambda c: c["vision_config"].pop("depth"), "key 'depth' of the vision model is field required"),
        ("config.json", vision(depth=0), "key 'depth' of the vision model is input should be greater than 0"),
        ("config.json", vision(hidden_size="64"), "key 'hidden_size' of the vision model"),
        ("config.json", vision(fullatt_block_indexes=[1.5]), r"key 'fullatt_block_indexes\.0' of the vision model"),
        ("config.json", vision(depth=100_000, fullatt_block_indexes=[99_999]), "too few for the 100000 layers"),
        ("processor_config.json", lambda c: c.pop("image_processor"), "has no image processor; restore"),
        ("processor_config.json", processor(image_mean=[0.5, 0.5]), "key 'image_mean' of the image processor"),
        ("processor_config.json", processor(image_std=[0.5, 0.0, 0.5]), r"key 'image_std\.1' of the image processor"),
        ("processor_config.json", processor(size={}), r"key 'size\.shortest_edge' of the image processor"),
    ],
)
def test_configs_that_are_damaged_are_named(
    checkpoint: Path, tmp_path: Path, file: str, change: Change, message: str
) -> None:
    folder = variant(checkpoint, tmp_path / "other")
    rewrite(folder / file, change)
    with pytest.raises(LeverlabError, match=message) as caught:
        export_vision(folder, tmp_path / "mmproj.gguf")
    assert str(folder) in str(caught.value)
    (folder / file).unlink()
    with pytest.raises(LeverlabError, match=r"config\.json does not exist|has no image processor"):
        export_vision(folder, tmp_path / "mmproj.gguf")


def store_twice(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.visual.merger.ln_q.weight"] = tensors["visual.merger.ln_q.weight"].clone()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda tensors: tensors.pop(f"{QKV}.bias"), r"lacks 1 tensor.*first blocks\.2\.attn\.qkv\.bias"),
        (lambda tensors: tensors.update({"visual.extra": torch.ones(2)}), r"has 1 tensor.*first extra"),
        (
            lambda tensors: tensors.update({"visual.blocks.4.norm1.weight": torch.ones(64)}),
            r"has 1 tensor.*first blocks\.4\.norm1\.weight",
        ),
        (spoil(f"{QKV}.weight", lambda t: t[:128]), r"qkv\.weight has shape \(128, 64\), not the \(192, 64\)"),
        (
            spoil("visual.patch_embed.proj.weight", lambda t: t[:, :, :1]),
            r"proj\.weight has shape \(64, 3, 1, 8, 8\), not the \(64, 3, 2, 8, 8\)",
        ),
        (spoil(f"{QKV}.weight", lambda t: t / 0), r"visual\.blocks\.2\.attn\.qkv\.weight holds NaN or infinite"),
        (spoil("visual.merger.ln_q.weight", lambda t: t * torch.nan), r"ln_q\.weight holds NaN or infinite"),
        (spoil("visual.merger.mlp.2.weight", lambda t: t * 1e7), r"mlp\.2\.weight holds values up to .* F16 only up"),
        (spoil("visual.merger.mlp.2.weight", lambda t: t.double()), r"mlp\.2\.weight is of type F64"),
        (store_twice, r"ln_q\.weight is also"),
    ],
)
def test_tensors_that_cannot_be_exported_are_refused(
    checkpoint: Path, tmp_path: Path, edit: Edit, message: str
) -> None:
    """And the file that stood in the place of the new one is still there, with nothing beside it."""
    out = tmp_path / "out" / "mmproj.gguf"
    out.parent.mkdir()
    out.write_text("earlier export")
    with pytest.raises(LeverlabError, match=message):
        export_vision(variant(checkpoint, tmp_path / "bad", edit), out)
    assert [file.name for file in out.parent.iterdir()] == ["mmproj.gguf"]
    assert out.read_text() == "earlier export"


def test_what_is_wrong_in_one_part_does_not_keep_the_other_from_its_file(checkpoint: Path, tmp_path: Path) -> None:
    """A text tensor that lacks is no matter of the vision file, and the other way round."""
    export_vision(
        variant(checkpoint, tmp_path / "text", lambda tensors: tensors.pop("model.norm.weight")), tmp_path / "a.gguf"
    )
    export_text(
        variant(checkpoint, tmp_path / "vision", lambda tensors: tensors.pop(f"{QKV}.bias")), tmp_path / "b.gguf", "f16"
    )


def exchange(first: int, second: int) -> Edit:
    """Return an edit that swaps two thirds of one layer's q, k and v."""

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for leaf in ("weight", "bias"):
            parts = list(tensors[f"{QKV}.{leaf}"].chunk(3))
            parts[first], parts[second] = parts[second], parts[first]
            tensors[f"{QKV}.{leaf}"] = torch.cat(parts)

    return edit


@pytest.mark.parametrize(
    ("edit", "broken"),
    [
        (exchange(0, 1), [f"v.blk.2.attn_{letter}.{leaf}" for letter in "kq" for leaf in ("bias", "weight")]),
        (exchange(1, 2), [f"v.blk.2.attn_{letter}.{leaf}" for letter in "kv" for leaf in ("bias", "weight")]),
        (
            spoil("visual.patch_embed.proj.weight", lambda t: t.flip(2)),
            ["v.patch_embd.weight", "v.patch_embd.weight.1"],
        ),
        (
            spoil("visual.patch_embed.proj.weight", lambda t: t.flip(1)),
            ["v.patch_embd.weight", "v.patch_embd.weight.1"],
        ),
        (spoil("visual.merger.mlp.0.weight", lambda t: t * 1.002), ["mm.0.weight"]),
        (spoil("visual.merger.ln_q.weight", lambda t: t + 1e-6), ["v.post_ln.weight"]),
        (spoil("visual.blocks.0.mlp.down_proj.bias", lambda t: t.flip(0)), ["v.blk.0.ffn_down.bias"]),
    ],
)
def test_a_broken_export_is_caught(checkpoint: Path, tmp_path: Path, edit: Edit, broken: list[str]) -> None:
    export_vision(variant(checkpoint, tmp_path / "broken", edit), tmp_path / "broken.gguf")
    records = compare(checkpoint, tmp_path / "broken.gguf", "vision")
    assert sorted(record.name for record in records if record.values_beyond) == broken


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", vision(fullatt_block_indexes=[3]), "n_wa_pattern is 2, in the checkpoint 4"),
        ("config.json", vision(num_heads=8), "head_count is 4, in the checkpoint 8"),
        (
            "processor_config.json",
            processor(image_mean=MEAN[::-1]),
            r"image_mean\[0\] is 0\.4814\d+, in the checkpoint 0\.408",
        ),
        (
            "processor_config.json",
            processor(image_std=[0.5] * 3),
            r"image_std\[0\] is 0\.268\d+, in the checkpoint 0\.5",
        ),
    ],
)
def test_a_field_that_differs_is_named(
    checkpoint: Path, exported: Path, tmp_path: Path, file: str, change: Change, message: str
) -> None:
    folder = variant(checkpoint, tmp_path / "other")
    rewrite(folder / file, change)
    with pytest.raises(LeverlabError, match=message):
        compare(folder, exported, "vision")


def test_a_file_of_the_other_part_is_refused(checkpoint: Path, exported: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.gguf"
    export_text(checkpoint, text, "f16")
    with pytest.raises(LeverlabError, match=r"text\.gguf: clip\.\S+ is None, in the checkpoint .*; export again"):
        compare(checkpoint, text, "vision")
    with pytest.raises(LeverlabError, match=r"mmproj\.gguf: clip\.\S+ is .*, in the checkpoint None; export again"):
        compare(checkpoint, exported, "text")


def test_a_truncated_file_is_an_error(checkpoint: Path, exported: Path, tmp_path: Path) -> None:
    whole, cut = exported.read_bytes(), tmp_path / "cut.gguf"
    for length in (0, 23, 500, len(whole) // 2, len(whole) - 1):
        cut.write_bytes(whole[:length])
        with pytest.raises(LeverlabError, match=r"cut\.gguf is truncated or no GGUF file"):
            compare(checkpoint, cut, "vision")
