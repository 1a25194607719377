"""The selector for use: numpy alone, feature statistics folded into the projections, picks equal to the trained
network's.

The format is a safetensors file of float32 tensors with a JSON file beside it. All arithmetic is in float64, so that a
near tie is decided the same way on every machine.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from scipy.special import erf, expit

from leverlab.errors import LeverlabError
from leverlab.files import write_bytes, write_text

FORMAT = "leverlab-selector-inference-1"
Array = NDArray[np.float64]
# name → shape, in terms of the width W and the feature widths
_SQUARE = ("gate", "key", "read")


def expected_shapes(widths: Sequence[int], width: int) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor of the inference format."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, size in zip(("image", "question", "answer"), widths, strict=True):
        shapes |= {f"{name}.weight": (width, size), f"{name}.bias": (width,)}
    for name in _SQUARE:
        shapes |= {f"{name}.weight": (width, width), f"{name}.bias": (width,)}
    shapes |= {"norm.weight": (width,), "norm.bias": (width,)}
    for name, inputs in (("mix_query", 2 * width), ("mix_demo", 3 * width)):
        shapes |= {f"{name}.norm.weight": (inputs,), f"{name}.norm.bias": (inputs,)}
        shapes |= {f"{name}.up.weight": (2 * width, inputs), f"{name}.up.bias": (2 * width,)}
        shapes |= {f"{name}.down.weight": (width, 2 * width), f"{name}.down.bias": (width,)}
    for side in ("input", "hidden"):
        shapes |= {f"update.{side}.weight": (3 * width, width), f"update.{side}.bias": (3 * width,)}
    return shapes


def save_inference(folder: Path, tensors: dict[str, NDArray[np.float32]], config: dict[str, Any]) -> None:
    """Write `selector.safetensors` and `config.json` to `folder`. `config` holds at least `widths` and `width`."""
    write_bytes(folder / "selector.safetensors", save(tensors, metadata={"format": FORMAT}))
    write_text(folder / "config.json", json.dumps({"format": FORMAT, **config}, indent=2, sort_keys=True) + "\n")


def _is_sound(tensor: NDArray[Any]) -> bool:
    return tensor.dtype == np.float32 and bool(np.isfinite(tensor).all())


class InferenceSelector:
    """Picks demos with the tensors of the inference format."""

    def __init__(self, tensors: dict[str, NDArray[np.float32]], config: dict[str, Any]):
        self.config = config
        self.width = int(config["width"])
        self._t: dict[str, Array] = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}

    @classmethod
    def load(cls, folder: Path) -> "InferenceSelector":
        """Return the selector in `folder`.

        Raises `LeverlabError` when a file is missing or damaged, and for a missing, unexpected or misshapen tensor.
        """
        path = folder / "selector.safetensors"
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            tensors = load_file(path)
            if config["format"] != FORMAT:
                raise LeverlabError(
                    f"{folder} holds the format {config['format']!r}, not {FORMAT}; run dvc repro convert"
                )
            if not all(type(size) is int for size in [*config["widths"], config["width"]]):
                raise ValueError("widths and width must be whole numbers")
            shapes = expected_shapes(config["widths"], config["width"])
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise LeverlabError(f"the selector in {folder} cannot be read ({error!r}); run dvc repro convert") from None
        found = {name: tensor.shape for name, tensor in tensors.items()}
        if found != shapes:
            wrong = sorted({name for name, _ in set(found.items()) ^ set(shapes.items())})
            raise LeverlabError(
                f"{path} has missing, unexpected or misshapen tensors: {wrong[:4]}; run dvc repro convert"
            )
        if bad := sorted(name for name, tensor in tensors.items() if not _is_sound(tensor)):
            raise LeverlabError(f"{path}: {bad[:4]} hold values that are not finite float32; run dvc repro convert")
        return cls(tensors, config)

    def pick(self, query: Sequence[NDArray[Any]], demos: Sequence[NDArray[Any]], shots: int) -> NDArray[np.int64]:
        """Return the greedy picks (N, shots), positions among the candidates.

        `query` holds image and question features (N, D), `demos` image, question and answer features (N, K, D).
        """
        if shots > demos[0].shape[1]:
            raise LeverlabError(f"{shots} distinct demos cannot be picked from {demos[0].shape[1]} candidates")
        v_NW, q_NW = self._linear("image", query[0]), self._linear("question", query[1])
        state_NW = v_NW * 2 * expit(self._linear("gate", q_NW)) + q_NW
        state_NW = state_NW + self._mix("mix_query", np.concatenate([v_NW, q_NW], axis=-1))
        parts = [self._linear(name, part) for name, part in zip(("image", "question", "answer"), demos, strict=True)]
        demo_NKW = parts[0] + parts[1] + parts[2] + self._mix("mix_demo", np.concatenate(parts, axis=-1))
        key_NKW = self._linear("key", demo_NKW)
        rows = np.arange(len(state_NW))
        picked_NK = np.zeros(key_NKW.shape[:2], dtype=bool)
        picks = []
        for _ in range(shots):
            read_NW = self._linear("read", self._norm("norm", state_NW))
            logits_NK = np.einsum("nw,nkw->nk", read_NW, key_NKW)
            logits_NK[picked_NK] = -np.inf
            pick_N = logits_NK.argmax(axis=1)
            picks.append(pick_N)
            picked_NK[rows, pick_N] = True
            state_NW = self._update(demo_NKW[rows, pick_N], state_NW)
        return np.stack(picks, axis=1)

    def _linear(self, name: str, values: NDArray[Any]) -> Array:
        result: Array = values.astype(np.float64) @ self._t[f"{name}.weight"].T + self._t[f"{name}.bias"]
        return result

    def _norm(self, name: str, values: Array) -> Array:
        centred = values - values.mean(axis=-1, keepdims=True)
        scale = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
        result: Array = centred / scale * self._t[f"{name}.weight"] + self._t[f"{name}.bias"]
        return result

    def _mix(self, name: str, values: Array) -> Array:
        up = self._linear(f"{name}.up", self._norm(f"{name}.norm", values))
        return self._linear(f"{name}.down", up * 0.5 * (1 + erf(up / np.sqrt(2))))

    def _update(self, inputs: Array, state: Array) -> Array:
        """Return the state of a GRU cell after `inputs` (Cho et al. 2014, arXiv 1406.1078, as torch computes it)."""
        reset_i, update_i, new_i = np.split(self._linear("update.input", inputs), 3, axis=-1)
        reset_h, update_h, new_h = np.split(self._linear("update.hidden", state), 3, axis=-1)
        update = expit(update_i + update_h)
        new = np.tanh(new_i + expit(reset_i + reset_h) * new_h)
        return (1 - update) * new + update * state
