"""The guard against real failures: GRPO with the committed settings, but for the one that provokes the failure."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from leverlab.config.guard import GuardParams
from leverlab.report.training import Intervention, interventions
from leverlab.training.loop import NotFiniteError, Row, checkpoint_name
from leverlab.training.runs import choose_epoch
from tests.training.guarded_run import GRPO, PAID, World, changed, make_world

GUARD = GRPO.guard
TOLD = {  # by which words each limit is known in a row, with its committed value
    "max_kl": rf"KL \S+ nats per pick is above {GUARD.max_kl}",
    "min_entropy": rf"pick entropy \S+ nats is below {GUARD.min_entropy}",
    "min_distinct": rf"picks show \S+% of the demos that random ones would, below {GUARD.min_distinct or 0:.1%}",
    "max_identical": rf"\S+% of the questions get the same list, more than {GUARD.max_identical or 0:.0%}",
}


class KilledError(Exception):
    """Stands for a kill."""


@pytest.fixture
def world(toy: Any) -> World:
    return make_world(toy)


def alone(limit: str) -> GuardParams:
    """The committed guard with one of its limits alone."""
    return GUARD.model_copy(update={name: None for name in TOLD if name != limit})


def one_demo(question: str, demos: tuple[str, ...]) -> float:
    """Every question is answered rightly once the list holds one and the same demo."""
    return 0.9 if PAID[0] in demos else 0.1


def one_list(question: str, demos: tuple[str, ...]) -> float:
    """P(answer) rises with every place at which the list is one and the same list."""
    return 0.1 + 0.8 * sum(demo == paid for demo, paid in zip(demos, PAID, strict=False)) / len(demos)


def stepped_in(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of metrics.csv at which the guard stepped in, after checks that hold for every guarded run.

    An epoch was undone (back, or stop as the last one) and is unsound, or neither; the report tells the undone ones in
    order, with the text of their row; the epoch that is chosen is a sound one.
    """
    undone = rows[rows["action"] != "none"]
    assert rows["sound"].tolist() == (rows["action"] == "none").tolist()
    assert set(undone["action"][:-1]) <= {"back"}
    assert "stop" not in rows["action"].tolist()[:-1]
    assert rows.loc[rows["sound"], "guard"].isna().all()
    told = [
        Intervention("grpo", 0, epoch, text, True) for epoch, text in zip(undone["epoch"], undone["guard"], strict=True)
    ]
    assert interventions({"sft": {0: rows[["epoch", "val_accuracy"]]}, "grpo": {0: rows}}) == told
    for strategy in ("val_accuracy", "kl"):
        assert rows["sound"][choose_epoch(rows, strategy)]
    return undone


def weights_are_equal(folder: Path, epoch: int, other: int) -> bool:
    return (folder / checkpoint_name(epoch)).read_bytes() == (folder / checkpoint_name(other)).read_bytes()


def test_a_healthy_run_is_left_alone(world: World, tmp_path: Path) -> None:
    """The committed settings alone: no epoch is undone while accuracy rises from .17 to .99."""
    rows = world.run(world.alike, tmp_path)
    assert stepped_in(rows).empty
    assert len(rows) == GRPO.epochs + 1
    assert rows["val_accuracy"][0] < 0.3
    assert rows["val_accuracy"][choose_epoch(rows, "val_accuracy")] > 0.9


def test_a_guard_that_is_silent_changes_no_weight(world: World, tmp_path: Path) -> None:
    params = changed(epochs=2)
    assert stepped_in(world.run(world.alike, tmp_path / "guarded", params)).empty
    world.run(world.alike, tmp_path / "free", params, guard=None)
    for epoch in range(3):
        name = checkpoint_name(epoch)
        assert (tmp_path / "guarded" / name).read_bytes() == (tmp_path / "free" / name).read_bytes()


def test_a_learning_rate_times_1000_ends_in_what_is_no_number(world: World, tmp_path: Path) -> None:
    """At a rate of 1 the penalty on the KL overflows at the second update, and at a half and a quarter too. The run
    ends with its start; without a guard it ends with an error and leaves no metrics at all."""
    wild = changed(lr=1000 * GRPO.lr.start)
    rows = world.run(world.alike, tmp_path / "guarded", wild)
    undone = stepped_in(rows)
    assert rows["action"].tolist() == ["none", "back", "back", "stop"]
    assert undone["guard"][1].startswith("back to epoch 0: the loss or its gradient is not a number at update 2 ")
    assert undone["guard"][3].endswith("(went back 2 times before)")
    assert choose_epoch(rows, "val_accuracy") == 0
    assert all(weights_are_equal(tmp_path / "guarded", epoch, 0) for epoch in (1, 2, 3))
    assert rows["val_accuracy"].nunique() == 1
    with pytest.raises(NotFiniteError, match="not a number at update 2 "):
        world.run(world.alike, tmp_path / "free", wild, guard=None)
    assert not (tmp_path / "free" / "metrics.csv").exists()


def test_a_learning_rate_times_1000_without_a_penalty_ends_with_an_entropy_of_0(world: World, tmp_path: Path) -> None:
    """Without a penalty all numbers are finite, and the policy is sure of a list in the first epoch. From there it has
    no way out by itself: its samples are all equal, so that no group has a spread and no update is made any more."""
    wild = changed(lr=1000 * GRPO.lr.start, kl_beta=0)
    rows = world.run(world.alike, tmp_path / "guarded", wild)
    undone = stepped_in(rows)
    assert rows["action"].tolist() == ["none", "back", "back", "stop"]
    assert undone["guard"].str.contains(TOLD["min_entropy"]).all()
    assert (undone["entropy"] < 0.01).all()
    assert choose_epoch(rows, "val_accuracy") == 0
    assert not weights_are_equal(tmp_path / "guarded", 1, 2)  # epoch 2 started anew, from where updates can be made
    free = world.run(world.alike, tmp_path / "free", wild, guard=None)
    assert len(free) == GRPO.epochs + 1
    assert (free["entropy"][1:] < 0.01).all()
    assert (free["val_accuracy"] < 0.3).all()
    assert weights_are_equal(tmp_path / "free", 3, GRPO.epochs)


def test_a_run_that_went_back_goes_on_to_learn(world: World, tmp_path: Path) -> None:
    """Ten times the learning rate: undone where the entropy is gone, and from there on with a smaller rate."""
    fast = changed(lr=10 * GRPO.lr.start, kl_beta=0)
    rows, free = (world.run(world.alike, tmp_path / str(guard), fast, guard) for guard in (GUARD, None))
    undone, chosen = stepped_in(rows), choose_epoch(rows, "val_accuracy")
    assert undone["action"].tolist()[0] == "back"
    assert undone["guard"].str.contains(TOLD["min_entropy"]).all()
    assert chosen > undone["epoch"].min()
    assert rows["entropy"][chosen] >= (GUARD.min_entropy or math.inf)
    assert free["entropy"].iloc[-1] < 0.03
    assert rows["val_accuracy"][chosen] > free["val_accuracy"].iloc[-1]


def test_killed_after_a_way_back_and_resumed(world: World, tmp_path: Path) -> None:
    """Four epochs, of which one after the first is undone."""
    fast = changed(lr=10 * GRPO.lr.start, kl_beta=0, epochs=4)

    def kill(row: Row) -> None:
        if row["action"] == "back":
            raise KilledError

    guard = alone("min_entropy")
    undone = stepped_in(world.run(world.alike, tmp_path / "whole", fast, guard))
    assert undone["epoch"].min() > 1
    with pytest.raises(KilledError):
        world.run(world.alike, tmp_path / "cut", fast, guard, on_epoch=kill)
    world.run(world.alike, tmp_path / "cut", fast, guard)
    for file in sorted((tmp_path / "whole").iterdir()):
        if file.name != "resume.pt":
            assert (tmp_path / "cut" / file.name).read_bytes() == file.read_bytes(), file.name


def test_a_reward_that_pays_one_demo_is_told_by_the_distinct_demos(world: World, tmp_path: Path) -> None:
    """The paid demo stands in every list; the other places are unpaid and the likes of it come there, so that lists
    still differ and entropy stays above 1: the distinct demos alone tell."""
    rows = world.run(one_demo, tmp_path / "guarded")
    undone = stepped_in(rows)
    assert undone["action"].tolist() == ["back", "back", "stop"]
    assert undone["guard"].str.contains(TOLD["min_distinct"]).all()
    assert undone["distinct_share"].max() < rows.loc[rows["sound"], "distinct_share"].min()
    free = world.run(one_demo, tmp_path / "free", guard=None)
    assert free["val_accuracy"].iloc[-1] == 1
    assert free["distinct_share"].min() < 0.3
    assert (free["entropy"] > 1).all()


@pytest.mark.parametrize("limit", ["min_entropy", "min_distinct", "max_identical"])
def test_a_reward_that_pays_one_demo_at_one_shot_breaks_each_limit(world: World, tmp_path: Path, limit: str) -> None:
    """One place, one paid demo: one list for all. The KL cannot pass ln 24 = 3.2 nats from a start that is near the
    uniform policy over 24 candidates."""
    undone = stepped_in(world.run(one_demo, tmp_path, guard=alone(limit), shots=1))
    assert undone["action"].tolist() == ["back", "back", "stop"]
    assert undone["guard"].str.contains(TOLD[limit]).all()


def test_a_reward_that_pays_one_list_is_told_by_identical_lists(world: World, tmp_path: Path) -> None:
    rows = world.run(one_list, tmp_path / "guarded", guard=alone("max_identical"))
    undone = stepped_in(rows)
    assert undone["action"].tolist()[0] == "back"
    assert undone["guard"].str.contains(TOLD["max_identical"]).all()
    assert undone["identical"].min() > rows.loc[rows["sound"], "identical"].max()
    free = world.run(one_list, tmp_path / "free", guard=None)
    assert free["identical"].iloc[-1] > 0.9
    assert free["entropy"].iloc[-1] < 0.1


def test_without_a_penalty_the_policy_drifts_beyond_the_limit_of_the_kl(world: World, tmp_path: Path) -> None:
    """From a start with sharp opinions (entropy 1.7 of 3.1 nats). With a penalty of .3 the same run stays within."""
    runs = {
        (beta, guarded): world.run(
            world.alike,
            tmp_path / f"{beta} {guarded}",
            changed(kl_beta=beta),
            GUARD if guarded else None,
            sharpness=8,
        )
        for beta, guarded in ((0.0, True), (0.0, False), (0.3, True))
    }
    limit = GUARD.max_kl or math.inf
    rows, undone = runs[0.0, True], stepped_in(runs[0.0, True])
    assert undone["action"].tolist()[0] == "back"
    assert undone["guard"].str.contains(TOLD["max_kl"]).all()
    assert rows["kl"][choose_epoch(rows, "kl", limit)] <= limit
    assert runs[0.0, False]["kl"].iloc[-1] > 1.1 * limit
    assert stepped_in(runs[0.3, True]).empty
    assert runs[0.3, True]["kl"].max() < 0.5 * limit


def test_the_penalty_follows_the_kl(world: World, tmp_path: Path) -> None:
    """Window .5 to 1, factor 3, bounds .01 to 2, from .02: down to its bound while the policy has hardly moved, up to
    the other while it is far away, and at rest in the window."""
    adaptive = {"enabled": True, "low": 0.5, "high": 1.0, "factor": 3.0, "minimum": 0.01, "maximum": 2.0}
    rows = world.run(world.alike, tmp_path, changed(adaptive_kl=adaptive, epochs=10))
    assert stepped_in(rows).empty
    betas, moves = rows["kl_beta"].tolist()[1:], set[str]()
    expected = GRPO.kl_beta.start
    for beta, kl in zip(betas, rows["kl"].tolist()[1:], strict=True):
        assert beta == pytest.approx(expected, rel=1e-5)
        if kl > 1.0:
            moves.add("up" if 3 * expected < 2 else "upper bound")
            expected = min(3 * expected, 2.0)
        elif kl < 0.5:
            moves.add("down" if expected / 3 > 0.01 else "lower bound")
            expected = max(expected / 3, 0.01)
        else:
            moves.add("rest")
    assert moves == {"lower bound", "up", "upper bound", "rest"}
    assert rows["kl"].max() > 1.5
    assert 0.5 <= rows["kl"].iloc[-1] <= 1.0
    assert betas[-1] == betas[-2]
