"""Adapters: what is written is what is read, and nothing else is taken for it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from leverlab.errors import LeverlabError
from leverlab.lm.adapters import (
    Base,
    load_base,
    load_policy,
    new_adapter,
    save_adapter,
    save_merged,
    weights_digest,
)
from tests.lm.training_runs import ASKED, CHAT, base

IDS = torch.tensor([ASKED[0]])
WEIGHTS = "adapter_model.safetensors"


def moved(one: Base, seed: int = 1) -> Any:
    """A policy whose adapter changes something."""
    policy = new_adapter(one, rank=4, alpha=8, seed=seed)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.2)
    return policy


def logits(policy: Any) -> torch.Tensor:
    with torch.no_grad():
        return policy(IDS).logits  # type: ignore[no-any-return]


def copied(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file that will be written over, of which `load_file` gives a view."""
    return {name: tensor.clone() for name, tensor in load_file(file).items()}


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """The folder of an adapter, and what its policy says."""
    one = base()
    policy = moved(one)
    save_adapter(policy, one, tmp_path / "adapter")
    return tmp_path / "adapter", logits(policy)


def test_a_new_adapter_changes_nothing_and_a_seed_gives_the_same_again() -> None:
    one = base()
    before = logits(one.model)
    policy = new_adapter(one, rank=4, alpha=8, seed=1)
    assert torch.equal(logits(policy), before)
    wanted = {name: weight for name, weight in policy.named_parameters() if weight.requires_grad}
    again = dict(new_adapter(base(), rank=4, alpha=8, seed=1).named_parameters())
    other = dict(new_adapter(base(), rank=4, alpha=8, seed=2).named_parameters())
    assert wanted
    assert all("lora_" in name for name in wanted)
    assert all(torch.equal(weight, again[name]) for name, weight in wanted.items())
    assert any(not torch.equal(weight, other[name]) for name, weight in wanted.items())


def test_what_is_saved_says_the_same_when_it_is_loaded(saved: tuple[Path, torch.Tensor]) -> None:
    folder, said = saved
    policy = load_policy(base(), folder)
    assert torch.equal(logits(policy), said)
    assert not torch.allclose(logits(base().model), said, atol=0.1)
    assert not policy.training
    assert not any(weight.requires_grad for weight in policy.parameters())
    assert any(weight.requires_grad for weight in load_policy(base(), folder, trainable=True).parameters())


def test_the_bytes_depend_on_the_weights_alone(saved: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    """Saved again from what was loaded, in another folder: the same files."""
    folder, _ = saved
    one = base()
    save_adapter(load_policy(one, folder, trainable=True), one, tmp_path / "again")
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["adapter_config.json", WEIGHTS, "base.json"]
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == names
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_an_adapter_for_another_base(saved: tuple[Path, torch.Tensor]) -> None:
    """A base with other weights, and one with the same in another dtype."""
    folder, _ = saved
    one = base()
    half = one.model.to(torch.bfloat16)
    for wrong in (base(seed=5), Base(one.source, half, CHAT, weights_digest(half))):
        with pytest.raises(LeverlabError, match="was trained on another base than 'no/such/folder'"):
            load_policy(wrong, folder)


def test_damaged_adapters_are_named(saved: tuple[Path, torch.Tensor]) -> None:
    folder, _ = saved
    weights = (folder / WEIGHTS).read_bytes()
    tensors = copied(folder / WEIGHTS)

    (folder / WEIGHTS).write_bytes(weights[: len(weights) // 2])
    with pytest.raises(LeverlabError, match=r"cannot be loaded .*; train it again"):
        load_policy(base(), folder)
    lost = sorted(tensors)[3]
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, folder / WEIGHTS)
    with pytest.raises(LeverlabError, match=f"1 weights are missing or stand there alone, '{lost}' first"):
        load_policy(base(), folder)
    save_file(tensors | {"no.such.weight": torch.zeros(1)}, folder / WEIGHTS)
    with pytest.raises(LeverlabError, match=r"'no\.such\.weight' first"):
        load_policy(base(), folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(LeverlabError, match="cannot be loaded"):
        load_policy(base(), folder)
    for text in ("{", "[]", "{}"):
        (folder / "base.json").write_text(text)
        with pytest.raises(LeverlabError, match=r"base\.json is damaged"):
            load_policy(base(), folder)
    (folder / "base.json").unlink()
    with pytest.raises(LeverlabError, match="holds no adapter"):
        load_policy(base(), folder)


def test_the_digest_is_of_names_shapes_dtypes_and_values() -> None:
    """Each of the four alone changes it; where a tensor lies in memory does not."""

    def digest(**tensors: torch.Tensor) -> str:
        module = torch.nn.Module()
        for name, tensor in tensors.items():
            module.register_buffer(name, tensor)
        return weights_digest(module)

    values = torch.arange(6.0).reshape(2, 3)
    others = [
        digest(b=values),
        digest(a=values.reshape(3, 2)),
        digest(a=values.view(torch.int32)),  # the same bytes
        digest(a=values + 1),
        digest(a=torch.tensor(1.0)),
    ]
    assert len({digest(a=values), *others}) == 6
    assert digest(a=values.T.contiguous().T) == digest(a=values)


def test_a_base_from_a_folder(tmp_path: Path) -> None:
    one = base()
    one.model.save_pretrained(tmp_path / "base")
    CHAT.tokenizer.save_pretrained(tmp_path / "base")
    loaded = load_base(str(tmp_path / "base"))
    assert loaded.digest == one.digest
    assert torch.equal(logits(loaded.model), logits(one.model))
    assert not loaded.model.training
    assert load_base(str(tmp_path / "base"), "bfloat16").model.dtype == torch.bfloat16


def test_damaged_bases_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    base().model.save_pretrained(folder)
    CHAT.tokenizer.save_pretrained(folder)
    file = folder / "model.safetensors"
    tensors, whole = copied(file), file.read_bytes()
    save_file({name: tensor for name, tensor in tensors.items() if "norm" not in name}, file, {"format": "pt"})
    with pytest.raises(LeverlabError, match=r"do not fit its config\.json: .*missing_keys.*norm"):
        load_base(str(folder))
    file.write_bytes(whole[:5000])
    with pytest.raises(LeverlabError, match="cannot be loaded"):
        load_base(str(folder))
    with pytest.raises(LeverlabError, match=r"the base model '.*nothing' cannot be loaded"):
        load_base(str(tmp_path / "nothing"))


def test_a_base_without_the_files_of_its_tokenizer_is_refused(tmp_path: Path) -> None:
    """transformers makes a Qwen2Tokenizer of its special tokens alone, which reads every text as nothing."""
    folder = tmp_path / "base"
    base().model.save_pretrained(folder)
    CHAT.tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"tokenizer_class": "Qwen2Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load_base(str(folder)).chat.prompt("a") == CHAT.prompt("a")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(LeverlabError, match=r"tokenizer of '.*base' does not give .* back.*restore tokenizer\.json"):
        load_base(str(folder))


def test_code_of_a_base_is_neither_run_nor_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr("builtins.input", asked.append)
    folder = tmp_path / "base"
    base().model.save_pretrained(folder)
    CHAT.tokenizer.save_pretrained(folder)
    code = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    settings = json.loads((folder / "config.json").read_text()) | code
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(LeverlabError, match="cannot be loaded"):
        load_base(str(folder))
    assert not asked
    assert not (tmp_path / "ran").exists()


def test_merged_says_what_the_adapter_says(saved: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    folder, said = saved
    one = base()
    save_merged(load_policy(one, folder), one, tmp_path / "merged")
    merged = load_base(str(tmp_path / "merged"))
    assert torch.allclose(logits(merged.model), said, atol=1e-4)
    assert not any("lora" in name for name, _ in merged.model.named_parameters())
    assert merged.chat.prompt("a") == CHAT.prompt("a")


def test_an_index_of_a_base_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    one = base()
    save_merged(new_adapter(one, rank=4, alpha=8, seed=1), one, tmp_path / "base")
    outside = (tmp_path / "base/model.safetensors").rename(tmp_path / "outside.safetensors")
    weights = dict.fromkeys(load_file(outside), "../outside.safetensors")
    index = tmp_path / "base/model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    with pytest.raises(LeverlabError, match=r"shard '\.\./outside\.safetensors' is no safetensors file beside it"):
        load_base(str(tmp_path / "base"))
