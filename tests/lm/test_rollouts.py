"""Rollouts of a batch against one dialogue at a time, without a cache."""

import copy
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3NextConfig

from leverlab.errors import LeverlabError
from leverlab.lm.chat import Chat
from leverlab.lm.dialogues import reply
from leverlab.lm.questions import Question
from leverlab.lm.rollouts import Limits, Rollout, _placed, roll_out
from leverlab.lm.turns import parse_turn
from tests.lm import tiny
from tests.lm.scripted import ask, final, question

LIMITS = Limits(turns=3, tokens=12)
HOT = 1.6  # a temperature at which what was learnt by heart is said in many ways


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(tiny.tokenizer())


def questions() -> list[Question]:
    return [question(id="a"), question(id="b", text="where does the friend of Ana Lima live ?", slot="friend")]


def alone(model: Any, chat: Chat, asked: Question, limits: Limits) -> tuple[list[int], list[bool], list[float]]:
    """The greedy dialogue, every token from a forward pass over all that stands before."""
    ids, start = chat.prompt(asked.text), len(chat.prompt(asked.text))
    own: list[bool] = []
    logps: list[float] = []
    for turn in range(limits.turns):
        said: list[int] = []
        while len(said) < limits.tokens and (not said or said[-1] != chat.eos):
            with torch.no_grad():
                logp = torch.log_softmax(model(torch.tensor([ids])).logits[0, -1], -1)
            said.append(int(logp.argmax()))
            ids.append(said[-1])
            own.append(True)
            logps.append(float(logp.max()))
        parsed = parse_turn(chat.text(said[:-1])) if said[-1] == chat.eos else None
        if parsed is None or parsed.ask is None or turn == limits.turns - 1:
            break
        answer = chat.reply(reply(asked, parsed.ask))
        ids += answer
        own += [False] * len(answer)
        logps += [0.0] * len(answer)
    return ids[start:], own, logps


def taught(chat: Chat, scripts: dict[str, list[str]]) -> Any:
    """A model that says the turns of each script by heart."""
    model = tiny.model(chat.tokenizer).train()
    texts = []
    for text, turns in scripts.items():
        ids = chat.prompt(text)
        for n, turn in enumerate(turns):
            ids = ids + chat.turn(turn)
            parsed = parse_turn(turn)
            if n < len(turns) - 1:
                (asked,) = [one for one in questions() if one.text == text]
                ids = ids + chat.reply(reply(asked, parsed.ask or ""))
        texts.append(ids)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(120):
        loss = sum(model(torch.tensor([ids]), labels=torch.tensor([ids])).loss for ids in texts)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        optimiser.step()
    return model.eval()


SCRIPTS = {
    questions()[0].text: [ask("home"), final("Oslo")],
    questions()[1].text: [ask("friend"), ask("weather"), ask("home")],
}


@pytest.fixture(scope="module")
def speaker(chat: Chat) -> Any:
    return taught(chat, SCRIPTS)


def test_a_batch_says_what_each_dialogue_says_alone(chat: Chat, speaker: Any) -> None:
    limits = Limits(turns=3, tokens=30)
    found = roll_out(speaker, chat, questions(), 2, limits, temperature=0.0)
    assert [one.dialogue.question.id for one in found] == ["a", "a", "b", "b"]
    assert [turn.text for turn in found[0].dialogue.turns] == SCRIPTS[questions()[0].text]
    assert [turn.text for turn in found[2].dialogue.turns] == SCRIPTS[questions()[1].text]
    assert (found[0].dialogue.end, found[2].dialogue.end) == ("final", "turns")
    for one in found:
        completion, own, logps = alone(speaker, chat, one.dialogue.question, limits)
        assert (one.completion, one.own) == (completion, own)
        assert one.logps == pytest.approx(logps, abs=1e-4)


def test_random_models_say_the_same_alone(chat: Chat) -> None:
    """Whatever they say, and wherever it is cut."""
    for seed in range(3):
        model = tiny.model(chat.tokenizer, seed)
        for one in roll_out(model, chat, questions(), 1, LIMITS, temperature=0.0):
            assert (one.completion, one.own) == alone(model, chat, one.dialogue.question, LIMITS)[:2]


def test_log_probabilities_are_those_of_the_temperature(chat: Chat) -> None:
    model = tiny.model(chat.tokenizer)
    generator = torch.Generator().manual_seed(3)
    for one in roll_out(model, chat, questions(), 3, LIMITS, temperature=0.7, generator=generator):
        with torch.no_grad():
            logits = model(torch.tensor([one.prompt + one.completion])).logits[0, len(one.prompt) - 1 : -1]
        expected = torch.log_softmax(logits / 0.7, -1).gather(1, torch.tensor(one.completion)[:, None])[:, 0]
        assert one.logps == pytest.approx((expected * torch.tensor(one.own)).tolist(), abs=1e-4)


def test_a_seed_gives_the_same_dialogues_again(chat: Chat) -> None:
    model = tiny.model(chat.tokenizer)

    def run(seed: int) -> list[Rollout]:
        return roll_out(model, chat, questions(), 4, LIMITS, 1.0, torch.Generator().manual_seed(seed))

    assert run(0) == run(0)
    assert run(0) != run(1)
    assert len({tuple(one.completion) for one in run(0)}) > 4


def counting(model: Any) -> list[int]:
    """The numbers of tokens that the model's passes will read, padding included."""
    read: list[int] = []
    model.register_forward_pre_hook(lambda _, __, given: read.append(given["input_ids"].numel()), with_kwargs=True)
    return read


def test_what_copies_have_in_common_is_read_once(chat: Chat, speaker: Any) -> None:
    """Greedy copies stay one; of drawn ones each pass reads one token of every beginning that no other shares."""
    read = counting(copied := copy.deepcopy(speaker))
    for copies in (1, 5):
        roll_out(copied, chat, questions(), copies, LIMITS, 0.0)
    half = len(read) // 2
    assert read[:half] == read[half:]
    read.clear()
    found = roll_out(copied, chat, questions(), 8, LIMITS, HOT, torch.Generator().manual_seed(0))
    beginnings = [
        {(one.dialogue.question.id, *one.completion[: n + 1]) for one in found if len(one.completion) > n + 1}
        for n in range(max(len(one.completion) for one in found) - 1)
    ]
    assert max(map(len, beginnings)) > 2
    assert sum(map(len, beginnings)) < sum(len(one.completion) for one in found) / 2
    # the last token of a dialogue is not read; the user's last words are, when the policy has its turn after them
    assert read[1:] == [len(those) for those in beginnings]


def test_copies_that_part_say_what_they_say_apart(chat: Chat, speaker: Any) -> None:
    """Hot enough that some end while others go on, so that rows of the cache come and go: as each is read at once."""
    for seed in range(3):
        found = roll_out(speaker, chat, questions(), 12, LIMITS, HOT, torch.Generator().manual_seed(seed))
        assert len({len(one.completion) for one in found}) > 2
        for one in found:
            with torch.no_grad():
                logits = speaker(torch.tensor([one.prompt + one.completion])).logits[0, len(one.prompt) - 1 : -1]
            expected = torch.log_softmax(logits / HOT, -1).gather(1, torch.tensor(one.completion)[:, None])[:, 0]
            assert one.logps == pytest.approx((expected * torch.tensor(one.own)).tolist(), abs=1e-4)


def test_a_cache_with_recurrent_states(chat: Chat) -> None:
    """Layers with linear attention keep states instead of keys and values; copies that part take theirs along."""
    sizes = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8}
    experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
    config = Qwen3NextConfig(
        vocab_size=len(chat.tokenizer),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        linear_value_head_dim=8,
        shared_expert_intermediate_size=16,
        **sizes,
        **experts,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    found = roll_out(model, chat, questions(), 6, LIMITS, 1.0, torch.Generator().manual_seed(0))
    assert len({tuple(one.completion) for one in found}) > 6
    for one in found:
        with torch.no_grad():
            logits = model(torch.tensor([one.prompt + one.completion])).logits[0, len(one.prompt) - 1 : -1]
        expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(one.completion)[:, None])[:, 0]
        assert one.logps == pytest.approx((expected * torch.tensor(one.own)).tolist(), abs=1e-4)


def test_stems_keep_their_places() -> None:
    """By hand: stem 0 parts in three, 1 has ended, 2 goes on, 3 has ended; then fewer than there were."""
    assert _placed([(0, 5), (0, 6), (2, 7), (0, 8)]) == [(0, 5), (0, 6), (2, 7), (0, 8)]
    assert _placed([(3, 5), (2, 6), (2, 7)]) == [(3, 5), (2, 7), (2, 6)]
    assert _placed([(4, 5), (0, 6)]) == [(0, 6), (4, 5)]


def test_a_user_that_says_something_else_each_time(chat: Chat, speaker: Any) -> None:
    """Copies that ask the same part where they hear different replies."""
    words = iter(["Oslo", "Rome", "Oslo", "Rome"])
    found = roll_out(
        speaker, chat, questions()[:1], 4, Limits(2, 30), 0.0, user=lambda asked, slot: f"It is {next(words)}."
    )
    assert [one.dialogue.replies for one in found] == [("It is Oslo.",), ("It is Rome.",)] * 2
    assert found[0].completion == found[2].completion != found[1].completion


def test_a_broken_policy_is_one_sentence(chat: Chat) -> None:
    model = tiny.model(chat.tokenizer)
    with torch.no_grad():
        model.model.embed_tokens.weight[0, 0] = float("nan")
    with pytest.raises(LeverlabError, match="no numbers"):
        roll_out(model, chat, questions(), 1, LIMITS, 1.0)


def test_templates_that_cannot_be_cut() -> None:
    for template, message in (
        (None, "no chat template"),
        ("{{ messages[0]['content'] }}", "does not show every message once"),
        ("{% for m in messages %}{{ m['content'] }}</s>{% endfor %}", "ends a turn with '</s>"),
    ):
        with pytest.raises(LeverlabError, match=message):
            Chat(tiny.tokenizer(template))


def test_a_template_that_takes_thoughts_out_or_opens_them() -> None:
    """Only what stands between two turns is asked for; that a think tag stands there already is seen."""
    opening = tiny.TEMPLATE.replace("assistant\n'", "assistant\n<think>\n'")
    thinking = Chat(tiny.tokenizer(opening))
    assert thinking.opened
    ids = thinking.turn("<think>a</think><final>b</final>")
    assert ids == thinking.turn("a</think><final>b</final>")
    assert parse_turn(thinking.text(ids[:-1])).thought
    assert parse_turn(thinking.text(ids[:-1])).final == "b"
    plain = Chat(tiny.tokenizer())
    assert not plain.opened
    ids = [*plain.prompt("a"), *plain.turn(final("b")), *plain.reply("c")]
    whole = plain.tokenizer.apply_chat_template(
        [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": final("b")},
            {"role": "user", "content": "c"},
        ],
        add_generation_prompt=True,
        tokenize=False,
    )
    assert plain.tokenizer.decode(ids) == whole
