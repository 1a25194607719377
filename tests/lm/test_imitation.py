"""SFT and RCE against slow loops in plain torch, against each other, and against runs that were killed."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from leverlab.errors import LeverlabError
from leverlab.lm.adapters import new_adapter
from leverlab.lm.imitation import COLUMNS, train_rce, train_sft, weigh
from leverlab.lm.tokens import Tokens, dialogue_tokens, labels
from leverlab.lm.trainers import Row, Settings
from tests.lm.scripted import ask, final, question
from tests.lm.training_runs import ASKED, CHAT, EXAMPLES, GUESSED, Train, base, finished, quiet

SETTINGS = Settings(lr=1e-2, batch=3, epochs=2, warmup=0.2, weight_decay=0.1, grad_clip=1.0, seed=3, save_every=2)
WEIGHTS = [1.5, 0.5, 1.0, 0.25, 1.75, 0.0, 2.0]


def run(folder: Path, settings: Settings, weights: Sequence[float] | None) -> tuple[dict[str, torch.Tensor], list[Row]]:
    one = base()
    policy = new_adapter(one, rank=4, alpha=8, seed=1)
    if weights is None:
        rows = train_sft(policy, one, EXAMPLES, settings, folder, quiet)
    else:
        rows = train_rce(policy, one, EXAMPLES, weights, settings, folder, quiet)
    return {name: weight.detach() for name, weight in policy.named_parameters() if weight.requires_grad}, rows


def loss_of(policy: Any, examples: Sequence[Tokens], weights: Sequence[float]) -> torch.Tensor:
    """The sum of weighted cross-entropies by the number of tokens, a dialogue and a token at a time."""
    total, count = torch.zeros(()), 0
    for (ids, own), weight in zip(examples, weights, strict=True):
        logits = policy(torch.tensor([ids])).logits[0]
        for place in range(1, len(ids)):
            if own[place]:
                total = total - weight * torch.log_softmax(logits[place - 1], -1)[ids[place]]
                count += 1
    return total / count


def slow(settings: Settings, weights: Sequence[float]) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Training on all examples at once: AdamW, warm-up, cosine and clip by their definitions."""
    policy = new_adapter(base(), rank=4, alpha=8, seed=1)
    wanted = {name: weight for name, weight in policy.named_parameters() if weight.requires_grad}
    optimiser = torch.optim.AdamW(wanted.values(), weight_decay=settings.weight_decay)
    steps = settings.updates(len(EXAMPLES))
    warmup, losses = round(settings.warmup * steps), []
    for step in range(steps):
        share = (step - warmup) / (steps - warmup)
        factor = step / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * share))
        loss = loss_of(policy, EXAMPLES, weights)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(wanted.values()), settings.grad_clip)
        optimiser.param_groups[0]["lr"] = settings.lr * factor
        optimiser.step()
        losses.append(float(loss.detach()))
    return {name: weight.detach() for name, weight in wanted.items()}, losses


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert list(one) == list(other)
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_training_is_that_of_a_slow_loop(tmp_path: Path, weights: list[float] | None) -> None:
    """With all examples in a batch their order does not matter. The loss falls, so the loop compares real steps."""
    settings = replace(SETTINGS, batch=len(EXAMPLES), epochs=5)
    found, rows = run(tmp_path, settings, weights)
    expected, losses = slow(settings, weights or [1.0] * len(EXAMPLES))
    assert [row["loss"] for row in rows] == pytest.approx(losses, abs=1e-5)
    assert losses[-1] < losses[0] - 0.3
    assert largest_difference(found, expected) < 1e-5
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert set(rows[0]) == {"step", *COLUMNS}


def test_weight_1_everywhere_is_sft(tmp_path: Path) -> None:
    """Batches of 3, 3 and 1 dialogues of unequal lengths, over two epochs."""
    sft, sft_rows = run(tmp_path / "sft", SETTINGS, None)
    rce, rce_rows = run(tmp_path / "rce", SETTINGS, [1.0] * len(EXAMPLES))
    for name in COLUMNS:
        assert [row[name] for row in rce_rows] == pytest.approx([row[name] for row in sft_rows], abs=1e-6)
    assert len(sft_rows) == 6
    assert largest_difference(sft, rce) < 1e-6
    other, _ = run(tmp_path / "other", SETTINGS, WEIGHTS)
    assert largest_difference(sft, other) > 1e-3


def test_users_words_carry_no_loss(tmp_path: Path) -> None:
    """The first loss, of weights that have not moved, is the mean over the policy's tokens and no others."""
    settings = replace(SETTINGS, batch=2, epochs=1, warmup=0.0)
    one = base()
    rows = train_sft(new_adapter(one, 4, 8, 1), one, [ASKED, GUESSED], settings, tmp_path, quiet)
    assert rows[0]["loss"] == pytest.approx(
        float(loss_of(base().model, [ASKED, GUESSED], [1.0, 1.0]).detach()), abs=1e-5
    )
    every = [(ids, [True] * len(ids)) for ids, _ in (ASKED, GUESSED)]
    assert abs(rows[0]["loss"] - float(loss_of(base().model, every, [1.0, 1.0]).detach())) > 0.01


def train(rce: bool) -> Train:
    def run_of(policy: PeftModel, one: Any, folder: Path, on_log: Any) -> list[Row]:
        if rce:
            return train_rce(policy, one, EXAMPLES, WEIGHTS, SETTINGS, folder, on_log)
        return train_sft(policy, one, EXAMPLES, SETTINGS, folder, on_log)

    return run_of


@pytest.mark.parametrize(("rce", "kills"), [(False, ((1,), (2,), (4, 4))), (True, ((3,), (5, 6)))])
def test_a_run_that_is_killed_ends_the_same(tmp_path: Path, rce: bool, kills: tuple[tuple[int, ...], ...]) -> None:
    """Six steps, saved after 2, 4 and 6; killed before the first, between two, and in the last."""
    whole = finished(train(rce), tmp_path / "whole")
    for n, steps in enumerate(kills):
        assert finished(train(rce), tmp_path / str(n), steps) == whole
    assert finished(train(rce), tmp_path / "whole") == whole  # a run that had ended ends again


def test_rows_of_the_steps_that_are_taken_are_told(tmp_path: Path) -> None:
    told: list[Row] = []

    def telling(policy: PeftModel, one: Any, folder: Path, on_log: Any) -> list[Row]:
        def tell(row: Row) -> None:
            told.append(row)
            on_log(row)

        return train(False)(policy, one, folder, tell)

    _, rows = finished(telling, tmp_path, (4,))
    assert [row["step"] for row in told] == [1, 2, 3, 4, 3, 4, 5, 6]
    assert told[4:] == rows[2:]


def test_the_order_is_that_of_the_seed(tmp_path: Path) -> None:
    losses = []
    for seed in (3, 3, 4):
        _, rows = run(tmp_path / str(len(losses)), replace(SETTINGS, seed=seed), None)
        losses.append([row["loss"] for row in rows])
    assert losses[0] == losses[1] != losses[2]


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(LeverlabError, match=r"the (loss|grad_norm) is (nan|inf) at step [234]; lower sft\.lr"):
        run(tmp_path, replace(SETTINGS, lr=1e30, save_every=1), None)
    saved = {path.name for path in tmp_path.glob("checkpoint-*")}
    assert saved <= {"checkpoint-1", "checkpoint-2", "checkpoint-3"}


def test_a_base_that_is_broken_ends_the_run_before_anything_is_saved(tmp_path: Path) -> None:
    one = base()
    policy = new_adapter(one, 4, 8, 1)
    with torch.no_grad():
        one.model.model.embed_tokens.weight[ASKED[0][0], 0] = math.nan
    with pytest.raises(LeverlabError, match="the loss is nan at step 1; "):
        train_sft(policy, one, EXAMPLES, replace(SETTINGS, save_every=1), tmp_path, quiet)
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_number_of_steps_takes_the_place_of_epochs(tmp_path: Path) -> None:
    """7 examples in batches of 3 are 3 updates an epoch."""
    assert replace(SETTINGS, epochs=4).updates(7) == 12
    _, rows = run(tmp_path, replace(SETTINGS, steps=4, warmup=0.0), None)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row["lr"] for row in rows] == pytest.approx(
        [1e-2 * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]
    )


def test_weights_of_a_group() -> None:
    """tau .5: rewards 0 and .5 ln 3 differ by ln 3 in the exponent, so softmax gives 1/4 and 3/4, times 2 rollouts.

    Three equal rewards of four: exp(0) three times and exp(ln 2) once, 1/5 and 2/5, times 4 rollouts.
    """
    third, half = 0.5 * math.log(3), 0.5 * math.log(2)
    groups = ["a", "b", "flat", "b", "a", "b", "flat", "b"]
    found = weigh(groups, [third, 0.1, 1.0, 0.1 + half, 0.0, 0.1, 1.0, 0.1], tau=0.5)
    assert found.rows == [0, 1, 3, 4, 5, 7]
    assert found.weights == pytest.approx([1.5, 0.8, 1.6, 0.5, 0.8, 0.8])
    assert (found.flat, found.groups) == (1, 3)


def test_a_high_temperature_weighs_all_the_same() -> None:
    assert weigh(["a", "a", "b", "b"], [0.0, 1.0, 0.3, 0.9], 1e9).weights == pytest.approx([1.0] * 4)


def test_bad_input_is_one_sentence(tmp_path: Path) -> None:
    one = base()
    policy = new_adapter(one, 4, 8, 1)
    silent = (ASKED[0], [False] * len(ASKED[0]))
    for examples, message in (([], "no example"), ([ASKED, silent], "example 1 holds no token of the policy")):
        with pytest.raises(LeverlabError, match=message):
            train_sft(policy, one, examples, SETTINGS, tmp_path, quiet)
    with pytest.raises(LeverlabError, match="2 examples and 1 weights"):
        train_rce(policy, one, [ASKED, GUESSED], [1.0], SETTINGS, tmp_path, quiet)
    with pytest.raises(LeverlabError, match="question 'b' are"):
        weigh(["a", "a", "b", "b"], [0.0, 1.0, math.nan, 0.0], 1.0)
    with pytest.raises(LeverlabError, match="all 2 groups"):
        weigh(["a", "a", "b"], [1.0, 1.0, 0.0], 1.0)
    with pytest.raises(LeverlabError, match="tau"):
        weigh(["a", "a"], [1.0, 0.0], 0.0)


def test_tokens_of_a_dialogue() -> None:
    """Prompt, turn, reply, turn; own are the turns with the tokens that end them."""
    ids, own = dialogue_tokens(CHAT, question().text, [ask("home"), final("Oslo")], ["Bo Oslo"])
    prompt, reply = CHAT.prompt(question().text), CHAT.reply("Bo Oslo")
    first, last = CHAT.turn(ask("home")), CHAT.turn(final("Oslo"))
    assert ids == [*prompt, *first, *reply, *last]
    assert own == [False] * len(prompt) + [True] * len(first) + [False] * len(reply) + [True] * len(last)
    assert dialogue_tokens(CHAT, "a", [final("b")], [], cut=True)[0] == [*CHAT.prompt("a"), *CHAT.turn(final("b"))[:-1]]
    assert labels(([5, 6, 7], [False, True, False])) == [-100, 6, -100]


def test_a_run_killed_after_its_last_step_takes_no_step_more(tmp_path: Path) -> None:
    """Four steps are no whole number of epochs of three; what follows training may fail, and is run again."""
    settings = replace(SETTINGS, epochs=1, steps=4)
    weights, rows = run(tmp_path, settings, WEIGHTS)
    again, same = run(tmp_path, settings, WEIGHTS)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert same == rows
    assert largest_difference(weights, again) == 0.0
