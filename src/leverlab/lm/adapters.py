"""Policies: a base model from a folder or hub, and LoRA adapters that know which base they belong to."""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from leverlab.checkpoint_files import weight_files
from leverlab.errors import LeverlabError
from leverlab.files import write_text
from leverlab.library_errors import reason_of
from leverlab.lm.chat import Chat

BASE_FILE = "base.json"  # beside an adapter: the digest of its base
_MODULES = "all-linear"
_PLAIN_TEXT = "Any text 1"


@dataclass(frozen=True)
class Base:
    """A frozen language model with its chat, and a digest of its weights."""

    source: str
    model: PreTrainedModel
    chat: Chat
    digest: str


def load_base(source: str, dtype: str = "float32") -> Base:
    """Return the model of a folder or a hub id, in eval mode, in torch's `dtype`.

    Code that a checkpoint brings is not run. Raises `LeverlabError` when it is not there, is cut or damaged, or its
    tokenizer has no usable chat template.
    """
    if Path(source).is_dir():
        list(weight_files(Path(source)))  # transformers would follow an index out of the folder
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=getattr(torch, dtype), output_loading_info=True, trust_remote_code=False
        )
        model, info = loaded
    except Exception as error:  # three libraries raise errors of many kinds here
        problem = reason_of(error)
        raise LeverlabError(
            f"the base model '{source}' cannot be loaded ({type(error).__name__}: {problem}); it must be a hub id or a "
            "folder with config.json, the tokenizer's files and whole safetensors files"
        ) from None
    ids = tokenizer(_PLAIN_TEXT, add_special_tokens=False)["input_ids"]
    if str(tokenizer.decode(ids)).strip() != _PLAIN_TEXT:  # transformers makes an empty one where the files are missing
        raise LeverlabError(
            f"the tokenizer of '{source}' does not give '{_PLAIN_TEXT}' back, so files of it are missing; restore "
            "tokenizer.json"
        )
    problems = {name: sorted(map(str, info[name])) for name in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    if wrong := {name: keys for name, keys in problems.items() if keys}:
        raise LeverlabError(f"the weights of '{source}' do not fit its config.json: {wrong}; get the checkpoint again")
    return Base(source, model.eval(), Chat(tokenizer), weights_digest(model))


def weights_digest(model: torch.nn.Module) -> str:
    """Return the SHA-256 of the names and values of all weights, as they are in memory."""
    sha = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        sha.update(f"{name}\0{tuple(weight.shape)}\0{weight.dtype}\0".encode())
        sha.update(weight.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def new_adapter(base: Base, rank: int, alpha: int, seed: int) -> PeftModel:
    """Return the base with a fresh LoRA adapter on all its linear layers, which changes nothing yet."""
    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=_MODULES, task_type="CAUSAL_LM")
    return get_peft_model(base.model, config)


def load_policy(base: Base, folder: Path, trainable: bool = False) -> PeftModel:
    """Return the base with the adapter of `folder`. The base's model is changed in place.

    Raises `LeverlabError` when the adapter is missing, damaged, or belongs to another base.
    """
    try:
        known = json.loads((folder / BASE_FILE).read_text(encoding="utf-8"))["digest"]
    except FileNotFoundError:
        raise LeverlabError(
            f"{folder} holds no adapter ({BASE_FILE} is missing); run the stage that trains it"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LeverlabError(
            f"{folder / BASE_FILE} is damaged ({error}); run the stage that trains the adapter"
        ) from None
    if known != base.digest:
        raise LeverlabError(
            f"the adapter in {folder} was trained on another base than '{base.source}' (weights {str(known)[:12]}…, "
            f"not {base.digest[:12]}…); train it again, or set the base that it belongs to"
        )
    try:
        model = PeftModel.from_pretrained(base.model, str(folder), is_trainable=trainable)
        with safe_open(folder / SAFETENSORS_WEIGHTS_NAME, "pt") as file:
            held = set(file.keys())
    except Exception as error:
        problem = reason_of(error)
        raise LeverlabError(
            f"the adapter in {folder} cannot be loaded ({type(error).__name__}: {problem}); train it again"
        ) from None
    if differ := sorted(held ^ set(get_peft_model_state_dict(model, save_embedding_layers=False))):  # peft only warns
        raise LeverlabError(
            f"the adapter in {folder} does not fit its base: {len(differ)} weights are missing or stand there alone, "
            f"'{differ[0]}' first; train it again"
        )
    return model if trainable else model.eval()


def save_adapter(model: PeftModel, base: Base, folder: Path) -> None:
    """Write the adapter of `model` with the digest of its base. The bytes depend on the weights alone."""
    model.save_pretrained(
        str(folder),
        selected_adapters=["default"],  # not the copy that trainers keep as their reference
        save_embedding_layers=False,  # else it looks for the base on the hub
    )
    for extra in (folder / "README.md",):  # a model card with paths of this machine
        extra.unlink(missing_ok=True)
    config = folder / "adapter_config.json"
    fields = json.loads(config.read_text(encoding="utf-8")) | {"base_model_name_or_path": base.source}
    for name in ("target_modules", "modules_to_save"):  # sets, whose order changes from run to run
        if isinstance(fields.get(name), list):
            fields[name] = sorted(fields[name])
    write_text(config, json.dumps(fields, indent=2, sort_keys=True) + "\n")
    write_text(folder / BASE_FILE, json.dumps({"digest": base.digest}, indent=2) + "\n")


def save_merged(model: PeftModel, base: Base, folder: Path) -> None:
    """Write base and adapter as one plain model in the hub's format, with the base's tokenizer and dtype."""
    shutil.rmtree(folder, ignore_errors=True)
    merged: Any = model.merge_and_unload()
    merged.save_pretrained(str(folder))
    base.chat.tokenizer.save_pretrained(str(folder))
