"""Loading a frozen vision-language model: a hub id or a local folder in the hub's format, one code path for all."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor
from transformers import AutoModelForImageTextToText

from leverlab.errors import LeverlabError
from leverlab.library_errors import reason_of
from leverlab.vlm.checkpoint import load_processor
from leverlab.vlm.prompt import PromptFormat

FILES = ["*.json", "*.jinja", "*.txt", "*.safetensors"]  # of a hub repository; others hold the same weights again
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
GREEDY = {"do_sample": False, "repetition_penalty": 1.0}  # for `generate`: plain greedy, whatever a checkpoint prefers


@dataclass(frozen=True)
class Vlm:
    """A frozen VLM with its processor. `digest` names its weights, dtype and prompt format in caches."""

    model: Any
    processor: Any
    digest: str

    @property
    def device(self) -> torch.device:
        """The device that the model computes on."""
        return torch.device(self.model.device)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the model computes in."""
        return next(iter(self.model.parameters())).dtype

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """Return the input embeddings of token ids, shape (..., width)."""
        embeddings: Tensor = self.model.get_input_embeddings()(ids)
        return embeddings


def load_vlm(source: str, dtype: str, device: str = "auto") -> Vlm:
    """Return the frozen VLM in `source` (a local folder in the hub's format, or a hub id).

    `dtype` is 'float32' or 'bfloat16'; `device` 'auto' takes a GPU where there is one. Raises `LeverlabError` when the
    checkpoint is missing, truncated, lacks a tensor or is of another family than Qwen2.5-VL.
    """
    if dtype not in DTYPES:
        raise LeverlabError(f"vlm.dtype = '{dtype}' is not known; use one of {sorted(DTYPES)}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    folder = checkpoint_folder(source)
    processor = load_processor(folder)
    try:
        model: Any
        report: Any
        model, report = AutoModelForImageTextToText.from_pretrained(  # type: ignore[misc]
            folder, dtype=DTYPES[dtype], attn_implementation="sdpa", output_loading_info=True
        )
    except Exception as error:  # the library raises OSError, SafetensorError, ValueError and more for a bad checkpoint
        raise LeverlabError(
            f"the VLM at '{source}' cannot be loaded ({reason_of(error)}); vlm.source must be a hub id or a whole "
            "checkpoint folder"
        ) from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[kind]:
            raise LeverlabError(
                f"the VLM at '{source}' has {kind.replace('_', ' ')} {sorted(report[kind])[:5]}; fetch it again"
            )
    model.requires_grad_(False)
    return Vlm(model.to(device).eval(), processor, _digest(source, folder, dtype, processor))


def check_vlm(source: str) -> None:
    """Raise `LeverlabError` when `load_vlm` or the prompts of its model would fail: all that shows without loading.

    A hub id is fetched.
    """
    PromptFormat(load_processor(checkpoint_folder(source)))


def checkpoint_folder(source: str) -> Path:
    """Return the folder of the checkpoint `source`, a local folder or a hub id; the hub's is fetched if it is not here.

    Raises `LeverlabError` when it is neither, or cannot be fetched.
    """
    if Path(source).is_dir():
        return Path(source)
    try:
        return Path(snapshot_download(source, allow_patterns=FILES))
    except Exception as error:  # of the hub, of HTTP, of the disk
        raise LeverlabError(
            f"the checkpoint '{source}' cannot be fetched ({reason_of(error)}); vlm.source must be a hub id or a whole "
            "checkpoint folder"
        ) from error


def _digest(source: str, folder: Path, dtype: str, processor: Any) -> str:
    """Return a digest of the weight files (the hub's revision for a hub id), the dtype and the chat template."""
    sha = hashlib.sha256(f"{dtype}\n{processor.chat_template}\n".encode())
    if not Path(source).is_dir():
        sha.update(f"{source} {folder.name}".encode())  # the hub's snapshots are named by their commit
        return sha.hexdigest()
    for path in sorted(folder.iterdir()):
        if path.suffix in {".safetensors", ".json"} or path.name == "merges.txt":
            sha.update(path.name.encode())
            with path.open("rb") as file:
                sha.update(hashlib.file_digest(file, "sha256").digest())
    return sha.hexdigest()
