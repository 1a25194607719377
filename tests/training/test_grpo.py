"""GRPO and its control: ratios, flat groups, dropout, references, credit, order of updates, and that both learn."""

import copy
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from leverlab.config.grpo import GrpoParams, PriorityParams
from leverlab.config.schedule import Schedule
from leverlab.errors import LeverlabError
from leverlab.selector.network import Selector
from leverlab.training.groups import Group
from leverlab.training.grpo import Curriculum, Grpo, Objective, Practice, Rejection, policy_losses
from leverlab.training.loop import Optimisation, Row, train
from leverlab.training.rollouts import Moment, OnlineRollouts, StoredRollouts, Trajectories
from stages.grpo import beta_after

SHOTS = 3
ONES = (1.0,) * SHOTS
UNIFORM = PriorityParams(share=0.0, failure_factor=1.0)
GUARD = {
    "window": 1,
    "min_kl": None,
    "max_kl": None,
    "min_entropy": None,
    "min_distinct": None,
    "max_identical": None,
    "max_falls": None,
    "max_rollbacks": 1,
    "lr_factor": 0.5,
}


def answer_accuracy(query: str, text: str) -> float:
    """Whatever the answer, for rewards that do not ask for it."""
    return 0.0


def objective(reference: Selector, **changes: Any) -> Grpo:
    settings: dict[str, Any] = {
        "advantage": "zscore",
        "credit": "list",
        "shot_weights": ONES,
        "clip_epsilon": 0.2,
        "beta": 0.0,
        "ratio_level": "pick",
    } | changes
    for name in ("clip_epsilon", "beta"):
        if settings[name] is not None:
            settings[name] = Schedule.model_validate(settings[name])
    return Grpo(reference, **settings)


def drawn_by_hand(toy: Any, rewards: Any = None, queries: int = 3, lists: int = 4) -> Trajectories:
    """Random lists of three of five candidates, with given rewards (B, G, T), random ones by default."""
    generator = torch.Generator().manual_seed(2)
    picks = torch.rand(queries, lists, 5, generator=generator).argsort(-1)[..., :SHOTS]
    if rewards is None:
        rewards = torch.rand(queries, lists, SHOTS, generator=generator, dtype=torch.float64)
    inputs = toy.data(queries).batch([f"q{b}" for b in range(queries)])
    return Trajectories(inputs, picks, torch.as_tensor(rewards, dtype=torch.float64), torch.zeros(queries))


def logp(policy: Selector, drawn: Trajectories) -> Tensor:
    return policy.list_logp(policy.encode(drawn.inputs.query, drawn.inputs.demos), drawn.picks_BGT)


def gradient(loss: Tensor, policy: Selector) -> Tensor:
    parts = torch.autograd.grad(loss, list(policy.parameters()), allow_unused=True)
    return torch.cat([part.flatten() for part in parts if part is not None])


def zscore(rewards_BG: Tensor) -> Tensor:
    """Advantages of groups, a loop: (r - mean) / (population deviation + .01)."""
    rows = []
    for rewards in rewards_BG.tolist():
        mean = sum(rewards) / len(rewards)
        deviation = (sum((reward - mean) ** 2 for reward in rewards) / len(rewards)) ** 0.5
        rows.append([(reward - mean) / (deviation + 0.01) for reward in rewards])
    return torch.tensor(rows)


def move(policy: Selector, loss: Tensor, lr: float = 0.02) -> None:
    with torch.no_grad():
        for parameter, slope in zip(
            policy.parameters(), torch.autograd.grad(loss, list(policy.parameters())), strict=True
        ):
            parameter.sub_(lr * slope)


@pytest.mark.parametrize("level", ["pick", "trajectory"])
def test_the_ratio_is_one_at_the_first_update_and_then_moves(toy: Any, level: str) -> None:
    policy, drawn = toy.selector(sharpness=3), drawn_by_hand(toy)
    closure = objective(toy.selector(seed=1), ratio_level=level).prepare(policy, drawn, 0.0)
    loss, first = closure()
    assert (float(first["approx_kl"]), float(first["clipfrac"]), float(first["ratio_max"])) == (0, 0, 1)
    move(policy, loss)
    _, second = closure()
    assert float(second["approx_kl"]) > 1e-6
    assert float(second["ratio_max"]) > 1.001
    _, fresh = objective(toy.selector(seed=1), ratio_level=level).prepare(policy, drawn, 0.0)()  # type: ignore[misc]
    assert float(fresh["approx_kl"]) == 0


@pytest.mark.parametrize("epsilon", [0.05, None])
def test_the_second_update_is_clipped_by_loop(toy: Any, epsilon: float | None) -> None:
    """-mean of min(rho A, clip(rho, .95, 1.05) A) over all picks, rho against the policy before the first update."""
    policy, drawn = toy.selector(sharpness=3), drawn_by_hand(toy)
    before = logp(policy, drawn).detach().tolist()
    advantages = zscore(drawn.rewards_BGT.mean(-1)).tolist()
    closure = objective(toy.selector(seed=1), clip_epsilon=epsilon).prepare(policy, drawn, 0.0)
    move(policy, closure()[0], lr=0.1)
    after = logp(policy, drawn).detach().tolist()
    terms, outside = [], 0
    for b, g, t in itertools.product(range(3), range(4), range(SHOTS)):
        ratio, advantage = float(np.exp(after[b][g][t] - before[b][g][t])), advantages[b][g]
        low, high = (1 - epsilon, 1 + epsilon) if epsilon else (0.0, np.inf)
        terms.append(min(ratio * advantage, min(max(ratio, low), high) * advantage))
        outside += not low <= ratio <= high
    loss, diagnostics = closure()
    assert float(loss.detach()) == pytest.approx(-sum(terms) / 36, rel=1e-4)
    assert float(diagnostics["clipfrac"]) == pytest.approx(outside / 36)
    assert (outside > 5) == (epsilon is not None)


def test_the_first_gradient_is_that_of_the_policy_gradient(toy: Any) -> None:
    """At ratio 1 the gradient of the loss is that of -mean(A log pi), whatever the clip."""
    policy, drawn = toy.selector(sharpness=3), drawn_by_hand(toy)
    advantages_BG = zscore(drawn.rewards_BGT.mean(-1))
    expected = gradient(-(advantages_BG[..., None] * logp(policy, drawn)).mean(), policy)
    loss, _ = objective(policy).prepare(policy, drawn, 0.0)()  # type: ignore[misc]
    torch.testing.assert_close(gradient(loss, policy), expected, rtol=1e-4, atol=1e-6)


def test_flat_groups_are_dropped_and_counted(toy: Any) -> None:
    """Of three groups the middle one is flat: the loss is that of the other two, and a third is reported."""
    policy, reference = toy.selector(sharpness=3), toy.selector(seed=1)
    rewards = drawn_by_hand(toy).rewards_BGT
    rewards[1] = 0.7
    drawn = drawn_by_hand(toy, rewards)
    for arm in (objective(reference, beta=0.3), Rejection(2, ONES)):
        loss, diagnostics = arm.prepare(policy, drawn, 0.0)()
        inputs = drawn.inputs
        kept = Trajectories(toy.data(3).batch(["q0", "q2"]), drawn.picks_BGT[[0, 2]], rewards[[0, 2]], torch.zeros(2))
        alone, alone_diagnostics = arm.prepare(policy, kept, 0.0)()
        assert inputs.query_ids == ("q0", "q1", "q2")
        torch.testing.assert_close(loss, alone)
        torch.testing.assert_close(gradient(loss, policy), gradient(alone, policy))
        assert float(diagnostics["flat_groups"]) == pytest.approx(1 / 3)
        assert float(alone_diagnostics["flat_groups"]) == 0
        assert float(diagnostics["reward"]) == pytest.approx(float(rewards.mean()))


@pytest.mark.parametrize("credit", ["list", "to_go"])
def test_a_batch_of_flat_groups_gives_no_update(toy: Any, credit: str) -> None:
    drawn = drawn_by_hand(toy, torch.full((3, 4, SHOTS), 0.3))
    for arm in (objective(toy.selector(), credit=credit), Rejection(2, ONES)):
        loss, diagnostics = arm.prepare(toy.selector(), drawn, 0.0)()
        assert loss is None
        assert {name: round(float(value), 6) for name, value in diagnostics.items()} == {
            "reward": 0.3,
            "flat_groups": 1,
        }


def test_to_go_sees_a_spread_that_the_list_return_does_not(toy: Any) -> None:
    """Rewards (1, 0, 0) and (0, 0, 1) have one mean, but the last prefix tells the third picks apart."""
    rewards = torch.tensor([[[1.0, 0, 0], [0, 0, 1]]], dtype=torch.float64)
    drawn = drawn_by_hand(toy, rewards, queries=1, lists=2)
    policy = toy.selector()
    assert objective(policy).prepare(policy, drawn, 0.0)()[0] is None
    assert objective(policy, credit="to_go").prepare(policy, drawn, 0.0)()[0] is not None


def test_dropout_is_off_in_every_log_probability(toy: Any) -> None:
    """The policy comes in training mode, as imitation leaves it, with dropout of a half."""
    drawn = drawn_by_hand(toy)
    for arm in (objective(toy.selector(seed=1).eval(), beta=0.1), Rejection(2, ONES)):
        policy = toy.selector(dropout=0.5, sharpness=3).train()
        closure = arm.prepare(policy, drawn, 0.0)
        loss, diagnostics = closure()  # type: ignore[misc]
        assert not policy.training
        assert float(diagnostics.get("approx_kl", torch.tensor(0.0))) == 0
        plain, _ = arm.prepare(toy.selector(sharpness=3), drawn, 0.0)()  # type: ignore[misc]
        assert float(loss.detach()) == float(plain.detach())


def test_kl_to_the_reference_by_loop_and_zero_against_itself(toy: Any) -> None:
    """k3 = r - 1 - log r with r = reference / policy, the mean over all picks."""
    policy, reference, drawn = toy.selector(sharpness=3), toy.selector(seed=1, sharpness=3), drawn_by_hand(toy)
    loss, same = objective(copy.deepcopy(policy), beta=0.5).prepare(policy, drawn, 0.0)()  # type: ignore[misc]
    assert float(same["kl_train"]) == 0
    assert float(loss.detach()) == float(same["policy_loss"])
    loss, other = objective(reference, beta=0.5).prepare(policy, drawn, 0.0)()  # type: ignore[misc]
    log_ratio = (logp(reference, drawn) - logp(policy, drawn)).detach().flatten().tolist()
    expected = sum(np.exp(value) - 1 - value for value in log_ratio) / len(log_ratio)
    assert expected > 0.05
    assert float(other["kl_train"]) == pytest.approx(expected, rel=1e-4)
    assert float(loss.detach()) == pytest.approx(float(other["policy_loss"]) + 0.5 * expected, rel=1e-4)
    assert "kl" not in other  # that column is the exact divergence on validation questions


def test_the_reference_stays_where_it_is(toy: Any) -> None:
    policy, reference, drawn = toy.selector(sharpness=3), toy.selector(seed=1), drawn_by_hand(toy)
    before = copy.deepcopy(reference.state_dict())
    loss, _ = objective(reference, beta=0.5).prepare(policy, drawn, 0.0)()  # type: ignore[misc]
    loss.backward()
    assert all(parameter.grad is None for parameter in reference.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in reference.state_dict().items())


def credited(toy: Any, credit: str, shot_weights: Sequence[float], advantages_BGT: Tensor) -> None:
    """Check that the first gradient is that of -mean(A log pi) with the given credit of every pick."""
    policy, drawn = toy.selector(sharpness=3), drawn_by_hand(toy)
    arm = objective(policy, credit=credit, shot_weights=tuple(shot_weights))
    loss, _ = arm.prepare(policy, drawn, 0.0)()
    expected = gradient(-(advantages_BGT * logp(policy, drawn)).mean(), policy)
    torch.testing.assert_close(gradient(loss, policy), expected, rtol=1e-4, atol=1e-6)


def test_weight_on_one_shot_alone_credits_no_later_pick_under_to_go(toy: Any) -> None:
    """Weights (1, 0, 0) on three prefixes count 3 r_1; the first pick's return is their mean over three, r_1."""
    rewards = drawn_by_hand(toy).rewards_BGT
    first = zscore(rewards[..., 0])
    none = torch.zeros_like(first)
    credited(toy, "to_go", (1, 0, 0), torch.stack([first, none, none], dim=-1))
    credited(toy, "list", (1, 0, 0), torch.stack([first, first, first], dim=-1))


def test_weight_on_the_last_shot_credits_every_pick(toy: Any) -> None:
    """Weights (0, 0, 1) count 3 r_3: returns to go 3 r_3 / 3, 3 r_3 / 2, 3 r_3 / 1."""
    last = drawn_by_hand(toy).rewards_BGT[..., 2]
    credited(toy, "to_go", (0, 0, 1), torch.stack([zscore(last), zscore(1.5 * last), zscore(3 * last)], dim=-1))


def test_returns_to_go_by_hand(toy: Any) -> None:
    r = drawn_by_hand(toy).rewards_BGT
    returns = [(r[..., 0] + r[..., 1] + r[..., 2]) / 3, (r[..., 1] + r[..., 2]) / 2, r[..., 2]]
    credited(toy, "to_go", ONES, torch.stack([zscore(values) for values in returns], dim=-1))


@pytest.mark.parametrize("credit", ["list", "to_go"])
def test_only_the_proportions_of_shot_weights_matter(toy: Any, credit: str) -> None:
    """Mean-centred advantages would grow with the weights."""
    policy, drawn = toy.selector(sharpness=3), drawn_by_hand(toy)
    gradients = []
    for factor in (1, 7):
        weights = (factor * 1.0, factor * 2.0, factor * 0.5)
        arm = objective(policy, advantage="mean_centred", credit=credit, shot_weights=weights)
        gradients.append(gradient(arm.prepare(policy, drawn, 0.0)()[0], policy))  # type: ignore[misc]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_rejection_imitates_the_best_lists_by_hand(toy: Any) -> None:
    """Weights (1, 1, 2) / 4: the lists of query b are worth the numbers below; the two best are kept. List 2 of query
    0 has its worth of .3 from the first two prefixes, so that its plain sum, 1.2, is larger than that of list 3."""
    worth = torch.tensor([[0.1, 0.9, 0.3, 0.5], [0.8, 0.2, 0.7, 0.1]], dtype=torch.float64)
    rewards = torch.zeros(2, 4, SHOTS, dtype=torch.float64)
    rewards[..., 2] = 2 * worth  # 2 worth * 2 / 4
    rewards[0, 2] = torch.tensor([0.6, 0.6, 0.0])
    policy, drawn = toy.selector(sharpness=3), drawn_by_hand(toy, rewards, queries=2)
    loss, diagnostics = Rejection(2, (1.0, 1.0, 2.0)).prepare(policy, drawn, 0.0)()  # type: ignore[misc]
    total = logp(policy, drawn).detach().sum(-1)
    expected = -(total[0, 1] + total[0, 3] + total[1, 0] + total[1, 2]) / 4
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-5)
    assert float(diagnostics["reward"]) == pytest.approx(float(rewards.mean()))
    all_four, _ = Rejection(4, ONES).prepare(policy, drawn, 0.0)()  # type: ignore[misc]
    assert float(all_four.detach()) == pytest.approx(-float(total.mean()), rel=1e-5)


def test_more_lists_to_keep_than_a_group_has_are_refused(toy: Any) -> None:
    with pytest.raises(LeverlabError, match="keep"):
        Rejection(5, ONES).prepare(toy.selector(), drawn_by_hand(toy), 0.0)


class Recording:
    """Rollouts that note what they were asked and return lists of hand-made rewards."""

    def __init__(self, toy: Any, flat: Callable[[int], bool] = lambda step: False):
        self.toy, self.flat = toy, flat
        self.query_ids = [f"q{index}" for index in range(5)][::-1]
        self.asked: list[tuple[tuple[str, ...], int, int]] = []
        self.progress: list[float] = []
        self.success: dict[str, float] = {}

    def draw(self, policy: Selector, query_ids: Sequence[str], at: Moment, lists: int, shots: int) -> Trajectories:
        self.asked.append((tuple(query_ids), at.epoch, at.step))
        self.progress.append(at.progress)
        drawn = drawn_by_hand(self.toy, queries=len(query_ids), lists=lists)
        rewards = torch.zeros_like(drawn.rewards_BGT) if self.flat(at.step) else drawn.rewards_BGT
        success = torch.tensor([self.success.get(query, 0.5) for query in query_ids])
        return Trajectories(self.toy.data(5).batch(query_ids), drawn.picks_BGT, rewards, success)


def losses_of(policy: Selector, rollouts: Any, make: Callable[[Sequence[Row]], Objective], **changes: Any) -> Any:
    settings: dict[str, Any] = {"epochs": 2, "batch": 2, "lists": 4, "shots": SHOTS, "updates": 2, "seed": 0}
    settings |= {"practice": Practice(), "priority": UNIFORM, "curriculum": None} | changes
    return policy_losses(policy, rollouts, make, **settings)


def closures(rollouts: Any, policy: Selector, arm: Objective, epoch: int, **changes: Any) -> Any:
    return losses_of(policy, rollouts, lambda rows: arm, **changes)(epoch, [])


def test_every_query_is_drawn_once_an_epoch_at_a_step_of_its_own(toy: Any) -> None:
    """5 queries in batches of 2: steps 0, 1, 2 in epoch 1 and 3, 4, 5 in epoch 2; two updates each."""
    policy, rollouts = toy.selector(), Recording(toy)
    for epoch in (1, 2):
        assert len(list(closures(rollouts, policy, objective(policy), epoch))) == 6
    assert [(epoch, step) for _, epoch, step in rollouts.asked] == [(1, 0), (1, 1), (1, 2), (2, 3), (2, 4), (2, 5)]
    orders = [[query for ids, at, _ in rollouts.asked if at == epoch for query in ids] for epoch in (1, 2)]
    assert [sorted(order) for order in orders] == [[f"q{index}" for index in range(5)]] * 2
    assert orders[0] != orders[1]
    again = Recording(toy)
    again.query_ids = sorted(again.query_ids)  # the order of a file does not matter
    list(closures(again, policy, objective(policy), 1))
    assert again.asked == rollouts.asked[:3]


def test_a_flat_batch_has_no_loss_and_its_place_among_the_updates(toy: Any) -> None:
    policy, rollouts = toy.selector(), Recording(toy, flat=lambda step: step == 1)
    losses = [closure()[0] for closure in closures(rollouts, policy, objective(policy), 1, updates=3)]
    assert [loss is None for loss in losses] == [False] * 3 + [True] * 3 + [False] * 3
    assert len(rollouts.asked) == 3


def test_a_batch_is_drawn_after_the_updates_on_the_one_before(toy: Any) -> None:
    policy, rollouts, drawn_at = toy.selector(), Recording(toy), []
    for _ in closures(rollouts, policy, objective(policy), 1):
        drawn_at.append(len(rollouts.asked))
    assert drawn_at == [1, 1, 2, 2, 3, 3]


def test_the_objective_is_asked_for_once_an_epoch_with_the_rows_so_far(toy: Any) -> None:
    policy, seen = toy.selector(), list[Any]()

    def make(rows: Sequence[Row]) -> Objective:
        seen.append(list(rows))
        return objective(policy)

    losses = losses_of(policy, Recording(toy), make, updates=1)
    rows: list[Row] = [{"epoch": 0, "kl": 0.0}]
    assert len(list(losses(1, rows))) == 3
    rows.append({"epoch": 1, "kl": 0.5})
    list(losses(2, rows))
    assert seen == [rows[:1], rows]


def test_offline_the_old_policy_is_the_one_that_visits_the_batch(toy: Any) -> None:
    """Stored groups were made by no policy: at the first of two updates on a batch the ratio is 1, though the policy
    moved on the batch before, and only at the second is it not."""
    data, policy = toy.data(5), toy.selector(sharpness=3)
    groups = []
    for query in [f"q{index}" for index in range(5)]:
        lists = list(itertools.permutations(data.batch([query]).candidate_ids[0], SHOTS))[::13]
        scores = np.array([[toy.hashed(query, demos[: t + 1]) for t in range(SHOTS)] for demos in lists])
        groups.append(Group(query, tuple(lists), ("random",) * len(lists), {"answer_prob": scores, "correct": scores}))
    rollouts = StoredRollouts(data, groups, lambda terms, progress: terms["answer_prob"])
    for epoch in (1, 2):
        moved = []
        for closure in closures(rollouts, policy, objective(policy), epoch):
            loss, diagnostics = closure()
            moved.append((float(diagnostics["approx_kl"]), float(diagnostics["ratio_max"])))
            move(policy, loss)
        assert moved[::2] == [(0.0, 1.0)] * 3
        assert all(kl > 1e-7 and ratio > 1 for kl, ratio in moved[1::2])


PAID = "d3"


def expected_reward(policy: Selector, data: Any, questions: int) -> float:
    """Chance that the first pick is the paid demo, over the questions that are offered it."""
    batch = data.batch([f"q{index}" for index in range(questions)])
    places = [ids.index(PAID) for ids in batch.candidate_ids]
    with torch.no_grad():
        encoded = policy.eval().encode(batch.query, batch.demos)
        return float(policy.list_logp(encoded, torch.tensor(places)[:, None, None]).exp().mean())


@pytest.mark.parametrize("name", ["grpo list", "grpo to_go", "grpo trajectory", "rejection"])
def test_both_arms_learn_to_pick_the_demo_that_pays(toy: Any, tmp_path: Path, name: str) -> None:
    """A list is right once it holds the paid demo, so the demo should come first. Chance gives 1 in 8."""
    data = toy.data(4, candidates=8)
    policy = toy.selector()
    scorer = toy.scorer(lambda question, demos: 0.9 if PAID in demos else 0.1)
    query_ids = [f"q{index}" for index in range(4)]
    rollouts = OnlineRollouts(data, scorer, lambda terms, progress: terms["correct"], answer_accuracy, (), query_ids, 0)
    reference = copy.deepcopy(policy).eval()
    arm: Objective = {
        "grpo list": objective(reference, beta=0.01),
        "grpo to_go": objective(reference, beta=0.01, credit="to_go"),
        "grpo trajectory": objective(reference, ratio_level="trajectory", advantage="rank"),
        "rejection": Rejection(4, ONES),
    }[name]
    losses = losses_of(policy, rollouts, lambda rows: arm, epochs=8, lists=16)
    settings = Optimisation(8, 4, Schedule.model_validate(0.01), 0.0, 0.1, 1.0, 0)
    before = expected_reward(policy, data, 4)

    def validate(selector: Selector) -> Row:
        return {"val_accuracy": expected_reward(selector, data, 4), "val_loss": 0.0, "kl": 0.0}

    train(policy, settings, losses, validate, tmp_path, lambda row: None)
    assert before < 0.2
    assert expected_reward(policy, data, 4) > 0.8


def params(enabled: bool = True, **adaptive: float) -> GrpoParams:
    window = {"enabled": enabled, "low": 0.01, "high": 0.1, "factor": 2.0, "minimum": 0.04, "maximum": 0.3} | adaptive
    return GrpoParams.model_validate(
        {
            "init": "rce",
            "reference": "rce",
            "rollouts": "online",
            "group": 4,
            "updates": 2,
            "advantage": "zscore",
            "credit": "to_go",
            "ratio_level": "pick",
            "clip_epsilon": 0.2,
            "kl_beta": 0.1,
            "adaptive_kl": window,
            "control": {"keep": 2, "lr": 0.001},
            "guard": GUARD,
            "priority": {"share": 0.0, "failure_factor": 2.0},
            "curriculum": {"epochs": 0, "queries": 0.5, "keep": 2},
            "epochs": 2,
            "batch": 2,
            "lr": 0.001,
            "weight_decay": 0.0,
            "warmup": 0.0,
            "grad_clip": 1.0,
        }
    )


def test_beta_by_hand() -> None:
    """From .1, window .01 to .1, factor 2, bounds .04 to .3: up to .2, up to the bound .3, rest, down to .15, .075,
    then the bound .04."""
    history = [0.2, 0.5, 0.05, 0.001, 0.002, 0.0]
    expected = [0.1, 0.2, 0.3, 0.3, 0.15, 0.075, 0.04]
    assert [beta_after(params(), history[:epochs]).at(0.5) for epochs in range(7)] == pytest.approx(expected)
    assert beta_after(params(enabled=False), history).at(0.5) == 0.1


def test_beta_cannot_follow_a_divergence_that_is_not_a_number() -> None:
    with pytest.raises(LeverlabError, match="nan"):
        beta_after(params(), [0.2, float("nan")])


def test_progress_runs_from_0_to_1_over_the_batches_of_all_epochs(toy: Any) -> None:
    policy, rollouts = toy.selector(), Recording(toy)
    for epoch in (1, 2):
        list(closures(rollouts, policy, objective(policy), epoch))
    assert rollouts.progress == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])


def test_beta_and_epsilon_follow_their_schedules(toy: Any) -> None:
    """Beta from 0 to 1: a quarter of the way the KL weighs .25. Epsilon from .01 to .5 clips nothing at the end."""
    policy, reference, drawn = toy.selector(sharpness=3), toy.selector(seed=1), drawn_by_hand(toy)
    moving = objective(
        reference,
        beta={"kind": "linear", "start": 0, "end": 1},
        clip_epsilon={"kind": "linear", "start": 0.01, "end": 0.5},
    )
    for progress, beta in ((0.0, 0.0), (0.25, 0.25)):
        loss, diagnostics = moving.prepare(policy, drawn, progress)()  # type: ignore[misc]
        expected = diagnostics["policy_loss"] + beta * diagnostics["kl_train"]
        torch.testing.assert_close(loss.detach(), expected)
        assert float(diagnostics["kl_beta"]) == beta
    early, late = (moving.prepare(policy, drawn, progress) for progress in (0.0, 1.0))
    move(policy, early()[0], lr=0.02)  # type: ignore[misc]
    assert float(early()[1]["clipfrac"]) > float(late()[1]["clipfrac"])  # type: ignore[misc]


def test_queries_that_failed_come_again(toy: Any) -> None:
    """Of 40 queries q0 alone was ever wrong: in epoch 2 it holds a place in every batch of 10 that takes any."""
    policy, rollouts, practice = toy.selector(), Recording(toy), Practice()
    rollouts.query_ids = [f"q{index}" for index in range(5)]
    rollouts.success = {f"q{index}": 1.0 for index in range(1, 5)} | {"q0": 0.0}
    priority = PriorityParams(share=0.3, failure_factor=2.0)
    arm = objective(policy)
    settings: dict[str, Any] = {"practice": practice, "priority": priority, "batch": 4}
    list(closures(rollouts, policy, arm, 1, **settings))
    assert practice.success == rollouts.success
    first = [query for ids, _, _ in rollouts.asked for query in ids]
    assert sorted(first) == rollouts.query_ids  # nothing was known before
    list(closures(rollouts, policy, arm, 2, **settings))
    four, one = (ids for ids, epoch, _ in rollouts.asked if epoch == 2)
    assert (len(four), len(one)) == (4, 1)
    assert "q0" in four
    state = practice.state_dict()
    again = Practice()
    again.load_state_dict(state)
    assert again.success == practice.success
    for damaged in ({"q0": 1.5}, {"q0": float("nan")}, {3: 0.5}):
        with pytest.raises(ValueError, match="success from 0 to 1"):
            again.load_state_dict(damaged)  # type: ignore[arg-type]


def test_a_curriculum_draws_the_easy_queries_first_and_keeps_best_and_worst(toy: Any) -> None:
    policy, rollouts, seen = toy.selector(), Recording(toy), list[tuple[int, ...]]()

    class Arm:
        def prepare(self, policy: Selector, drawn: Trajectories, progress: float) -> None:
            seen.append(tuple(drawn.rewards_BGT.shape))

    easy = Curriculum(1, frozenset({"q1", "q3"}), 2)
    for epoch in (1, 2):
        list(closures(rollouts, policy, Arm(), epoch, curriculum=easy))
    assert sorted(rollouts.asked[0][0]) == ["q1", "q3"]
    assert [len(ids) for ids, _, _ in rollouts.asked] == [2, 2, 2, 1]
    assert seen == [(2, 2, SHOTS), (2, 4, SHOTS), (2, 4, SHOTS), (1, 4, SHOTS)]
