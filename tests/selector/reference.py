"""All variants of the selector, and a slow reference: the formulas, a candidate and a number at a time."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from leverlab.selector.architecture import Architecture
from leverlab.selector.network import FEATURES, Selector

PLAIN = Architecture(16, "gru", "dot", False, False)
STATES, HEADS = ("gru", "gated", "static"), ("dot", "bilinear", "additive")
VARIANTS = [Architecture(16, *parts, False) for parts in itertools.product(STATES, HEADS, (False, True))]
STOPPING = [replace(kind, stop=True) for kind in (VARIANTS[0], VARIANTS[9], VARIANTS[-1])]
each_variant = pytest.mark.parametrize("architecture", VARIANTS, ids=str)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


class SlowSelector:
    """The policy for one query."""

    def __init__(self, selector: Selector):
        self.t = {name: tensor.detach().double().numpy() for name, tensor in selector.state_dict().items()}
        self.kind, self.width = selector.architecture, selector.architecture.width

    def product(self, name: str, values: np.ndarray, weight: str = "weight") -> np.ndarray:
        return np.array([math.fsum(row * values) for row in self.t[f"{name}.{weight}"]])

    def linear(self, name: str, values: np.ndarray, weight: str = "weight", bias: str = "bias") -> np.ndarray:
        return self.product(name, values, weight) + self.t[f"{name}.{bias}"]

    def project(self, name: str, values: np.ndarray) -> np.ndarray:
        return self.linear(name, (values - self.t[f"{name}_mean"]) / self.t[f"{name}_scale"])

    def norm(self, name: str, values: np.ndarray) -> np.ndarray:
        mean = sum(values) / len(values)
        variance = sum((values - mean) ** 2) / len(values)
        return (values - mean) / math.sqrt(variance + 1e-5) * self.t[f"{name}.weight"] + self.t[f"{name}.bias"]

    def mix(self, name: str, values: np.ndarray) -> np.ndarray:
        up = self.linear(f"{name}.1", self.norm(f"{name}.0", values))
        return self.linear(f"{name}.3", np.array([x * (1 + math.erf(x / math.sqrt(2))) / 2 for x in up]))

    def gru(self, z: np.ndarray, h: np.ndarray) -> np.ndarray:
        from_input = self.linear("update", z, "weight_ih", "bias_ih")
        from_state = self.linear("update", h, "weight_hh", "bias_hh")
        result = []
        for w in range(self.width):
            reset, update = (sigmoid(from_input[w + shift] + from_state[w + shift]) for shift in (0, self.width))
            new = math.tanh(from_input[w + 2 * self.width] + reset * from_state[w + 2 * self.width])
            result.append((1 - update) * new + update * h[w])
        return np.array(result)

    def gated(self, z: np.ndarray, h: np.ndarray) -> np.ndarray:
        gate = self.linear("update.gate", np.array([*h, *z]))
        new = self.linear("update.new", z)
        return np.array([sigmoid(gate[w]) * h[w] + sigmoid(-gate[w]) * math.tanh(new[w]) for w in range(self.width)])

    def static(self, z: np.ndarray, h: np.ndarray) -> np.ndarray:
        return h

    def dot(self, normed: np.ndarray, z: np.ndarray) -> float:
        return math.fsum(self.linear("read", normed) * self.linear("key", z)) / math.sqrt(self.width)

    def bilinear(self, normed: np.ndarray, z: np.ndarray) -> float:
        weight = self.t["key.weight"]
        pairs = itertools.product(range(self.width), repeat=2)
        return math.fsum(normed[i] * weight[i, j] * z[j] for i, j in pairs) / math.sqrt(self.width)

    def additive(self, normed: np.ndarray, z: np.ndarray) -> float:
        sums = self.product("read", normed) + self.product("key", z)
        return math.fsum(v * math.tanh(x) for v, x in zip(self.t["score.energy.weight"][0], sums, strict=True))

    def penalty(self, z: np.ndarray, picked: list[np.ndarray]) -> float:
        """lambda times the largest cosine of `z` to a vector of `picked`."""
        if not self.kind.mmr or not picked:
            return 0.0
        cosines = [math.fsum(z * y) / math.sqrt(math.fsum(z * z) * math.fsum(y * y)) for y in picked]
        return math.log(1 + math.exp(self.t["mmr.weight"][0])) * max(cosines)

    def barred(self, k: int, picked: list[int], stop: int) -> bool:
        """STOP, candidate `stop`, comes after one demo at least, and nothing else comes after it."""
        if not self.kind.stop:
            return k in picked
        return k != stop if stop in picked else k in picked if k != stop else not picked

    def logits(self, query: list[np.ndarray], demos: list[list[np.ndarray]], picks: list[int]) -> list[list[float]]:
        """Logits of every candidate before each pick; `demos[k]` holds image, question and answer of candidate k."""
        v, q = self.project("image", query[0]), self.project("question", query[1])
        gate = np.array([2 * sigmoid(x) for x in self.linear("gate", q)])
        h = v * gate + q + self.mix("mix_query", np.concatenate([v, q]))
        parts = [[self.project(name, part) for name, part in zip(FEATURES, demo, strict=True)] for demo in demos]
        z = [sum(part) + self.mix("mix_demo", np.concatenate(part)) for part in parts]
        if self.kind.stop:
            z.append(self.t["stop"])
        score, update = getattr(self, self.kind.head), getattr(self, self.kind.state)
        steps = []
        for t, pick in enumerate(picks):
            picked = picks[:t]
            steps.append(
                [
                    -math.inf
                    if self.barred(k, picked, len(demos))
                    else score(self.norm("norm", h), vector) - self.penalty(vector, [z[j] for j in picked])
                    for k, vector in enumerate(z)
                ]
            )
            h = update(z[pick], h)
        return steps
