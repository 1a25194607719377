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
from scipy.special import erf, expit, softmax

from leverlab.errors import LeverlabError
from leverlab.files import write_bytes, write_text
from leverlab.selector.architecture import Architecture

FORMAT = "leverlab-selector-inference-1"
Array = NDArray[np.float64]
_Shapes = dict[str, tuple[int, ...]]


def expected_shapes(widths: Sequence[int], architecture: Architecture) -> _Shapes:
    """Return the name and shape of every tensor of the inference format."""
    width = architecture.width
    shapes = _linear("gate", width, width) | {"norm.weight": (width,), "norm.bias": (width,)}
    for name, size in zip(("image", "question", "answer"), widths, strict=True):
        shapes |= _linear(name, width, size)
    for name, inputs in (("mix_query", 2 * width), ("mix_demo", 3 * width)):
        shapes |= {f"{name}.norm.weight": (inputs,), f"{name}.norm.bias": (inputs,)}
        shapes |= _linear(f"{name}.up", 2 * width, inputs) | _linear(f"{name}.down", width, 2 * width)
    match architecture.state:
        case "gru":
            shapes |= _linear("update.input", 3 * width, width) | _linear("update.hidden", 3 * width, width)
        case "gated":
            shapes |= _linear("update.gate", width, 2 * width) | _linear("update.new", width, width)
    match architecture.head:
        case "dot":
            shapes |= _linear("key", width, width) | _linear("read", width, width)
        case "bilinear":
            shapes |= {"key.weight": (width, width)}
        case "additive":
            shapes |= {"key.weight": (width, width), "read.weight": (width, width), "score.energy.weight": (1, width)}
    shapes |= {"mmr.weight": (1,)} if architecture.mmr else {}
    return shapes | ({"stop": (width,)} if architecture.stop else {})


def _linear(name: str, outputs: int, inputs: int) -> _Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def save_inference(folder: Path, tensors: dict[str, NDArray[np.float32]], config: dict[str, Any]) -> None:
    """Write `selector.safetensors` and `config.json` to `folder`. `config` holds at least `widths` and architecture."""
    write_bytes(folder / "selector.safetensors", save(tensors, metadata={"format": FORMAT}))
    write_text(folder / "config.json", json.dumps({"format": FORMAT, **config}, indent=2, sort_keys=True) + "\n")


def _is_sound(tensor: NDArray[Any]) -> bool:
    return tensor.dtype == np.float32 and bool(np.isfinite(tensor).all())


class InferenceSelector:
    """Picks demos with the tensors of the inference format; `leverlab.selector.parts` has the formulas."""

    def __init__(self, tensors: dict[str, NDArray[np.float32]], config: dict[str, Any]):
        self.config, self.architecture = config, Architecture.read(config)
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
            if not all(type(size) is int for size in config["widths"]):
                raise ValueError("widths must be whole numbers")
            architecture = Architecture.read(config)
            shapes = expected_shapes(config["widths"], architecture)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise LeverlabError(f"the selector in {folder} cannot be read ({error!r}); run dvc repro convert") from None
        found = {name: tensor.shape for name, tensor in tensors.items()}
        if found != shapes:
            wrong = sorted({name for name, _ in set(found.items()) ^ set(shapes.items())})
            raise LeverlabError(
                f"{path} has missing, unexpected or misshapen tensors for {architecture}: {wrong[:4]}; run dvc repro "
                "convert"
            )
        if bad := sorted(name for name, tensor in tensors.items() if not _is_sound(tensor)):
            raise LeverlabError(f"{path}: {bad[:4]} hold values that are not finite float32; run dvc repro convert")
        return cls(tensors, config)

    def pick(self, query: Sequence[NDArray[Any]], demos: Sequence[NDArray[Any]], shots: int) -> NDArray[np.int64]:
        """Return the greedy picks (N, shots), positions among the candidates; K from where a list has ended.

        `query` holds image and question features (N, D), `demos` image, question and answer features (N, K, D).
        """
        return self.pick_encoded(query, self.encode(demos), shots)[0]

    def encode(self, demos: Sequence[NDArray[Any]]) -> Array:
        """Return the vectors (..., W) of demos, from their image, question and answer features (..., D)."""
        parts = [self._linear(name, part) for name, part in zip(("image", "question", "answer"), demos, strict=True)]
        return parts[0] + parts[1] + parts[2] + self._mix("mix_demo", np.concatenate(parts, axis=-1))

    def pick_encoded(
        self, query: Sequence[NDArray[Any]], demo_NKW: Array, shots: int
    ) -> tuple[NDArray[np.int64], Array]:
        """Return the greedy picks as `pick`, and the probability (N, shots) that the policy gives to each.

        `query` as for `pick`, `demo_NKW` from `encode`.
        """
        candidates = demo_NKW.shape[1]
        if shots > candidates:
            raise LeverlabError(f"{shots} distinct demos cannot be picked from {candidates} candidates")
        v_NW, q_NW = self._linear("image", query[0]), self._linear("question", query[1])
        state_NW = v_NW * 2 * expit(self._linear("gate", q_NW)) + q_NW
        state_NW = state_NW + self._mix("mix_query", np.concatenate([v_NW, q_NW], axis=-1))
        if self.architecture.stop:
            stop_N1W = np.broadcast_to(self._t["stop"], (len(demo_NKW), 1, self.architecture.width))
            demo_NKW = np.concatenate([demo_NKW, stop_N1W], axis=1)
        key_NKW = self._keys(demo_NKW)
        rows = np.arange(len(state_NW))
        barred_NK = np.zeros(key_NKW.shape[:2], dtype=bool)
        barred_NK[:, candidates:] = True  # a list may not end before its first demo
        picks: list[NDArray[np.int64]] = []
        scores: list[Array] = []
        for _ in range(shots):
            logits_NK = self._scores(self._norm("norm", state_NW), key_NKW)
            if self.architecture.mmr and picks:
                logits_NK -= self._penalty(demo_NKW, np.stack(picks, axis=1))
            logits_NK[barred_NK] = -np.inf
            pick_N = logits_NK.argmax(axis=1)
            picks.append(pick_N)
            scores.append(softmax(logits_NK, axis=1)[rows, pick_N])
            barred_NK[rows, pick_N] = True
            if self.architecture.stop:
                barred_NK[pick_N == candidates] = True
                barred_NK[:, -1] = False
            state_NW = self._update(demo_NKW[rows, pick_N], state_NW)
        return np.stack(picks, axis=1), np.stack(scores, axis=1)

    def _keys(self, demo_NKW: Array) -> Array:
        return self._linear("key", demo_NKW) if self.architecture.head == "dot" else self._product("key", demo_NKW)

    def _scores(self, normed_NW: Array, key_NKW: Array) -> Array:
        """Return the logits (N, K) of the head."""
        match self.architecture.head:
            case "additive":
                hidden_NKW = np.tanh(self._product("read", normed_NW)[:, None] + key_NKW)
                return self._product("score.energy", hidden_NKW)[..., 0]
            case "dot":
                read_NW = self._linear("read", normed_NW)
            case "bilinear":
                read_NW = normed_NW
        logits_NK: Array = np.einsum("nw,nkw->nk", read_NW, key_NKW) / np.sqrt(self.architecture.width)
        return logits_NK

    def _penalty(self, demo_NKW: Array, picks_NT: NDArray[np.int64]) -> Array:
        """Return what the logits (N, K) fall by for their similarity to the demos picked so far."""
        unit_NKW = demo_NKW / np.maximum(np.linalg.norm(demo_NKW, axis=-1, keepdims=True), 1e-12)
        chosen_NTW = np.take_along_axis(unit_NKW, picks_NT[..., None], axis=1)
        nearest_NK = np.einsum("nkw,ntw->nkt", unit_NKW, chosen_NTW).max(axis=-1)
        penalty_NK: Array = np.logaddexp(0, self._t["mmr.weight"]) * nearest_NK
        return penalty_NK

    def _update(self, demo_NW: Array, state_NW: Array) -> Array:
        """Return the states after the picks `demo_NW`."""
        match self.architecture.state:
            case "gru":
                return self._gru(demo_NW, state_NW)
            case "gated":
                keep_NW = expit(self._linear("update.gate", np.concatenate([state_NW, demo_NW], axis=-1)))
                state_NW = keep_NW * state_NW + (1 - keep_NW) * np.tanh(self._linear("update.new", demo_NW))
        return state_NW

    def _gru(self, inputs: Array, state: Array) -> Array:
        """Return the state of a GRU cell after `inputs` (Cho et al. 2014, arXiv 1406.1078, as torch computes it)."""
        reset_i, update_i, new_i = np.split(self._linear("update.input", inputs), 3, axis=-1)
        reset_h, update_h, new_h = np.split(self._linear("update.hidden", state), 3, axis=-1)
        update = expit(update_i + update_h)
        new = np.tanh(new_i + expit(reset_i + reset_h) * new_h)
        return (1 - update) * new + update * state

    def _product(self, name: str, values: NDArray[Any]) -> Array:
        result: Array = values.astype(np.float64) @ self._t[f"{name}.weight"].T
        return result

    def _linear(self, name: str, values: NDArray[Any]) -> Array:
        return self._product(name, values) + self._t[f"{name}.bias"]

    def _norm(self, name: str, values: Array) -> Array:
        centred = values - values.mean(axis=-1, keepdims=True)
        scale = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
        result: Array = centred / scale * self._t[f"{name}.weight"] + self._t[f"{name}.bias"]
        return result

    def _mix(self, name: str, values: Array) -> Array:
        up = self._linear(f"{name}.up", self._norm(f"{name}.norm", values))
        return self._linear(f"{name}.down", up * 0.5 * (1 + erf(up / np.sqrt(2))))
