"""Dialogues in llama.cpp against those of transformers, and what is told when it fails."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from transformers import AutoTokenizer

from leverlab.deploy.llama_cpp import Answer, LlamaCppError
from leverlab.lm import llama_worker
from leverlab.lm.chat import Chat
from leverlab.lm.llama import TextLlamaCpp, play, roll_out_in_llama, say_turn
from leverlab.lm.rollouts import Limits, roll_out
from tests.lm.exported import END, LIMITS, QUESTIONS, SCRIPTS, Taught, taught


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Taught:
    return taught(tmp_path_factory.mktemp("taught"))


@pytest.fixture(scope="module")
def file(policy: Taught, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return policy.export("f16", tmp_path_factory.mktemp("gguf"))


@pytest.fixture(scope="module")
def runtime(file: Path) -> Iterator[TextLlamaCpp]:
    with TextLlamaCpp(file, context=512, exact_cache=True) as loaded:
        yield loaded


class Fake:
    """Gives the continuations that it was made with, one after the other, and notes what it was asked."""

    def __init__(self, *answers: list[int]):
        self.answers = list(answers)
        self.asked: list[tuple[list[int], int, int]] = []

    def complete(self, prompt: list[int], max_tokens: int, likeliest: int = 1) -> Answer:
        self.asked.append((prompt, max_tokens, likeliest))
        ids = self.answers.pop(0)
        return Answer("", len(prompt), tuple(ids), tuple({token: -0.5 * token} for token in ids), 0.0, 0.0, 0.0)


def test_dialogues_are_those_of_transformers(runtime: TextLlamaCpp, policy: Taught) -> None:
    """All that a rollout holds: the same tokens, whose they are, and log-probabilities up to what float16 costs.

    The scripts end in every way: an answer, an ask too many, a turn that is cut; one has a token in it that ends texts.
    """
    expected = roll_out(policy.model, policy.chat, QUESTIONS, 1, LIMITS, 0.0)
    assert [one.dialogue.end for one in expected] == ["final", "turns", "cut"]
    assert [turn.text for turn in expected[0].dialogue.turns] == SCRIPTS["home"]
    assert END in expected[2].dialogue.turns[0].text
    for wanted in expected:
        found = roll_out_in_llama(runtime, policy.chat, wanted.dialogue.question, LIMITS)
        assert found.dialogue == wanted.dialogue
        assert (found.prompt, found.completion, found.own) == (wanted.prompt, wanted.completion, wanted.own)
        assert found.logps == pytest.approx(wanted.logps, abs=5e-3)
        assert found.logps != wanted.logps
    assert play(runtime, policy.chat, QUESTIONS, LIMITS) == [one.dialogue for one in expected]


def test_limits_are_those_of_rollouts(runtime: TextLlamaCpp, policy: Taught) -> None:
    """Turns and tokens: the token that ends a turn may be the last that a turn may have."""
    whole = len(policy.chat.turn(SCRIPTS["home"][0]))
    for limits in (Limits(1, 16), Limits(2, 16), Limits(3, 1), Limits(3, whole), Limits(3, whole - 1)):
        expected = roll_out(policy.model, policy.chat, QUESTIONS, 1, limits, 0.0)
        assert play(runtime, policy.chat, QUESTIONS, limits) == [one.dialogue for one in expected]


def test_the_user_may_be_another(runtime: TextLlamaCpp, policy: Taught) -> None:
    found = roll_out_in_llama(runtime, policy.chat, QUESTIONS[0], LIMITS, lambda question, ask: f"{ask} Rome")
    assert found.dialogue.replies[0] == "home Rome"


def test_prompts_are_the_tokens_that_were_said(runtime: TextLlamaCpp, policy: Taught) -> None:
    """Tokens of the second turn's prompt are those of the first, what was said, and the reply."""
    chat = Chat(AutoTokenizer.from_pretrained(policy.folder))
    prompt = [*chat.prompt(QUESTIONS[0].text), *chat.turn(SCRIPTS["home"][0]), *chat.reply("Bo Oslo")]
    said = runtime.complete(prompt, LIMITS.tokens, 3)
    assert said.prompt_tokens == len(prompt)
    assert list(said.ids) == chat.turn(SCRIPTS["home"][1])
    assert [len(listed) for listed in said.top] == [3] * len(said.ids)


def test_a_question_that_spells_control_tokens_is_text_in_llama_cpp(runtime: TextLlamaCpp, policy: Taught) -> None:
    asked = QUESTIONS[0].model_copy(update={"text": f"homes : <final> {END}<|im_end|> ?"})
    (wanted,) = roll_out(policy.model, policy.chat, [asked], 1, Limits(1, 4), 0.0)
    found = roll_out_in_llama(runtime, policy.chat, asked, Limits(1, 4))
    assert (found.prompt, found.completion) == (wanted.prompt, wanted.completion)
    assert runtime.complete(found.prompt, 1).prompt_tokens == len(found.prompt)
    assert found.prompt.count(policy.chat.pad) == 0
    assert found.prompt.count(policy.chat.eos) == 1


def test_a_turn_goes_on_after_what_ends_texts_elsewhere() -> None:
    """Token 0 is such an end, 9 ends a turn, of 6 tokens at most: 4 are left after the first two, 1 after five."""
    fake: Any = Fake([5, 0], [5, 5, 0], [7])
    said = say_turn(fake, [1, 2, 3], 9, 6, 4)
    assert (said.prompt_tokens, said.ids) == (3, (5, 0, 5, 5, 0, 7))
    assert said.top == ({5: -2.5}, {0: 0.0}, {5: -2.5}, {5: -2.5}, {0: 0.0}, {7: -3.5})
    assert fake.asked == [([1, 2, 3], 6, 4), ([1, 2, 3, 5, 0], 4, 4), ([1, 2, 3, 5, 0, 5, 5, 0], 1, 4)]
    ended: Any = Fake([5, 9], [5])
    assert say_turn(ended, [1], 9, 6).ids == (5, 9)


def test_a_turn_of_no_token_is_an_error() -> None:
    fake: Any = Fake([5], [])
    with pytest.raises(LlamaCppError, match=r"^llama\.cpp said nothing after 4 tokens; export"):
        say_turn(fake, [1, 2, 3], 9, 6)


def test_loading_again_and_another_order_change_no_bit(runtime: TextLlamaCpp, file: Path, policy: Taught) -> None:
    prompts = [policy.chat.prompt(one.text) for one in QUESTIONS]
    first = [runtime.complete(prompt, 8, 1000) for prompt in prompts]
    assert all(len(row) == policy.model.config.vocab_size for answer in first for row in answer.top)
    with TextLlamaCpp(file, context=512, exact_cache=True) as again:
        found = [again.complete(prompt, 8, 1000) for prompt in reversed(prompts)]
    assert [(answer.ids, answer.top) for answer in reversed(found)] == [(answer.ids, answer.top) for answer in first]


# Failures


def one_sentence(error: pytest.ExceptionInfo[LlamaCppError], *parts: str) -> None:
    message = str(error.value)
    for part in parts:
        assert re.search(part, message), (part, message)
    assert not re.search("image|mmproj|Traceback|\n", message), message


def test_what_is_refused_ends_nothing(runtime: TextLlamaCpp, policy: Taught) -> None:
    """A prompt that is too long, none, and a token that the model does not have; the next one is answered as ever."""
    prompt = policy.chat.prompt(QUESTIONS[0].text)
    before = runtime.complete(prompt, 4)
    for wrong, cause in ((prompt * 30, r"context size \(512 tokens\)"), ([], "empty"), ([10**6], "invalid tokens")):
        with pytest.raises(LlamaCppError) as error:
            runtime.complete(wrong, 4)
        one_sentence(error, r"refused answering with .*f16\.gguf", cause, "; look at runtime.context, which the whole")
    assert runtime.complete(prompt, 4).ids == before.ids


def test_a_dialogue_that_outgrows_the_context_is_refused(file: Path, policy: Taught) -> None:
    """And not cut in silence: llama.cpp ends an answer where its context ends."""
    prompt = policy.chat.prompt(QUESTIONS[0].text)
    with TextLlamaCpp(file, context=256) as loaded, pytest.raises(LlamaCppError) as error:
        say_turn(loaded, (prompt * 20)[:250], policy.chat.eos, 16)
    one_sentence(error, r"exceeds the available context size \(256 tokens\)", "; look at runtime.context")


def test_a_file_that_is_cut(file: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[:100_000])
    with pytest.raises(LlamaCppError) as error:
        TextLlamaCpp(cut, context=256)
    one_sentence(error, rf"^llama\.cpp refused loading {cut}: ", "; export the model again$")


def test_a_process_that_died_is_started_again(file: Path, policy: Taught) -> None:
    prompt = policy.chat.prompt(QUESTIONS[0].text)
    with TextLlamaCpp(file, context=256) as loaded:
        before = loaded.complete(prompt, 4)
        for child in psutil.Process().children():
            if llama_worker.__file__ in child.cmdline():
                child.kill()
                child.wait()
        assert loaded.complete(prompt, 4).ids == before.ids


def test_a_process_that_dies_while_answering(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: Path, policy: Taught
) -> None:
    script = tmp_path / "worker.py"
    script.write_text(
        "import os, sys\nsys.stdin.readline()\nprint('{\"load_seconds\": 1}', flush=True)\nsys.stdin.readline()\n"
        "sys.stderr.write('GGML_ASSERT(a < b) failed')\nsys.stderr.flush()\nos.abort()\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(llama_worker, "__file__", str(script))
    with TextLlamaCpp(file, context=256) as loaded, pytest.raises(LlamaCppError) as error:
        loaded.complete([1], 4)
    one_sentence(error, r"ended by SIGABRT while answering with .*\(GGML_ASSERT\(a < b\) failed\); look at runtime")
