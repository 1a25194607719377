"""Parity of llama.cpp with transformers on turns: figures by hand, and sound and broken exports of a small model."""

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from leverlab.deploy.llama_cpp import Answer
from leverlab.deploy.parity import Parity, Reference, as_record
from leverlab.lm.llama import TextLlamaCpp
from leverlab.lm.llama_parity import parity, references, turn_prompts
from leverlab.lm.quantised import KINDS, Kind, export_kind
from leverlab.lm.rollouts import Rollout, roll_out
from tests.lm.exported import LIMITS, QUESTIONS, SCRIPTS, Taught, taught
from tests.lm.scripted import dialogue, final, question

VOCABULARY = 1000  # more than there are
LN2 = math.log(2)


# Figures by hand


class Fake:
    """Gives the answers that it was made with, one after the other."""

    def __init__(self, *answers: Answer):
        self.answers = list(answers)
        self.asked: list[tuple[list[int], int, int]] = []

    def complete(self, prompt: list[int], max_tokens: int, likeliest: int = 1) -> Answer:
        self.asked.append((prompt, max_tokens, likeliest))
        return self.answers.pop(0)


def reference(ids: Sequence[int], *rows: Sequence[float], prompt_tokens: int = 2) -> Reference:
    return Reference(prompt_tokens, tuple(ids), np.log(np.array(rows, dtype=np.float64)))


def said(ids: Sequence[int], *rows: Sequence[float], prompt_tokens: int = 2) -> Answer:
    top = tuple({token: math.log(share) for token, share in enumerate(row)} for row in rows)
    return Answer("", prompt_tokens, tuple(ids), top, 0.0, 0.0, 0.0)


def compared(*pairs: tuple[Reference, Answer]) -> Parity:
    """Over turns that token 1 ends."""
    runtime: Any = Fake(*(answer for _, answer in pairs))
    return parity(runtime, 1, [[7, 8]] * len(pairs), [expected for expected, _ in pairs], 2, 5)


def test_figures_by_hand() -> None:
    """Turns of tokens 0 and 1. In the second place 1/4 and 1/2 are exchanged: both are off by ln 2, the rest by 0.

    KL there is 1/2 ln 2 - 1/4 ln 2 = ln 2 / 4, and 0 in the three other places: ln 2 / 16 is the mean of four. The
    first turn differs from its second token on. transformers prefers its tokens there by ln 2 = 0.69 nats, but the
    first one of the second turn by ln(51 / 49) = 0.04 only: one turn is decided, and it is not the same.
    """
    first, second, close = [0.6, 0.3, 0.1], [0.25, 0.5, 0.25], [0.51, 0.49]
    runtime: Any = Fake(said([0, 0], first, [0.5, 0.25, 0.25]), said([0, 1], close, [0.1, 0.9]))
    expected = [reference([0, 1], first, second), reference([0, 1], close, [0.1, 0.9])]
    found = parity(runtime, 1, [[7, 8], [7, 9]], expected, 2, 5)
    assert vars(found) == pytest.approx(
        {
            "prompts": 2,
            "decided": 1,
            "places": 4,
            "equal_tokens": 1.0,
            "finite": True,
            "max_delta": LN2,
            "max_delta_any": LN2,
            "mean_kl": LN2 / 16,
            "greedy": 0.5,
            "greedy_decided": 0.0,
        },
        abs=1e-12,
    )
    assert runtime.asked == [([7, 8], 2, 5), ([7, 9], 2, 5)]


def test_unlikely_tokens_count_only_in_the_difference_of_any() -> None:
    """1e-6 against 1e-5: ln 10, of a token that neither gives 1e-4."""
    found = compared((reference([1], [1e-6, 1 - 1e-6]), said([1], [1e-5, 1 - 1e-5])))
    assert found.max_delta == pytest.approx(0, abs=1e-4)
    assert found.max_delta_any == pytest.approx(math.log(10))


def test_prompts_of_another_length_make_no_figure() -> None:
    row = [0.25, 0.75]
    found = compared(
        (reference([1], row), said([1], row)), (reference([1], row, prompt_tokens=3), said([1], row, prompt_tokens=2))
    )
    assert found.equal_tokens == 0.5
    assert as_record(found)["max_delta"] is None
    assert as_record(found)["greedy"] is None


def test_prompts_stand_before_turns() -> None:
    """Of 10 11 | 1 2 3 (said) | 4 5 (told) | 6 7 (said): two turns. The second dialogue has one."""
    talk = dialogue(question(), [final("Oslo")])
    rollouts = [
        Rollout(talk, [10, 11], [1, 2, 3, 4, 5, 6, 7], [True] * 3 + [False] * 2 + [True] * 2, [-1.0] * 7),
        Rollout(talk, [12], [1], [True], [-1.0]),
    ]
    assert turn_prompts(rollouts) == [[10, 11], [10, 11, 1, 2, 3, 4, 5], [12]]


# A model that was taught some dialogues


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Taught:
    """It is sure of them, and gives other tokens a probability, too."""
    return taught(tmp_path_factory.mktemp("taught"), smoothing=0.2)


@pytest.fixture(scope="module")
def prompts(policy: Taught) -> list[list[int]]:
    return turn_prompts(roll_out(policy.model, policy.chat, QUESTIONS, 1, LIMITS, 0.0))


@pytest.fixture(scope="module")
def expected(policy: Taught, prompts: list[list[int]]) -> list[Reference]:
    return references(policy.model, policy.chat.eos, prompts, LIMITS.tokens)


Measure = Callable[[Path, Kind], Parity]


@pytest.fixture(scope="module")
def measure(
    policy: Taught,
    prompts: list[list[int]],
    expected: list[Reference],
    tmp_path_factory: pytest.TempPathFactory,
) -> Measure:
    """Export a checkpoint folder and compare it with the sound one: `measure(folder, kind)`."""

    def run(folder: Path, kind: Kind) -> Parity:
        out = tmp_path_factory.mktemp("export") / "text.gguf"
        export_kind(folder, out, kind)
        with TextLlamaCpp(out, context=256, exact_cache=True) as runtime:
            return parity(runtime, policy.chat.eos, prompts, expected, LIMITS.tokens, VOCABULARY)

    return run


@pytest.fixture(scope="module")
def sound(policy: Taught, measure: Measure) -> dict[Kind, Parity]:
    return {kind: measure(policy.folder, kind) for kind in KINDS}


def test_prompts_of_a_script(policy: Taught, prompts: list[list[int]]) -> None:
    chat, start = policy.chat, policy.chat.prompt(QUESTIONS[0].text)
    assert prompts[0] == start
    assert prompts[1] == [*start, *chat.turn(SCRIPTS["home"][0]), *chat.reply("Bo Oslo")]
    assert len(prompts) == sum(map(len, SCRIPTS.values()))


def test_greedy_turns_hang_on_no_last_bit(expected: list[Reference]) -> None:
    """Every token is preferred by more than 1 nat: CPUs that round in other ways say the same words."""
    for found in expected:
        best = np.sort(found.log_probs_TV, axis=1)[:, -2:]
        assert (best[:, 1] - best[:, 0]).min() > 1


def test_references_are_those_of_one_pass_over_the_turn(
    policy: Taught, prompts: list[list[int]], expected: list[Reference]
) -> None:
    """Greedy tokens and all log-probabilities, prompt and turn read at once, without the cache of `generate`."""
    for prompt, found in zip(prompts, expected, strict=True):
        assert found.prompt_tokens == len(prompt)
        assert (found.ids[-1] == policy.chat.eos) != (len(found.ids) == LIMITS.tokens)
        with torch.no_grad():
            logits = policy.model(torch.tensor([[*prompt, *found.ids]])).logits[0, len(prompt) - 1 : -1].double()
        assert logits.argmax(-1).tolist() == list(found.ids)
        np.testing.assert_allclose(found.log_probs_TV, logits.log_softmax(-1).numpy(), atol=1e-4)


def test_a_sound_export_is_near(sound: dict[Kind, Parity], prompts: list[list[int]]) -> None:
    for parity_of_kind in sound.values():
        assert (parity_of_kind.prompts, parity_of_kind.equal_tokens, parity_of_kind.finite) == (len(prompts), 1.0, True)
    assert sound["f16"].max_delta < 0.01
    assert sound["f16"].max_delta_any < 0.05
    assert sound["f16"].greedy == sound["f16"].greedy_decided == 1.0
    assert sound["f16"].decided >= 5  # or a share of them would say little


def test_fewer_bits_are_further_away(sound: dict[Kind, Parity]) -> None:
    """The measure is graded. Blocks of weights have both signs, so that a least value of their own helps little."""
    for kinds in (("f16", "q8_0", "q5_0", "q4_0"), ("q8_0", "q5_1", "q4_1")):
        divergences = [sound[kind].mean_kl for kind in kinds]
        assert divergences == sorted(divergences)
    assert sound["f16"].mean_kl < sound["q8_0"].mean_kl / 10


def test_the_cache_is_exact_where_it_is_asked_for(
    policy: Taught, prompts: list[list[int]], expected: list[Reference], sound: dict[Kind, Parity], tmp_path: Path
) -> None:
    """The same run again gives the same figures, and keys and values in half precision give others, just as near."""

    def run(exact_cache: bool) -> Parity:
        with TextLlamaCpp(policy.export("f16", tmp_path), context=256, exact_cache=exact_cache) as runtime:
            return parity(runtime, policy.chat.eos, prompts, expected, LIMITS.tokens, VOCABULARY)

    assert run(exact_cache=True) == sound["f16"]
    half = run(exact_cache=False)
    assert half.mean_kl != sound["f16"].mean_kl
    assert half.max_delta < 0.01


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("layers.1.mlp.gate_proj.weight", "layers.1.mlp.up_proj.weight"),
        ("layers.2.self_attn.q_norm.weight", "layers.2.self_attn.k_norm.weight"),
        ("layers.3.self_attn.k_proj.weight", "layers.3.self_attn.v_proj.weight"),
        ("layers.1.input_layernorm.weight", "layers.2.post_attention_layernorm.weight"),
    ],
)
def test_a_broken_export_is_far_away(
    policy: Taught, measure: Measure, sound: dict[Kind, Parity], tmp_path: Path, first: str, second: str
) -> None:
    """Two tensors of one shape change places. Everything else looks well: as many tokens, all of them numbers, and with
    two norms exchanged even the same greedy turns."""
    shutil.copytree(policy.folder, tmp_path / "broken")
    path = tmp_path / "broken/model.safetensors"
    tensors = load_file(path)
    left, right = f"model.{first}", f"model.{second}"
    tensors[left], tensors[right] = tensors[right], tensors[left]
    save_file(tensors, path, metadata={"format": "pt"})
    found = measure(tmp_path / "broken", "f16")
    assert (found.equal_tokens, found.finite) == (1.0, True)
    assert found.max_delta > 5 * sound["f16"].max_delta
    assert found.mean_kl > 10 * sound["f16"].mean_kl
    assert not first.endswith("norm.weight") or found.greedy == 1.0
