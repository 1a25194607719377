"""Training from random weights: batches in parts, echoes against a slow loop, kills; and the reading test."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from leverlab.errors import LeverlabError
from leverlab.lm.chat import Chat
from leverlab.lm.pretraining import EchoHeads, collate, fit, learning_rate_factor, step_gradient
from leverlab.lm.reading import read_shares, without_acts
from leverlab.lm.tokens import Tokens, dialogue_tokens
from tests.lm import tiny
from tests.lm.scripted import ask, final, question

CHAT = Chat(tiny.tokenizer())
ROWS: list[Tokens] = [([5, 6, 7, 8], [False, True, True, True]), ([9, 5, 6], [False, False, True])] * 9


def test_collate() -> None:
    ids, labels = collate(ROWS[:2], pad=0)
    assert ids.tolist() == [[5, 6, 7, 8], [9, 5, 6, 0]]
    assert labels.tolist() == [[-100, 6, 7, 8], [-100, -100, 6, -100]]


def gradient(model: Any, rows: list[Tokens], echo: float) -> tuple[dict[str, float], list[torch.Tensor]]:
    torch.manual_seed(0)
    heads = EchoHeads(32, len(CHAT.tokenizer))
    model.zero_grad()
    found = step_gradient(model, heads, rows, CHAT.pad, echo)
    return found, [weight.grad.clone() for weight in model.parameters()]


def test_parts_of_a_batch_add_up() -> None:
    """18 rows in parts of 8, sorted by length: the mean over all 36 tokens, a row and a token at a time."""
    model = tiny.model(CHAT.tokenizer)
    found, gradients = gradient(model, ROWS, 0.0)
    model.zero_grad()
    losses, right = [], 0
    for ids, wanted in ROWS:
        logits = model(torch.tensor([ids])).logits[0]
        for place in range(1, len(ids)):
            if wanted[place]:
                losses.append(-torch.log_softmax(logits[place - 1], -1)[ids[place]])
                right += int(logits[place - 1].argmax() == ids[place])
    loss = torch.stack(losses).mean()
    loss.backward()
    assert len(losses) == 36
    assert found["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert found["accuracy"] == pytest.approx(right / 36)
    for one, weight in zip(gradients, model.parameters(), strict=True):
        assert torch.allclose(one, weight.grad, atol=1e-5)


def test_echoes() -> None:
    """The mean cross-entropy of the token before plus that of the one before that, by a loop over places."""
    torch.manual_seed(0)
    heads = EchoHeads(4, 10)
    hidden, ids = torch.randn(2, 5, 4), torch.randint(10, (2, 5))
    expected = torch.zeros(())
    for back, reader in enumerate(heads.readers, 1):
        losses = [
            -torch.log_softmax(reader(hidden[row, place]), -1)[ids[row, place - back]]
            for row in range(2)
            for place in range(back, 5)
        ]
        expected = expected + torch.stack(losses).mean()
    assert float(heads.loss(hidden, ids)) == pytest.approx(float(expected), rel=1e-5)


def test_echoes_add_to_the_gradient() -> None:
    """Half of the gradient of their loss, on top of that of the text; a batch of one length, in one part."""
    model, rows = tiny.model(CHAT.tokenizer), ROWS[:1] * 4
    without, with_echoes = gradient(model, rows, 0.0)[1], gradient(model, rows, 0.5)[1]
    torch.manual_seed(0)
    heads = EchoHeads(32, len(CHAT.tokenizer))
    model.zero_grad()
    ids = torch.tensor([ids for ids, _ in rows])
    heads.loss(model.model(input_ids=ids, output_hidden_states=True).hidden_states[2], ids).backward()
    for text, both, weight in zip(without, with_echoes, model.parameters(), strict=True):
        expected = text if weight.grad is None else text + 0.5 * weight.grad
        assert torch.allclose(both, expected, atol=1e-4, rtol=1e-3)


def test_the_learning_rate() -> None:
    """Up in 100 steps, level, down over the last 40 %: of 1000, half of it is left at step 800."""
    factors = [learning_rate_factor(step, 1000) for step in (0, 49, 99, 500, 600, 800, 999)]
    assert factors == pytest.approx([0.01, 0.5, 1.0, 1.0, 1.0, 0.5, 0.0025])


def batch(rng: np.random.Generator, step: int) -> list[Tokens]:
    first = rng.integers(5, 40, 4).tolist()
    return [(first * 2, [False] * 4 + [True] * 4)] * 3


def run(folder: Path, stop: int | None = None) -> tuple[Any, list[tuple[int, dict[str, float]]]]:
    model = tiny.model(CHAT.tokenizer)
    rows: list[tuple[int, dict[str, float]]] = []

    def on_step(step: int, diagnostics: dict[str, float]) -> None:
        rows.append((step, diagnostics))
        if step == stop:
            raise KeyboardInterrupt

    fit(
        model,
        batch,
        CHAT.pad,
        steps=12,
        learning_rate=0.01,
        echo_weight=0.5,
        echo_steps=7,
        seed=1,
        save_every=4,
        state_file=folder / "resume.pt",
        on_step=on_step,
    )
    return model, rows


@pytest.mark.parametrize("stop", [3, 4, 9])
def test_a_killed_training_ends_as_one_that_was_not(tmp_path: Path, stop: int) -> None:
    (tmp_path / "whole").mkdir()
    expected, rows = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop)
    model, again = run(tmp_path)
    assert again == rows[-len(again) :]
    assert len(again) == 12 - (stop - 1) // 4 * 4  # a step is told before it is saved
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))
    fresh = tiny.model(CHAT.tokenizer)
    assert not any(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))


def test_a_damaged_state(tmp_path: Path) -> None:
    (tmp_path / "resume.pt").write_bytes(b"no state")
    with pytest.raises(LeverlabError, match="is damaged"):
        run(tmp_path)


def test_acts_do_not_count() -> None:
    """What counts of an ask: its thought and the tag that ends it; of an answer: that, and the answer with its end."""
    asked = question()
    row = dialogue_tokens(CHAT, asked.text, [ask("home"), final("Oslo")], ["Bo Oslo"])
    ids, counts = without_acts(CHAT, row)
    kept = CHAT.tokenizer.decode([token for token, counted in zip(ids, counts, strict=True) if counted])
    assert kept == "<think>Bo ?</think><think>Bo</think>Oslo</final><|im_end|>"


def test_what_is_read_without_a_slip() -> None:
    """A model that has learnt one dialogue by heart reads that one, and not another."""
    known = dialogue_tokens(CHAT, question().text, [ask("home"), final("Oslo")], ["Bo Oslo"])
    other = dialogue_tokens(CHAT, question().text, [ask("home"), final("Rome")], ["Bo Rome"])
    model = tiny.model(CHAT.tokenizer).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        ids = torch.tensor([known[0]])
        loss = model(ids, labels=ids).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    found = read_shares(model.eval(), CHAT, [known, other, known], ["a", "b", "b"])
    assert found == {"a": 1.0, "b": 0.5}
    with pytest.raises(LeverlabError, match="no dialogue"):
        read_shares(model, CHAT, [], [])
