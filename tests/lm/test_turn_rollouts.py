"""Dialogues held turn by turn, beside those of one batch with a cache, and beside one dialogue at a time."""

import math
from typing import Any

import pytest
import torch

from leverlab.errors import LeverlabError
from leverlab.lm.chat import Chat
from leverlab.lm.rollouts import Limits, Rollout, _sample, roll_out
from leverlab.lm.turn_rollouts import Said, Say, generate_engine, roll_out_by_turns, vllm_engine
from tests.lm import tiny
from tests.lm.scripted import ask, final
from tests.lm.test_rollouts import SCRIPTS, questions, taught

LIMITS = Limits(turns=3, tokens=30)


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(tiny.tokenizer())


@pytest.fixture(scope="module")
def speaker(chat: Chat) -> Any:
    return taught(chat, SCRIPTS)


def slow_engine(model: Any, chat: Chat, limits: Limits) -> Say:
    """Each token from a forward pass over all that stands before, one dialogue at a time."""

    def say(prompts: list[list[int]]) -> list[Said]:
        found = []
        for prompt in prompts:
            tokens: list[int] = []
            logps: list[float] = []
            while len(tokens) < limits.tokens and tokens[-1:] != [chat.eos]:
                with torch.no_grad():
                    logp_V = torch.log_softmax(model(torch.tensor([prompt + tokens])).logits[0, -1], -1)
                tokens.append(int(logp_V.argmax()))
                logps.append(float(logp_V.max()))
            found.append((tokens, logps))
        return found

    return say


def same(found: list[Rollout], expected: list[Rollout]) -> None:
    assert [one.dialogue for one in found] == [one.dialogue for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert (one.prompt, one.completion, one.own) == (other.prompt, other.completion, other.own)
        assert one.logps == pytest.approx(other.logps, abs=1e-4)


def test_turn_by_turn_is_what_one_batch_says(chat: Chat, speaker: Any) -> None:
    """Of a model that asks, and of random ones, whatever they say and wherever it is cut."""
    expected = roll_out(speaker, chat, questions(), 2, LIMITS, 0.0)
    assert [one.dialogue.end for one in expected] == ["final", "final", "turns", "turns"]
    for engine in (generate_engine(speaker, chat, LIMITS, 0.0), slow_engine(speaker, chat, LIMITS)):
        same(roll_out_by_turns(engine, chat, questions(), 2, LIMITS), expected)
    short = Limits(turns=3, tokens=8)
    for seed in range(3):
        model = tiny.model(chat.tokenizer, seed)
        expected = roll_out(model, chat, questions(), 1, short, 0.0)
        for engine in (generate_engine(model, chat, short, 0.0), slow_engine(model, chat, short)):
            same(roll_out_by_turns(engine, chat, questions(), 1, short), expected)


def test_log_probabilities_of_generate_are_those_of_the_temperature(chat: Chat) -> None:
    """Of what was drawn at 0.7, computed anew; and draws differ, though the prompts of copies are the same."""
    torch.manual_seed(3)
    model, limits = tiny.model(chat.tokenizer), Limits(turns=2, tokens=10)
    found = roll_out_by_turns(generate_engine(model, chat, limits, 0.7), chat, questions(), 3, limits)
    for one in found:
        with torch.no_grad():
            logits = model(torch.tensor([one.prompt + one.completion])).logits[0, len(one.prompt) - 1 : -1]
        expected = torch.log_softmax(logits / 0.7, -1).gather(1, torch.tensor(one.completion)[:, None])[:, 0]
        assert one.logps == pytest.approx((expected * torch.tensor(one.own)).tolist(), abs=1e-4)
    assert len({tuple(one.completion) for one in found}) > 3


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    """Of 40,000 draws: shares within 4 standard errors, sqrt(p (1 - p) / N), and never what cannot be.

    Probabilities 0, .1, .6, 0, .3, 0 at temperature 1; squared and divided by their sum .46 at temperature .5. They are
    those of the second of two stems; the first can say but the fourth word.
    """
    p_V = torch.tensor([0.0, 0.1, 0.6, 0.0, 0.3, 0.0])
    logits_SV = torch.stack([torch.tensor([0.0, 0, 0, 1, 0, 0]), p_V]).log() + 3.0
    stems = [1] * 40_000 + [0] * 100
    for temperature, expected_V in ((1.0, p_V), (0.5, p_V**2 / 0.46)):
        tokens, logps = _sample(logits_SV, stems, temperature, torch.Generator().manual_seed(0))
        assert tokens[40_000:] == [3] * 100
        assert logps[40_000:] == [0.0] * 100
        tokens = tokens[:40_000]
        share_V = torch.bincount(torch.tensor(tokens), minlength=6) / 40_000
        assert bool(((share_V - expected_V).abs() <= 4 * (expected_V * (1 - expected_V) / 40_000).sqrt()).all())
        assert logps[:9] == pytest.approx([float(expected_V[token].log()) for token in tokens[:9]], abs=1e-5)


def scripted(answers: list[Said]) -> tuple[Say, list[list[list[int]]]]:
    """An engine that says one thing after another, to a single dialogue; and what it was given."""
    given: list[list[list[int]]] = []

    def say(prompts: list[list[int]]) -> list[Said]:
        given.append(prompts)
        return [answers[len(given) - 1]]

    return say, given


def said(ids: list[int], logp: float = -0.5) -> Said:
    return ids, [logp] * len(ids)


def test_an_engine_that_stops_early_or_late(chat: Chat) -> None:
    """The first turn comes in two parts, the second part with more tokens after the end of the turn than the reply has.

    By hand: the third prompt is question, first turn and reply; the policy's tokens are those of its two turns, each
    at -0.5, so the confidence is exp(-0.5).
    """
    asked, answered = chat.turn(ask("home")), chat.turn(final("Oslo"))
    late = [answered[0]] * 50
    say, given = scripted([said(asked[:2]), said(asked[2:] + late), said([*answered, 5, 6])])
    (found,) = roll_out_by_turns(say, chat, questions()[:1], 1, Limits(2, len(asked)))
    prompt, between = chat.prompt(questions()[0].text), chat.reply("Bo Oslo")
    assert given == [[prompt], [prompt + asked[:2]], [prompt + asked + between]]
    assert found.completion == asked + between + answered
    assert found.own == [True] * len(asked) + [False] * len(between) + [True] * len(answered)
    assert found.confidence == pytest.approx(math.exp(-0.5))
    assert [turn.ask for turn in found.dialogue.turns] == ["home", None]
    assert (found.dialogue.end, found.dialogue.final) == ("final", "Oslo")


def test_a_turn_is_cut_where_the_limit_is(chat: Chat) -> None:
    """Two tokens of three, then three that would be one too many."""
    ids = chat.turn(final("Oslo"))
    say, given = scripted([said(ids[:2]), said(ids[2:5])])
    (found,) = roll_out_by_turns(say, chat, questions()[:1], 1, Limits(2, 4))
    assert (found.completion, found.dialogue.end) == (ids[:4], "cut")
    assert len(given) == 2


def test_dialogues_that_have_ended_are_not_asked_again(chat: Chat) -> None:
    sizes = []

    def say(prompts: list[list[int]]) -> list[Said]:
        sizes.append(len(prompts))
        replied = [len(prompt) > len(chat.prompt(questions()[0].text)) + 3 for prompt in prompts]
        first = [chat.turn(ask("home")), chat.turn(final("Rome"))]
        return [said(chat.turn(final("Oslo")) if told else first[n]) for n, told in enumerate(replied)]

    found = roll_out_by_turns(say, chat, questions()[:1], 2, LIMITS)
    assert sizes == [2, 1]
    assert [one.dialogue.final for one in found] == ["Oslo", "Rome"]
    assert roll_out_by_turns(say, chat, [], 2, LIMITS) == []


def test_engines_that_fail(chat: Chat) -> None:
    for answer, message in ((said([]), "said nothing after"), (said([5], math.nan), r"question 'a' is nan")):
        with pytest.raises(LeverlabError, match=message):
            roll_out_by_turns(scripted([answer])[0], chat, questions()[:1], 1, LIMITS)


class FakeGeneration:
    """What `VLLMGeneration.generate` of TRL 1.16 takes and gives: for each token a list of log-probabilities."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def generate(self, **given: Any) -> tuple[Any, Any, Any, Any]:
        self.calls.append(given)
        return given["prompts"], [(7, 8), (9,)], [[[-0.1], [-0.2]], [[None]]], [[[7], [8]], [[9]]]


def test_vllm_is_called_as_trl_calls_it() -> None:
    generation = FakeGeneration()
    found = vllm_engine(generation)([[1, 2], [3]])
    assert generation.calls == [{"prompts": [[1, 2], [3]], "images": None, "num_generations": 1, "profiler": None}]
    assert found[0] == ([7, 8], [-0.1, -0.2])
    assert found[1][0] == [9]
    assert math.isnan(found[1][1][0])


def test_trl_has_the_interface_that_the_fake_has() -> None:
    import inspect

    from trl.generation.vllm_generation import VLLMGeneration

    assert list(inspect.signature(VLLMGeneration.generate).parameters) == [
        "self", "prompts", "images", "num_generations", "profiler"
    ]  # fmt: skip
