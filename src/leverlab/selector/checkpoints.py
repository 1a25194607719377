"""Selector checkpoints: safetensors with the architecture in the header, loaded strictly or not at all."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from leverlab.errors import LeverlabError
from leverlab.files import write_bytes
from leverlab.library_errors import reason_of
from leverlab.selector.architecture import Architecture
from leverlab.selector.network import Selector

FORMAT = "leverlab-selector-1"


def save_selector(path: Path, selector: Selector) -> None:
    """Write the weights and feature statistics of `selector`, whole or not at all."""
    # one key: safetensors writes several metadata keys in random order, and equal weights must be equal bytes
    header = {
        "format": FORMAT,
        "widths": selector.widths,
        "dropout": selector.dropout.p,
        **asdict(selector.architecture),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in selector.state_dict().items()}
    write_bytes(path, save(tensors, metadata={"leverlab": json.dumps(header)}))


def load_selector(path: Path) -> Selector:
    """Return the selector of a checkpoint, in evaluation mode.

    Raises `LeverlabError` when the file is missing, truncated, of another kind, or does not state its architecture, and
    when it has a tensor too few or too many for that.
    """
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    except (SafetensorError, OSError) as error:
        raise LeverlabError(
            f"the checkpoint {path} cannot be read ({error}); run the stage that writes it again"
        ) from None
    try:
        shape = json.loads(header.get("leverlab", "{}"))
        if shape.get("format") != FORMAT:
            raise LeverlabError(f"{path} is not a selector checkpoint of format {FORMAT}, but {shape.get('format')!r}")
        stored = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
        widths, dropout, architecture = tuple(shape["widths"]), shape["dropout"], Architecture.read(shape)
        if not all(type(size) is int and size > 0 for size in widths):
            raise ValueError(f"widths {widths} must be whole numbers from 1 on")
        if type(dropout) is not float or not 0 <= dropout < 1:
            raise ValueError(f"dropout {dropout!r} must be a number in 0..1")
        with torch.device("meta"):  # a damaged header may ask for more memory than there is
            blank = Selector(widths, architecture, dropout).state_dict()
        expected = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in blank.items()}
        if wrong := sorted({name for name, _ in stored.items() ^ expected.items()}):
            raise ValueError(f"{wrong[:4]} are missing, unexpected or of another shape or type for {architecture}")
        if unfit := [name for name, tensor in tensors.items() if not _is_sound(name, tensor)]:
            raise ValueError(f"{unfit[:4]} hold values that are not finite, or a scale that is not positive")
        selector = Selector(widths, architecture, dropout)
        selector.load_state_dict(tensors, strict=True)
    except (KeyError, ValueError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
        problem = reason_of(error)
        raise LeverlabError(
            f"the tensors of {path} do not fit its architecture: {problem}; run the stage that writes it again"
        ) from None
    return selector.eval()


def _is_sound(name: str, tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all()) and (not name.endswith("_scale") or bool((tensor > 0).all()))
