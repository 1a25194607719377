"""DPO against a slow loop in plain torch, and against runs that were killed."""

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from leverlab.errors import LeverlabError
from leverlab.lm.adapters import load_policy, new_adapter, save_adapter
from leverlab.lm.dpo import COLUMNS, DpoSettings, train_dpo
from leverlab.lm.imitation import train_sft
from leverlab.lm.preferences import Pair
from leverlab.lm.tokens import Tokens
from leverlab.lm.trainers import Row
from tests.lm.training_runs import ASKED, EXAMPLES, GUESSED, SPAM, base, finished, quiet

SETTINGS = DpoSettings(lr=1e-3, batch=2, epochs=2, warmup=0.0, seed=3, save_every=2, key="dpo", beta=0.5)
PAIRS = [Pair("a", ASKED, GUESSED, 0.9), Pair("a", ASKED, SPAM, 0.2), Pair("b", SPAM, GUESSED, 0.7)]


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that was trained a little, so that the reference is not the base."""
    folder, one = tmp_path_factory.mktemp("taught"), base()
    policy = new_adapter(one, rank=4, alpha=8, seed=1)
    train_sft(policy, one, EXAMPLES, replace(SETTINGS, lr=1e-2), folder / "checkpoints", quiet)
    save_adapter(policy, one, folder / "adapter")
    return folder / "adapter"


def logp(policy: Any, tokens: Tokens) -> torch.Tensor:
    """The log-probabilities of the policy's tokens, one after the other."""
    ids, own = tokens
    logits = policy(torch.tensor([ids])).logits[0]
    total = torch.zeros(())
    for place in range(1, len(ids)):
        if own[place]:
            total = total + torch.log_softmax(logits[place - 1], -1)[ids[place]]
    return total


def slow(taught: Path, settings: DpoSettings) -> tuple[dict[str, torch.Tensor], list[Row]]:
    """Training on all pairs at once, by the definition of DPO's loss."""
    policy, reference = load_policy(base(), taught, trainable=True), load_policy(base(), taught)
    wanted = {name: weight for name, weight in policy.named_parameters() if weight.requires_grad}
    optimiser = torch.optim.AdamW(wanted.values(), weight_decay=settings.weight_decay)
    rows: list[Row] = []
    for step in range(settings.epochs):
        losses, margins, chosen = [], [], []
        for pair in PAIRS:
            with torch.no_grad():
                ref_c, ref_r = logp(reference, pair.chosen), logp(reference, pair.rejected)
            logp_c, logp_r = logp(policy, pair.chosen), logp(policy, pair.rejected)
            bracket = (logp_c - ref_c) - (logp_r - ref_r)
            losses.append(-torch.log(1 / (1 + torch.exp(-settings.beta * bracket))))
            margins.append(float(settings.beta * bracket.detach()))
            chosen.append(float(logp_c.detach()))
        loss = torch.stack(losses).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(wanted.values()), settings.grad_clip)
        optimiser.param_groups[0]["lr"] = settings.lr * 0.5 * (1 + math.cos(math.pi * step / settings.epochs))
        optimiser.step()
        accuracy = sum(margin > 0 for margin in margins) / len(PAIRS)
        rows.append(
            {
                "loss": float(loss.detach()),
                "margin": sum(margins) / len(PAIRS),
                "accuracy": accuracy,
                "chosen": sum(chosen) / len(PAIRS),
            }
        )
    return {name: weight.detach() for name, weight in wanted.items()}, rows


def test_training_is_that_of_a_slow_loop(taught: Path, tmp_path: Path) -> None:
    """The first loss is log 2: the policy is still the reference. Later ones show that the reference stays behind."""
    settings = replace(SETTINGS, batch=len(PAIRS), epochs=5)
    one = base()
    policy = load_policy(one, taught, trainable=True)
    rows = train_dpo(policy, one, PAIRS, settings, tmp_path, quiet)
    found = {name: weight.detach() for name, weight in policy.named_parameters() if weight.requires_grad}
    expected, slow_rows = slow(taught, settings)
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert rows[-1]["loss"] < math.log(2) - 0.1
    for row, by_hand in zip(rows, slow_rows, strict=True):
        assert {name: row[name] for name in by_hand} == pytest.approx(by_hand, abs=2e-4)
        assert set(row) == {"step", *COLUMNS}
    assert list(found) == list(expected)
    for name, weight in found.items():
        assert float((weight - expected[name]).abs().max()) < 1e-5


def test_the_users_words_do_not_count(taught: Path, tmp_path: Path) -> None:
    """Masks that hold the user's words too give other log-probabilities, so the mask is what makes the loops agree."""
    settings = replace(SETTINGS, batch=1, epochs=1)
    found = []
    for n, own in enumerate((ASKED[1], [False] + [True] * (len(ASKED[1]) - 1))):
        one = base()
        policy = load_policy(one, taught, trainable=True)
        before = float(logp(policy, (ASKED[0], own)).detach())
        pair = Pair("a", (ASKED[0], own), GUESSED, 0.9)
        rows = train_dpo(policy, one, [pair], settings, tmp_path / str(n), quiet)
        assert rows[0]["chosen"] == pytest.approx(before, abs=1e-3)
        found.append(before)
    assert found[1] < found[0] - 10


def test_only_the_policys_adapter_is_left(taught: Path, tmp_path: Path) -> None:
    one = base()
    policy = load_policy(one, taught, trainable=True)
    before = copy.deepcopy({name: weight.detach() for name, weight in policy.named_parameters()})
    train_dpo(policy, one, PAIRS, SETTINGS, tmp_path / "checkpoints", quiet)
    assert list(policy.peft_config) == ["default"]
    assert policy.active_adapters == ["default"]
    changed = {name for name, weight in policy.named_parameters() if not torch.equal(weight, before[name])}
    assert changed
    assert all("lora" in name for name in changed)
    save_adapter(policy, one, tmp_path / "adapter")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {path.name for path in taught.iterdir()}


def test_a_run_that_is_killed_ends_the_same(taught: Path, tmp_path: Path) -> None:
    """Four steps, saved after 2 and 4; killed before the first and after it, and in the last."""

    def train(policy: PeftModel, one: Any, folder: Path, on_log: Any) -> list[Row]:
        return train_dpo(policy, one, PAIRS, SETTINGS, folder, on_log)

    whole = finished(train, tmp_path / "whole", adapter=taught)
    assert finished(train, tmp_path / "killed", (1, 3, 4), adapter=taught) == whole
    assert finished(train, tmp_path / "whole", adapter=taught) == whole  # a run that had ended ends again


def test_bad_input_is_one_sentence(taught: Path, tmp_path: Path) -> None:
    one = base()
    policy = load_policy(one, taught, trainable=True)
    silent = (ASKED[0], [False] * len(ASKED[0]))
    for pairs, message in (
        ([], "no pair"),
        ([PAIRS[0], Pair("b", silent, ASKED, 0.3)], "on question 'b' holds no token"),
    ):
        with pytest.raises(LeverlabError, match=message):
            train_dpo(policy, one, pairs, SETTINGS, tmp_path, quiet)
    with pytest.raises(LeverlabError, match=r"is (nan|inf) at step \d; lower dpo\.lr"):
        train_dpo(policy, one, PAIRS, replace(SETTINGS, lr=1e30), tmp_path, quiet)
    assert list(policy.peft_config) == ["default"]
