"""Selector checkpoints: safetensors with the architecture in the header, loaded strictly or not at all."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from leverlab.errors import LeverlabError
from leverlab.files import write_bytes
from leverlab.selector.network import Selector

FORMAT = "leverlab-selector-1"


def save_selector(path: Path, selector: Selector) -> None:
    """Write the weights and feature statistics of `selector`, whole or not at all."""
    # one key: safetensors writes several metadata keys in random order, and equal weights must be equal bytes
    header = {"format": FORMAT, "widths": selector.widths, "width": selector.width, "dropout": selector.dropout.p}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in selector.state_dict().items()}
    write_bytes(path, save(tensors, metadata={"leverlab": json.dumps(header)}))


def load_selector(path: Path) -> Selector:
    """Return the selector of a checkpoint, in evaluation mode.

    Raises `LeverlabError` when the file is missing, truncated, of another kind, or has a missing or unexpected tensor.
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
        selector = Selector(tuple(shape["widths"]), int(shape["width"]), float(shape["dropout"]))
        selector.load_state_dict(tensors, strict=True)
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        problem = " ".join(str(error).split())[:300]
        raise LeverlabError(f"the tensors of {path} do not fit its architecture: {problem}") from None
    return selector.eval()
