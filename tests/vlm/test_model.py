"""Loading a checkpoint: what is wrong with it in one sentence, and the digest that names it in caches."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from leverlab.errors import LeverlabError
from leverlab.vlm.model import Vlm, checkpoint_folder, load_vlm
from leverlab.vlm.processor import ImageOnlyQwen25VLProcessor
from leverlab.worlds.world import World


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint to damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "vlm"))


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def edit_tensors(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def fails(source: str, dtype: str = "float32") -> str:
    """Return the message of the error that loading raises, after checking that it is one sentence."""
    with pytest.raises(LeverlabError) as caught:
        load_vlm(source, dtype, "cpu")
    message = str(caught.value)
    assert "\n" not in message
    assert 20 < len(message) < 600
    return message


def test_a_checkpoint_is_loaded_frozen_with_an_image_only_processor(vlm: Vlm) -> None:
    assert not vlm.model.training
    assert not any(parameter.requires_grad for parameter in vlm.model.parameters())
    assert isinstance(vlm.processor, ImageOnlyQwen25VLProcessor)
    assert vlm.dtype == torch.float32
    assert vlm.device == torch.device("cpu")
    ids = torch.tensor([[3, 5], [7, 0]])
    assert torch.equal(vlm.embed_tokens(ids), vlm.model.get_input_embeddings().weight[ids])


def test_an_index_that_leads_out_of_the_folder_is_refused(folder: Path) -> None:
    """The weights that it names are whole, and transformers would load them."""
    outside = (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    weights = dict.fromkeys(load_file(outside), "../outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    assert "shard '../outside.safetensors' is no safetensors file beside it" in fails(str(folder))


def test_a_config_that_names_its_weights_is_refused(folder: Path) -> None:
    """Transformers would load what it names, and follow an index that it names out of the folder."""
    outside = folder.parent / "outside.safetensors"
    shutil.copy(folder / "model.safetensors", outside)
    weights = dict.fromkeys(load_file(outside), "../outside.safetensors")
    (folder / "other.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "other.safetensors.index.json"}))
    assert "config.json names its weights ('other.safetensors.index.json' as" in fails(str(folder))


def test_bfloat16_rounds_the_stored_weights(tiny_folder: Path, vlm: Vlm) -> None:
    half = load_vlm(str(tiny_folder), "bfloat16", "cpu")
    assert half.dtype == torch.bfloat16
    assert torch.equal(half.model.lm_head.weight, vlm.model.lm_head.weight.bfloat16())


def test_the_processor_writes_one_placeholder_a_merged_image_token(
    vlm: Vlm, world: World, picture: Callable[[int, int, int], bytes]
) -> None:
    example = replace(world.pool[0], image=picture(48, 32, 0))
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    inputs = vlm.processor(text=[f"{image}Which?"], images=[example.open_image()], return_tensors="pt")
    pad = vlm.processor.image_token_id
    assert inputs["image_grid_thw"].tolist() == [[1, 4, 6]]
    assert inputs["input_ids"][0].tolist().count(pad) == 6
    assert inputs["mm_token_type_ids"].tolist() == (inputs["input_ids"] == pad).int().tolist()


def test_a_missing_folder(tmp_path: Path) -> None:
    message = fails(str(tmp_path / "nowhere"))
    assert "nowhere' cannot be fetched" in message
    assert "vlm.source must be a hub id or a whole checkpoint folder" in message


def test_a_folder_without_weights_or_without_a_config(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")  # pickles are not read
    assert f"{folder / 'model.safetensors'} does not exist" in fails(str(folder))
    (folder / "config.json").unlink()
    assert f"{folder / 'config.json'} does not exist" in fails(str(folder))


@pytest.mark.parametrize("keep", [0, 100, 0.5, -1])
def test_truncated_weights(keep: float, folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: int(len(whole) * keep)] if keep == 0.5 else whole[: int(keep)])
    assert f"{folder / 'model.safetensors'} is truncated or damaged" in fails(str(folder))


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "processor_config.json"])
def test_truncated_descriptions(file: str, folder: Path) -> None:
    text = (folder / file).read_text()
    (folder / file).write_text(text[: len(text) // 2])
    assert f"{folder / file} is not valid JSON" in fails(str(folder))


def test_a_missing_tensor_is_named(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    assert fails(str(folder)) == (
        f"the VLM at '{folder}' has missing keys ['model.language_model.layers.1.mlp.up_proj.weight']; fetch it again"
    )


def test_an_unexpected_tensor_is_named(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({"model.layers.9.extra": torch.zeros(3)}))
    message = fails(str(folder))
    assert "has unexpected keys" in message
    assert "layers.9.extra" in message


def test_a_tensor_of_another_shape_is_refused(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({"model.norm.weight": torch.zeros(7)}))
    fails(str(folder))


def test_an_unknown_dtype(tiny_folder: Path) -> None:
    message = fails(str(tiny_folder), "float16")
    assert message == "vlm.dtype = 'float16' is not known; use one of ['bfloat16', 'float32']"


def test_the_digest_names_weights_dtype_and_prompt_format(folder: Path) -> None:
    def digest(dtype: str = "float32") -> str:
        return load_vlm(str(folder), dtype, "cpu").digest

    found = [digest(), digest("bfloat16")]
    raw = bytearray((folder / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (folder / "model.safetensors").write_bytes(raw)
    found.append(digest())
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + "{# #}")
    found.append(digest())
    path = folder / "processor_config.json"
    config = json.loads(path.read_text())
    config["image_processor"]["image_mean"] = [0.5, 0.5, 0.5]
    path.write_text(json.dumps(config))
    found.append(digest())
    assert len(set(found)) == 5
    assert digest() == found[-1]


def test_the_digest_does_not_depend_on_where_the_folder_is(tiny_folder: Path, folder: Path, vlm: Vlm) -> None:
    (folder / "README.md").write_text("nothing that the VLM sees")
    assert load_vlm(str(folder), "float32", "cpu").digest == vlm.digest


def test_loading_twice_gives_the_same_weights(tiny_folder: Path, vlm: Vlm) -> None:
    again = load_vlm(str(tiny_folder), "float32", "cpu")
    for one, other in zip(vlm.model.parameters(), again.model.parameters(), strict=True):
        assert np.array_equal(one.numpy(), other.numpy())


def test_the_folder_of_a_hub_id_is_its_snapshot(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the hub's library keeps what it fetched; nothing is fetched here."""
    kept = tmp_path / "models--someone--tiny"
    shutil.copytree(tiny_folder, kept / "snapshots/0123abc")
    (kept / "refs").mkdir()
    (kept / "refs/main").write_text("0123abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert checkpoint_folder("someone/tiny") == kept / "snapshots/0123abc"
    assert checkpoint_folder(str(tiny_folder)) == tiny_folder
    with pytest.raises(LeverlabError, match="the checkpoint 'someone/other' cannot be fetched"):
        checkpoint_folder("someone/other")
