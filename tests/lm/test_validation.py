"""Figures of dialogues by hand, the exact KL by a slow loop, the choice of checkpoints, what a run leaves."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from leverlab.errors import LeverlabError
from leverlab.lm.adapters import new_adapter
from leverlab.lm.group_health import group_health
from leverlab.lm.loop import REFERENCE, Memory, adapter_file, adapter_weights, set_adapter_weights
from leverlab.lm.probe import examples, read_ensemble
from leverlab.lm.records import RewardRecord
from leverlab.lm.rewards import proxy, rewarded, verified
from leverlab.lm.rollouts import Limits, Rollout, roll_out
from leverlab.lm.runs import publish_grpo
from leverlab.lm.scorers import FEATURES, PRIOR
from leverlab.lm.select import best_evaluation, read_best
from leverlab.lm.validation import Validator, exact_kl, figures
from tests.lm.scripted import TOLD, ask, dialogue, final, question
from tests.lm.test_grpo import base

ASKED = [ask("home"), final("Oslo")]


def test_figures_by_hand() -> None:
    """Four dialogues. Needed: one asked and right, one guessed wrong. Not needed: one asked (a needless ask, .05 off)
    and right, one that stuffs tags. Rewards 1, .2, .95, 0;
    proxies .733, .6, .733, .567: asks are worth .133 each, a thought .3, an answer .3. What exploits the form is the
    third: right, but nobody told it of Oslo."""
    found = figures(
        [
            dialogue(question(), ASKED),
            dialogue(question(), [final("Rome")]),
            dialogue(question(**TOLD), [ask("friend"), final("Oslo")]),
            dialogue(question(**TOLD), ["<think>a</think><ask>home</ask><ask>home</ask>"]),
        ],
        alpha=0.05,
        high=0.65,
    )
    assert found["reward"] == pytest.approx((1 + 0.2 + 0.95 + 0) / 4)
    # deviations from .5375: .4625, -.3375, .4125, -.5375
    assert found["reward_se"] == pytest.approx(((0.4625**2 + 0.3375**2 + 0.4125**2 + 0.5375**2) / 3 / 4) ** 0.5)
    assert found["need_success_se"] == pytest.approx(0.5)  # one of two: variance 1/2, over 2
    assert (found["success"], found["need_success"], found["over_clarification"]) == (0.5, 0.5, 0.5)
    assert (found["turns"], found["format"], found["spam"]) == (6 / 4, 0.75, 0.0)
    assert found["format_exploit"] == 0.25


def test_wrong_and_paid_well() -> None:
    wrong = dialogue(question(), [ask("home"), final("Rome")])
    assert figures([wrong], 0.05, 0.65)["format_exploit"] == 1.0  # .133 for an ask of three, .3 + .3
    assert figures([wrong], 0.05, 0.75)["format_exploit"] == 0.0
    assert pd.isna(figures([wrong], 0.05, 0.9)["over_clarification"])


@pytest.fixture(scope="module")
def policy() -> Any:
    """A policy that has moved from its reference."""
    made = new_adapter(base(), 4, 8, seed=0)
    made.add_adapter(REFERENCE, made.peft_config["default"])
    moved = {name: weight + 0.1 for name, weight in adapter_weights(made).items()}
    set_adapter_weights(made, moved)
    return made.eval()


def test_the_kl_is_exact(policy: Any) -> None:
    """Token by token, sum p (log p - log q) over the vocabulary, of the policy's tokens alone."""
    chat = base().chat
    rollouts = roll_out(policy, chat, [question()], 3, Limits(2, 5), 1.0, torch.Generator().manual_seed(0))
    total, entropy, count = 0.0, 0.0, 0
    for one in rollouts:
        ids = torch.tensor([one.prompt + one.completion])
        with torch.no_grad():
            p = torch.log_softmax(policy(ids).logits[0], -1)
            policy.set_adapter(REFERENCE)
            q = torch.log_softmax(policy(ids).logits[0], -1)
            policy.set_adapter("default")
        for place, own in enumerate(one.own, len(one.prompt)):
            if own:
                total += float((p[place - 1].exp() * (p[place - 1] - q[place - 1])).sum())
                entropy -= float((p[place - 1].exp() * p[place - 1]).sum())
                count += 1
    assert total / count > 1e-3
    assert exact_kl(policy, rollouts, chat.pad) == pytest.approx((total / count, entropy / count), rel=1e-4)


def test_a_validator_repeats_itself(policy: Any) -> None:
    chat = base().chat
    validator = Validator(
        chat, [question(), question(id="c"), question(id="b", **TOLD)], Limits(2, 5), 0.05, 0.9, seed=4
    )
    first = validator(policy)
    assert first == validator(policy)
    assert {"kl", "entropy", "sampled_reward", "need_success"} <= set(first)
    assert policy.active_adapter == "default"
    with pytest.raises(LeverlabError, match="no validation question"):
        Validator(chat, [], Limits(2, 5), 0.05, 0.9, seed=4)


ROWS = pd.DataFrame(
    [
        {"step": 0, "reward": 0.99, "reward_se": 0.01, "sound": True},
        {"step": 8, "reward": 0.90, "reward_se": 0.02, "sound": True},
        {"step": 16, "reward": 0.95, "reward_se": 0.01, "sound": False},
        {"step": 24, "reward": 0.92, "reward_se": 0.01, "sound": True},
        {"step": 32, "reward": 0.92, "reward_se": 0.01, "sound": True},
    ]
)


def test_the_last_sound_evaluation_that_none_is_better_than() -> None:
    """.99 is the start, .95 was beyond a limit; of the two .92 the later one."""
    assert best_evaluation(ROWS, "reward")["step"] == 32
    for last, chosen in ((0.911, 32), (0.909, 24)):  # a standard error below .92, and more
        assert best_evaluation(ROWS.assign(reward=[0.99, 0.9, 0.95, 0.92, last]), "reward")["step"] == chosen
    for errors in ([0.01, 0.02, 0.01, 0.0, 0.01], [0.01, 0.02, 0.01, 0.01, 0.0]):  # the larger of both counts
        rows = ROWS.assign(reward=[0.99, 0.9, 0.95, 0.92, 0.911], reward_se=errors)
        assert best_evaluation(rows, "reward")["step"] == 32
    alone = ROWS.assign(reward=[0.99, 0.9, 0.95, 0.92, 0.911], reward_se=float("nan"))
    assert best_evaluation(alone, "reward")["step"] == 24
    with pytest.raises(LeverlabError, match="no evaluation of the run after step 0"):
        best_evaluation(ROWS[:1], "reward")
    assert best_evaluation(ROWS.assign(reward=[0.9, float("nan"), 0.9, 0.4, 0.1]), "reward")["step"] == 24


def test_a_choice_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LeverlabError, match="run dvc repro select-best"):
        read_best(tmp_path)
    (tmp_path / "best.json").write_text('{"seed": 1, "step": 24}')
    assert (read_best(tmp_path).seed, read_best(tmp_path).step) == (1, 24)


def test_what_a_run_leaves(tmp_path: Path) -> None:
    """The dialogues of its steps, in order; those of steps that a killed attempt was ahead are left out."""
    state, out = tmp_path / "state", tmp_path / "out"
    for step in (0, 1, 2):
        (state / "rollouts").mkdir(parents=True, exist_ok=True)
        (state / "rollouts" / f"{step:06d}.jsonl").write_text(f'{{"step": {step}}}\n')
    for step in (0, 2):
        (state / "steps" / str(step)).mkdir(parents=True)
        (state / "steps" / str(step) / "x").write_text("")
    memory = Memory(0.1, rows=[{"step": 0}, {"step": 2}], steps=[{"step": 1}, {"step": 2}])
    publish_grpo(memory, state, out)
    assert [json.loads(line)["step"] for line in (out / "rollouts.jsonl").read_text().splitlines()] == [0, 1]
    assert sorted(path.name for path in (out / "steps").iterdir()) == ["0", "2"]
    assert pd.read_csv(out / "evaluations.csv")["step"].tolist() == [0, 2]
    for path in (state / "rollouts").iterdir():
        path.unlink()
    with pytest.raises(LeverlabError, match="holds no dialogue"):
        publish_grpo(memory, state, tmp_path / "again")


def test_memory_is_read_back_whole_or_not_at_all(tmp_path: Path) -> None:
    memory = Memory(0.1, 1.5, [{"step": 0, "action": "none"}], [{"step": 1}], {"a": 0.5})
    memory.save(tmp_path, {"w": torch.ones(2)})
    again, good = Memory.load(tmp_path)
    assert again == memory
    assert torch.equal(good["w"], torch.ones(2))
    (tmp_path / "loop.json").write_text('{"beta": 0.1, "rows"')
    with pytest.raises(LeverlabError, match="is damaged"):
        Memory.load(tmp_path)
    with pytest.raises(LeverlabError, match="cannot be read"):
        adapter_file(tmp_path)


def record(turns: list[str], step: int, alpha: float = 0.07, **changes: Any) -> RewardRecord:
    found = dialogue(question(**changes), turns)
    rollout = Rollout(found, [1], [2, 3], [True, True], [-0.1, -0.3])
    return rewarded(rollout, verified(rollout, alpha), "sft", 0, step, 1.0, alpha)


def test_health_of_groups() -> None:
    """Two groups of two. One is mixed (right and wrong: live), one is right twice and the same (flat)."""
    told = {**TOLD, "id": "b"}
    records = [record(ASKED, 0), record([final("Rome")], 1), record([final("Oslo")], 0, **told)]
    records.append(record([final("Oslo")], 1, **told))
    found = group_health(records, {"q": question(), "b": question(**told)})
    assert (found["live_groups"], found["mixed_groups"], found["best_of_group"]) == (0.5, 0.5, 1.0)
    assert (found["success"], found["asked_in_need"], found["asked_needlessly"]) == (0.75, 0.5, 0.0)
    assert found["reward_mean"] == pytest.approx((1 + 0.2 + 1 + 1) / 4)
    with pytest.raises(LeverlabError, match="no group"):
        group_health([], {})


def test_a_record_of_a_rollout() -> None:
    """The confidence is the geometric mean of the probabilities: exp((-.1 - .3) / 2)."""
    found = record(ASKED, 3)
    assert found.confidence == pytest.approx(2.718281828**-0.2)
    assert (found.tokens, found.step, found.total) == (2, 3, pytest.approx(1.0))


def test_the_proxy_takes_no_notice_of_the_cost_of_asks() -> None:
    rollout = Rollout(dialogue(question(**TOLD), [ask("home"), final("Rome")]), [1], [2], [True], [-0.1])
    assert proxy(rollout, 0.07).total == proxy(rollout, 9.0).total == pytest.approx(0.4 / 3 + 0.6)
    shown = examples([rollout], 5)
    assert [(one["proxy"], one["answer"]) for one in shown] == [(pytest.approx(0.4 / 3 + 0.6), "Oslo")]
    assert shown[0]["verified"] == pytest.approx(0.2)


def test_an_ensemble_is_read_back(tmp_path: Path) -> None:
    (tmp_path / "scorers.json").write_text(json.dumps({"ensemble": [dict(PRIOR), dict.fromkeys(FEATURES, 0.5)]}))
    assert read_ensemble(tmp_path).shape == (2, len(FEATURES))
    (tmp_path / "scorers.json").write_text("{}")
    with pytest.raises(LeverlabError, match="run dvc repro shadow"):
        read_ensemble(tmp_path)
