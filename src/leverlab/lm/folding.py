"""A policy's adapter inside the weights of its base, for as long as it speaks."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from leverlab.errors import LeverlabError


@contextmanager
def folded(model: Any) -> Iterator[None]:
    """Have a model's active adapters inside its base's weights for a while: its passes then cost what the base's do.

    Afterwards the weights are the same bytes as before, even after an error: they are put away, where `unmerge` of PEFT
    would subtract what was added. Only plain linear layers in float32 whose weight is no other layer's are folded:
    bfloat16 would round most of a young adapter away, and the policy that speaks would not be the one that is trained.
    All others, and models without adapters, stay as they are. Raises `LeverlabError` when an adapter holds what is no
    number.
    """
    modules = list(model.modules()) if isinstance(model, torch.nn.Module) else []
    uses = Counter(id(weight) for module in modules for weight in module.parameters(recurse=False))
    layers: list[Any] = [one for one in modules if isinstance(one, BaseTunerLayer) and _foldable(one, uses)]
    put_away = [(weight, weight.data) for layer in layers for weight in layer.get_base_layer().parameters()]
    try:
        _merge(layers)
        yield
    finally:
        for weight, values in put_away:
            weight.data = values
        for layer in layers:
            layer.merged_adapters.clear()


def _foldable(layer: Any, uses: Counter[int]) -> bool:
    base = layer.get_base_layer()
    if layer.merged or layer.disable_adapters or type(base) is not torch.nn.Linear:
        return False
    return all(weight.dtype == torch.float32 and uses[id(weight)] == 1 for weight in base.parameters())


def _merge(layers: list[Any]) -> None:
    try:
        with torch.no_grad():
            for layer in layers:
                layer.merge(safe_merge=True)  # in a copy
    except ValueError as error:
        raise LeverlabError(
            f"the adapter holds what are no numbers ({error}); its weights are broken: train again, slower"
        ) from None
