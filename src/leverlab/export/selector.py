"""Conversion of a training checkpoint to the inference format, with proof that both give the same picks."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from leverlab.errors import LeverlabError
from leverlab.selector.batches import QueryBatch
from leverlab.selector.decoding import greedy
from leverlab.selector.inference import InferenceSelector, expected_shapes
from leverlab.selector.network import FEATURES, Selector

_RENAMED = {
    "mix_query.0": "mix_query.norm",
    "mix_query.1": "mix_query.up",
    "mix_query.3": "mix_query.down",
    "mix_demo.0": "mix_demo.norm",
    "mix_demo.1": "mix_demo.up",
    "mix_demo.3": "mix_demo.down",
}
_GRU = {"weight_ih": "input.weight", "bias_ih": "input.bias", "weight_hh": "hidden.weight", "bias_hh": "hidden.bias"}


def inference_tensors(selector: Selector) -> dict[str, NDArray[np.float32]]:
    """Return the tensors of the inference format: names of that format, feature statistics folded into the projections.

    Raises `LeverlabError` when a tensor of the checkpoint finds no place or a place finds no tensor.
    """
    state = {name: tensor.detach().double().numpy() for name, tensor in selector.state_dict().items()}
    tensors: dict[str, NDArray[Any]] = {}
    for name in FEATURES:
        mean, scale = state.pop(f"{name}_mean"), state.pop(f"{name}_scale")
        weight = state.pop(f"{name}.weight") / scale
        tensors[f"{name}.weight"] = weight
        tensors[f"{name}.bias"] = state.pop(f"{name}.bias") - weight @ mean
    for name, tensor in state.items():
        module, dot, leaf = name.rpartition(".")
        tensors[f"update.{_GRU[leaf]}" if module == "update" else f"{_RENAMED.get(module, module)}{dot}{leaf}"] = tensor
    shapes = expected_shapes(selector.widths, selector.architecture)
    if {name: tensor.shape for name, tensor in tensors.items()} != shapes:
        wrong = sorted(set(tensors) ^ set(shapes))
        raise LeverlabError(f"the checkpoint and the inference format do not have the same tensors: {wrong}")
    return {name: np.ascontiguousarray(tensor, dtype=np.float32) for name, tensor in tensors.items()}


@torch.no_grad()
def check_equal_picks(
    selector: Selector, converted: InferenceSelector, batches: Sequence[QueryBatch], shots: int
) -> int:
    """Return how many picks were compared; raise `LeverlabError` when any differs, or the architectures do.

    The network is run in float64: what is proved is that the converted tensors mean the same, not that two roundings
    agree.
    """
    if converted.architecture != selector.architecture:
        raise LeverlabError(
            f"the converted selector has {converted.architecture}, but the checkpoint has {selector.architecture}; run "
            "dvc repro convert"
        )
    exact = copy.deepcopy(selector).double().eval()
    compared = 0
    for batch in batches:
        query, demos = (tuple(part.double() for part in parts) for parts in (batch.query, batch.demos))
        theirs = greedy(exact, exact.encode(query, demos), shots).numpy()  # type: ignore[arg-type]
        ours = converted.pick([part.numpy() for part in query], [part.numpy() for part in demos], shots)
        if (ours != theirs).any():
            row, pick = np.argwhere(ours != theirs)[0]
            raise LeverlabError(
                f"the converted selector picks another demo than the checkpoint for question '{batch.query_ids[row]}' "
                f"at pick {pick + 1}; the conversion is wrong or the checkpoint does not belong to this code"
            )
        compared += ours.size
    return compared
