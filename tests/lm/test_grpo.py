"""GRPO on dialogues: kills, records, the guard's ladder, flat groups, and TRL's loss beside our own."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from leverlab.config.clarify_grpo import DialogueGrpoParams, LadderParams
from leverlab.errors import LeverlabError
from leverlab.lm.adapters import Base, new_adapter, weights_digest
from leverlab.lm.chat import Chat
from leverlab.lm.grpo import DialogueTrainer, Run, adapted, train_grpo
from leverlab.lm.loop import Memory, adapter_weights, beyond, react
from leverlab.lm.questions import Question
from leverlab.lm.records import RewardRecord, read_records
from leverlab.lm.rewards import Reward, verified
from leverlab.lm.rollouts import Limits, Rollout
from leverlab.lm.turn_rollouts import generate_engine
from leverlab.rl.losses import grpo_loss
from tests.lm import tiny
from tests.lm.scripted import question

PARAMS: dict[str, Any] = {
    "init": "sft",
    "reference": "sft",
    "steps": 4,
    "questions": 2,
    "group": 2,
    "updates": 1,
    "temperature": 1.0,
    "generation": "cache",
    "lr": 0.05,
    "warmup": 0.0,
    "grad_clip": 1.0,
    "advantage": "zscore",
    "clip_epsilon": 0.2,
    "beta": 0.01,
    "adaptive_kl": {"enabled": False, "low": 0.1, "high": 0.2, "factor": 2.0, "minimum": 0.001, "maximum": 1.0},
    "priority": {"share": 0.3, "failure_factor": 2.0},
    "guard": {
        "window": 1,
        "kl": 0.12,
        "spam": 1.0,
        "format_exploit": 1.0,
        "alpha_factor": 1.5,
        "beta_factor": 2.0,
        "rollbacks": 2,
    },
    "alpha": {"kind": "linear", "start": 0.08, "end": 0.04},
    "evaluate_every": 2,
    "evaluate_on": 2,
}
SOUND = {"spam": 0.0, "format_exploit": 0.0, "kl": 0.0, "success": 0.0, "need_success": 0.0, "over_clarification": 0.0}


def questions() -> list[Question]:
    return [question(id=name, text=f"{question().text} {name}") for name in "abcdef"]


def base() -> Base:
    chat = Chat(tiny.tokenizer())
    model = tiny.model(chat.tokenizer)
    return Base("tiny", model, chat, weights_digest(model))


def by_tokens(rollout: Rollout, alpha: float) -> Reward:
    """A reward that has spread on the dialogues of a random model."""
    worth = sum(rollout.completion) % 11 / 10
    return Reward(worth - alpha, {"luck": worth, "cost": alpha}, {"luck": "by the sum of the tokens", "cost": "always"})


def run_of(folder: Path, reward: Any = by_tokens, evaluate: Any = lambda policy: dict(SOUND), **changes: Any) -> Run:
    return Run(
        name="grpo",
        seed=3,
        questions=questions(),
        params=DialogueGrpoParams.model_validate(PARAMS | changes),
        limits=Limits(2, 6),
        reward=reward,
        evaluate=evaluate,
        folder=folder,
        say=lambda text: None,
    )


def trained(run: Run) -> tuple[Memory, dict[str, torch.Tensor]]:
    with_adapter = base()
    policy = new_adapter(with_adapter, 4, 8, seed=0)
    with torch.no_grad():  # a fresh adapter is the base itself, whose gradient by half of it is zero
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    memory = train_grpo(policy, with_adapter, adapter_weights(policy), run)
    return memory, adapter_weights(policy)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Memory, dict[str, torch.Tensor]]:
    run = run_of(tmp_path_factory.mktemp("unbroken"))
    return run, *trained(run)


def test_the_rows_of_steps_and_evaluations_are_logged_as_they_come(tmp_path: Path) -> None:
    logged: list[tuple[str, dict[str, Any]]] = []
    run = replace(run_of(tmp_path), log=lambda row, prefix: logged.append((prefix, dict(row))))
    memory, _ = trained(run)
    assert [row for prefix, row in logged if prefix == "val/"] == memory.rows
    assert [row for prefix, row in logged if prefix == ""] == memory.steps
    steps = [row["step"] for _, row in logged]
    assert steps == sorted(steps)
    assert len(memory.steps) > 1


class KilledError(Exception):
    pass


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_run_killed_at_any_step_ends_as_one_that_was_not(
    tmp_path: Path, unbroken: tuple[Run, Memory, dict[str, torch.Tensor]], at: int
) -> None:
    calls = 0

    def dying(rollout: Rollout, alpha: float) -> Reward:
        nonlocal calls
        calls += 1
        if calls > 4 * at:  # four dialogues a step
            raise KilledError
        return by_tokens(rollout, alpha)

    with pytest.raises(KilledError):
        trained(run_of(tmp_path, dying))
    memory, weights = trained(run_of(tmp_path))
    run, expected, expected_weights = unbroken
    assert (memory.rows, memory.steps, memory.success) == (expected.rows, expected.steps, expected.success)
    assert all(torch.equal(weights[name], expected_weights[name]) for name in expected_weights)
    for path in sorted((run.folder / "rollouts").iterdir()):
        assert (tmp_path / "rollouts" / path.name).read_text() == path.read_text()


def test_a_finished_run_is_not_run_again(unbroken: tuple[Run, Memory, dict[str, torch.Tensor]]) -> None:
    """All it does is read what it remembers; the weights are those of the end."""

    def never(*_: Any) -> Any:
        raise AssertionError("the run went on")

    run, expected, weights = unbroken
    again = run_of(run.folder, never, never)
    memory, found = trained(again)
    assert memory.rows == expected.rows
    assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_weights_move_and_steps_are_told(unbroken: tuple[Run, Memory, dict[str, torch.Tensor]]) -> None:
    run, memory, weights = unbroken
    assert [row["step"] for row in memory.rows] == [0, 2, 4]
    assert [row["step"] for row in memory.steps] == [1, 2, 3, 4]
    first = adapter_weights(new_adapter(base(), 4, 8, seed=0))
    assert any(not torch.equal(first[name], weights[name]) for name in weights if "lora_A" in name)
    assert [row["alpha"] for row in memory.steps] == pytest.approx([0.08, 0.07, 0.06, 0.05])  # before each step
    assert sorted(path.name for path in (run.folder / "steps").iterdir()) == ["0", "2", "4"]


def test_records_hold_what_was_paid(unbroken: tuple[Run, Memory, dict[str, torch.Tensor]]) -> None:
    """Every dialogue of every step, with its terms; the mean of the totals is the reward of the step's row."""
    run, memory, _ = unbroken
    for row in memory.steps:
        records = read_records(run.folder / "rollouts" / f"{row['step'] - 1:06d}.jsonl", RewardRecord)
        assert len(records) == 4
        assert len({record.question for record in records}) == 2
        assert sum(record.total for record in records) / 4 == pytest.approx(row["reward"], abs=1e-6)
        for record in records:
            assert record.total == pytest.approx(record.terms["luck"] - record.alpha)
            assert (record.policy, record.seed, record.step) == ("grpo", 3, row["step"] - 1)
            assert record.prompt == next(q.text for q in questions() if q.id == record.question)


def test_a_reward_that_is_no_number(tmp_path: Path) -> None:
    with pytest.raises(LeverlabError, match=r"question '.' at step 0 is nan"):
        trained(run_of(tmp_path, lambda rollout, alpha: Reward(float("nan"), {"x": 0.0}, {"x": ""})))


def test_groups_without_spread_teach_nothing(tmp_path: Path) -> None:
    """All equal: no advantage, and the KL to oneself has no gradient either."""
    memory, weights = trained(run_of(tmp_path, lambda rollout, alpha: Reward(1.0, {"x": 1.0}, {"x": ""})))
    assert [row["flat_groups"] for row in memory.steps] == [1.0] * 4
    before = adapter_weights(load_step(tmp_path, 0))
    assert all(torch.allclose(weights[name], before[name], atol=1e-6) for name in weights)


def load_step(folder: Path, step: int) -> Any:
    from leverlab.lm.adapters import load_policy

    return load_policy(base(), folder / "steps" / str(step))


def test_the_ladder_is_climbed(tmp_path: Path) -> None:
    """Beyond the KL at every evaluation: dearer asks, back, back, stop; a run that was stopped stays so."""
    figures = iter([0.0, *[1.0] * 9])
    evaluate = lambda policy: SOUND | {"kl": next(figures)}  # noqa: E731
    run = run_of(tmp_path, evaluate=evaluate, steps=20)
    memory, _ = trained(run)
    assert [row["action"] for row in memory.rows] == ["none", "alpha", "back", "back", "stop"]
    assert memory.steps[-1]["step"] == 8
    assert memory.alpha_factor == 1.5
    assert [row["beta"] for row in memory.rows] == pytest.approx([0.01, 0.01, 0.01, 0.02, 0.04])
    assert memory.rows[2]["guard"].startswith("back to step 0, KL weight times 2: KL 1 nats per token is above 0.12")
    again, _ = trained(run)
    assert again.rows == memory.rows


def test_going_back_restores_the_last_good_weights(tmp_path: Path) -> None:
    """The run ends with going back from step 6: to the weights of step 2, which was the last good one."""
    figures = iter([0.0, 0.0, 1.0, 1.0])
    seen: list[dict[str, torch.Tensor]] = []

    def evaluate(policy: Any) -> dict[str, float]:
        seen.append(adapter_weights(policy))
        return SOUND | {"kl": next(figures)}

    memory, weights = trained(run_of(tmp_path, evaluate=evaluate, steps=6))
    assert [row["action"] for row in memory.rows] == ["none", "none", "alpha", "back"]
    assert all(torch.equal(weights[name], seen[1][name]) for name in weights)
    assert any(not torch.equal(seen[3][name], seen[1][name]) for name in weights)


def test_reactions() -> None:
    """By hand: one limit after another, and the window: (0 + .2) / 2 = .1 is within .12, (.2 + .2) / 2 is not."""
    limits = LadderParams(
        window=2, kl=0.12, spam=0.05, format_exploit=0.03, alpha_factor=1.5, beta_factor=2.0, rollbacks=1
    )

    def row(step: int, action: str = "none", sound: bool = True, **changes: float) -> dict[str, Any]:
        return {"step": step, "action": action, "sound": sound, "kl": 0.0, "spam": 0.0, "format_exploit": 0.0} | changes

    start = row(0, kl=9.0)
    assert react([start], limits).action == "none"  # before training nothing is beyond a limit
    assert react([start, row(1), row(2, kl=0.2)], limits).action == "none"
    assert react([start, row(1, kl=0.2), row(2, kl=0.2)], limits).action == "alpha"
    assert react([start, row(1, spam=0.05)], limits).action == "none"
    assert "ask spam" in str(beyond([start, row(1, spam=0.06)], limits))
    assert "exploit" in str(beyond([start, row(1, format_exploit=0.04)], limits))
    assert "nan" in str(beyond([start, row(1, kl=float("nan"))], limits))
    dear = row(1, "alpha", False, spam=0.1)
    back = react([start, dear, row(2, spam=0.1)], limits)
    assert (back.action, back.sound) == ("back", False)
    assert back.guard.startswith("back to step 0")
    gone = row(2, "back", False, spam=0.1)
    assert react([start, dear, gone, row(3, spam=0.1)], limits).action == "stop"


def test_the_loss_is_ours(tmp_path: Path) -> None:
    """TRL's loss on a batch equals `grpo_loss` over the policy's own tokens, ratio 1, with our advantages."""
    with_adapter = base()
    policy = new_adapter(with_adapter, 4, 8, seed=0)
    run = run_of(tmp_path, beta=0.3, temperature=3.0)
    reference = {name: weight + 0.05 for name, weight in adapter_weights(policy).items()}
    trainer = DialogueTrainer(policy, with_adapter, reference, run, Memory(0.3), {})
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    inputs = trainer._generate_and_score_completions([{"prompt": "-"} for _ in range(4)])
    own = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    logps, _, _ = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, own.shape[1])
    reshaped = (2, 2, -1)
    expected, diagnostics = grpo_loss(
        logps.view(reshaped),
        logps.detach().view(reshaped),
        inputs["ref_per_token_logps"].view(reshaped),
        inputs["advantages"].view(2, 2, 1),
        0.2,
        0.3,
        "pick",
        own.view(reshaped),
    )
    assert float(diagnostics["kl"]) > 1e-4
    assert float(trainer._compute_loss(trainer.model, inputs)) == pytest.approx(float(expected), rel=1e-4)
    rewards = torch.tensor([paid.total for paid in trainer._scored]).view(2, 2)
    best = inputs["advantages"].view(2, 2)
    live = rewards[:, 0] != rewards[:, 1]
    assert torch.equal(best.argmax(1)[live], rewards.argmax(1)[live])
    assert float(best.abs().max()) > 0.5


def test_questions_that_went_badly_come_again(tmp_path: Path) -> None:
    """A share .3 of four places: one of each batch is drawn among those that failed, the others follow the order."""
    with_adapter = base()
    policy = new_adapter(with_adapter, 4, 8, seed=0)
    run = run_of(tmp_path, priority={"share": 0.3, "failure_factor": 2.0}, questions=4, group=2)
    memory = Memory(0.01, success=dict.fromkeys("abcde", 1.0) | {"f": 0.0})
    trainer = DialogueTrainer(policy, with_adapter, adapter_weights(policy), run, memory, {})
    for batch in range(10):
        names = [one.id for one in trainer.questions_of(batch)]
        assert len(names) == 4
        assert "f" in names
        assert names == [one.id for one in trainer.questions_of(batch)]
    memory.success.clear()
    batches = [[one.id for one in trainer.questions_of(batch)] for batch in range(10)]
    assert all(len(set(names)) == 4 for names in batches)
    assert any("f" not in names for names in batches)


def test_without_vllm_it_is_not_asked_for(tmp_path: Path) -> None:
    with pytest.raises(LeverlabError, match=r"not installed; install it .* or set grpo\.generation=cache"):
        trained(run_of(tmp_path, generation="vllm"))


class FakeVllm:
    """TRL's `VLLMGeneration`, but that transformers' `generate` draws, with the weights of the last `sync_weights`."""

    made: ClassVar[list["FakeVllm"]] = []

    def __init__(self, model: Any, **settings: Any) -> None:
        self.model, self.settings, self.synced, self.calls = model, settings, {}, 0
        FakeVllm.made.append(self)

    def sync_weights(self) -> None:
        self.synced = adapter_weights(self.model)

    def generate(self, prompts: Any, images: None, num_generations: int, profiler: Any) -> Any:
        now = adapter_weights(self.model)
        assert all(torch.equal(self.synced[name], now[name]) for name in now)
        self.calls += 1
        limits = Limits(0, self.settings["generation_kwargs"]["max_tokens"])
        say = generate_engine(self.model, base().chat, limits, self.settings["temperature"])
        found = [said for prompt in prompts for said in say([prompt])]  # alone, as a fake has time
        return prompts, [ids for ids, _ in found], [[[one] for one in logps] for _, logps in found], None


def test_dialogues_of_vllm_are_learnt_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds the weights of each step when it is asked, is asked for the tokens of one turn, and at the temperature.

    What it draws has the probability that the policy gives it: TRL's correction finds nothing to correct.
    """
    monkeypatch.setattr("leverlab.lm.grpo.is_vllm_available", lambda: True)
    monkeypatch.setattr("trl.trainer.grpo_trainer.VLLMGeneration", FakeVllm)
    logged: list[dict[str, float]] = []
    monkeypatch.setattr("trl.trainer.grpo_trainer.GRPOTrainer.log", lambda self, logs, _=None: logged.append(
        logs | {name: values[-1] for name, values in self._metrics["train"].items()}))  # fmt: skip
    trained(run_of(tmp_path, generation="vllm", temperature=0.8))
    (fake,) = FakeVllm.made
    assert (fake.settings["generation_kwargs"], fake.settings["temperature"]) == ({"max_tokens": 6}, 0.8)
    assert fake.settings["mode"] == "colocate"
    assert fake.calls >= 4
    records = read_records(tmp_path / "rollouts" / "000003.jsonl", RewardRecord)
    assert len(records) == 4
    assert logged
    for row in logged[:4]:
        assert row["sampling/sampling_logp_difference/max"] == pytest.approx(0.0, abs=1e-4)
        assert row["sampling/importance_sampling_ratio/min"] == pytest.approx(1.0, abs=1e-3)
        assert row["sampling/importance_sampling_ratio/max"] == pytest.approx(1.0, abs=1e-3)


def test_verified_reward_has_a_reason_for_each_term() -> None:
    from leverlab.lm.turns import parse_turn
    from tests.lm.scripted import ask, dialogue, final

    found = dialogue(question(), [ask("home"), final("Oslo")])
    rollout = Rollout(found, [1], [2, 3], [True, True], [-0.1, -0.2])
    paid = verified(rollout, 0.07)
    assert paid.total == pytest.approx(1.0)
    assert set(paid.terms) == set(paid.reasons) == {"correct", "parses", "thought", "needless"}
    assert parse_turn(found.turns[0].text).parses
    assert json.dumps(dict(paid.terms))


def test_an_evaluation_beyond_the_limit_by_itself_is_not_sound() -> None:
    """(.04 + .05 + .22) / 3 = .103 keeps to .12; the policy itself does not: nobody goes back to it or chooses it."""
    limits = LadderParams(window=3, kl=0.12, spam=1, format_exploit=1, alpha_factor=1, beta_factor=1, rollbacks=0)
    rows = [
        {"step": step, "action": "none", "sound": True, "spam": 0.0, "format_exploit": 0.0, "kl": kl}
        for step, kl in enumerate((0.0, 0.04, 0.05, 0.22))
    ]
    assert (react(rows, limits).action, react(rows, limits).sound) == ("none", False)
    assert react(rows[:3], limits).sound


def test_only_the_adapter_is_kept(unbroken: tuple[Run, Memory, dict[str, torch.Tensor]]) -> None:
    """Not the reference, which the trainer keeps beside it."""
    run, _, _ = unbroken
    assert not [path for path in (run.folder / "steps").rglob("*") if path.is_dir() and path.parent.name != "steps"]


def test_a_beta_that_the_guard_has_raised_comes_back_to_its_bounds() -> None:
    """Above the maximum of 1: held to 1 first, then halved, because the KL is below the window."""
    adaptive = DialogueGrpoParams.model_validate(PARAMS).adaptive_kl
    assert adapted(1.4, 0.01, adaptive) == pytest.approx(0.5)
    assert adapted(0.0001, 0.5, adaptive) == pytest.approx(0.002)
    assert adapted(0.3, 0.15, adaptive) == pytest.approx(0.3)
