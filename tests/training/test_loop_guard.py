"""The loop under a guard: ways back, early stops, and that a killed run decides as one that was not."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from leverlab.config.guard import GuardParams
from leverlab.config.schedule import Schedule
from leverlab.errors import LeverlabError
from leverlab.selector.checkpoints import load_selector
from leverlab.selector.network import Selector
from leverlab.training.loop import Loss, NotFiniteError, Optimisation, Row, checkpoint_name, train
from leverlab.training.runs import choose_epoch, read_metrics

SETTINGS = Optimisation(5, 2, Schedule.model_validate(0.01), 0.0, 0.0, 1e9, 0)
GUARD = GuardParams(
    window=1,
    min_kl=None,
    max_kl=2.0,
    min_entropy=None,
    min_distinct=None,
    max_identical=None,
    max_falls=None,
    max_rollbacks=1,
    lr_factor=0.25,
)
Losses = Callable[[int, Sequence[Row]], Iterator[Callable[[], Loss]]]


class KilledError(Exception):
    """Stands for a kill."""


def losses_of(selector: Selector, broken_epochs: Sequence[int] = ()) -> Losses:
    """The sum of a bias, so that Adam moves every weight of it by the learning rate; NaN in `broken_epochs`."""

    def epoch_losses(epoch: int, rows: Sequence[Row]) -> Iterator[Callable[[], Loss]]:
        for _ in range(2):
            factor = math.nan if epoch in broken_epochs else 1.0
            yield lambda factor=factor: (factor * selector.gate.bias.sum(), {})  # type: ignore[misc]

    return epoch_losses


def validator(kl: dict[int, float], accuracy: dict[int, float] | None = None) -> Callable[[Selector], Row]:
    """Rows with a given KL and accuracy for the first, second, … call; calls count epochs."""
    calls = iter(range(100))

    def validate(selector: Selector) -> Row:
        epoch = next(calls)
        measured = {"entropy": 1.0, "distinct_share": 0.8, "identical": 0.01, "val_loss": 1.0}
        return {"val_accuracy": (accuracy or {}).get(epoch, 0.5), "kl": kl.get(epoch, 1.0), **measured}

    return validate


def run(selector: Selector, folder: Path, losses: Losses, validate: Any, guard: GuardParams | None = GUARD) -> Any:
    train(selector, SETTINGS, losses, validate, folder, lambda row: None, guard)
    return pd.read_csv(folder / "metrics.csv").fillna({"guard": ""})


def bias(folder: Path, epoch: int) -> float:
    return float(load_selector(folder / checkpoint_name(epoch)).gate.bias.detach().mean())


def test_a_kl_beyond_its_limit_undoes_the_epoch(toy: Any, tmp_path: Path) -> None:
    """Epoch 2 is beyond; epoch 3 starts from the weights of epoch 1, with a quarter of the learning rate."""
    selector = toy.selector()
    rows = run(selector, tmp_path, losses_of(selector), validator({2: 9.0}))
    assert rows["action"].tolist() == ["none", "none", "back", "none", "none", "none"]
    assert rows["guard"][2] == "back to epoch 1: KL 9 nats per pick is above 2.0"
    assert rows["sound"].astype(str).tolist() == ["True", "True", "False", "True", "True", "True"]
    steps = [SETTINGS.learning_rate(update) for update in range(10)]
    assert bias(tmp_path, 2) == pytest.approx(bias(tmp_path, 1) - steps[2] - steps[3], abs=1e-6)
    assert bias(tmp_path, 3) == pytest.approx(bias(tmp_path, 1) - (steps[4] + steps[5]) / 4, abs=1e-6)
    assert rows["lr"][3] == pytest.approx(steps[5] / 4, rel=1e-5)


def test_after_so_many_times_back_the_run_stops(toy: Any, tmp_path: Path) -> None:
    selector = toy.selector()
    rows = run(selector, tmp_path, losses_of(selector), validator({2: 9.0, 3: 8.0}))
    assert rows["action"].tolist() == ["none", "none", "back", "stop"]
    assert rows["guard"][3] == "stopped: KL 8 nats per pick is above 2.0 (went back 1 times before)"
    assert sorted(file.name for file in tmp_path.glob("epoch-*")) == [checkpoint_name(epoch) for epoch in range(4)]


def test_an_epoch_that_was_undone_is_never_chosen(toy: Any, tmp_path: Path) -> None:
    selector = toy.selector()
    run(selector, tmp_path, losses_of(selector), validator({2: 9.0}, {2: 0.9, 4: 0.7}))
    rows = read_metrics(tmp_path / "metrics.csv")
    assert choose_epoch(rows, "val_accuracy") == 4
    assert choose_epoch(rows.drop(columns="sound"), "val_accuracy") == 2


def test_a_loss_that_is_not_a_number_undoes_the_epoch(toy: Any, tmp_path: Path) -> None:
    """The row and the checkpoint of epoch 2 are those of the weights that it went back to."""
    selector = toy.selector()
    rows = run(selector, tmp_path, losses_of(selector, [2]), validator({}))
    assert rows["action"].tolist() == ["none", "none", "back", "none", "none", "none"]
    assert rows["guard"][2].startswith("back to epoch 1: the loss or its gradient is not a number at update 3 ")
    assert bias(tmp_path, 2) == bias(tmp_path, 1)
    assert bias(tmp_path, 3) < bias(tmp_path, 2)
    twice = toy.selector()
    rows = run(twice, tmp_path / "twice", losses_of(twice, [2, 3]), validator({}))
    assert rows["action"].tolist() == ["none", "none", "back", "stop"]
    assert all(bool(torch.isfinite(weight).all()) for weight in twice.parameters())


def test_without_a_guard_it_is_an_error(toy: Any, tmp_path: Path) -> None:
    selector = toy.selector()
    with pytest.raises(NotFiniteError, match="not a number at update 3"):
        run(selector, tmp_path, losses_of(selector, [2]), validator({}), None)
    assert issubclass(NotFiniteError, LeverlabError)


def test_early_stopping(toy: Any, tmp_path: Path) -> None:
    selector = toy.selector()
    guard = GUARD.model_copy(update={"max_falls": 2})
    rows = run(selector, tmp_path, losses_of(selector), validator({}, {0: 0.1, 1: 0.5, 2: 0.4, 3: 0.3}), guard)
    assert rows["guard"].tolist()[-1] == "stopped: the validation accuracy fell 2 times in a row"
    assert len(rows) == 4
    assert choose_epoch(read_metrics(tmp_path / "metrics.csv"), "val_accuracy") == 1


@pytest.mark.parametrize("epoch", range(5))
@pytest.mark.parametrize("broken", [(), (2,)])
def test_killed_and_resumed_equals_unkilled(toy: Any, tmp_path: Path, epoch: int, broken: tuple[int, ...]) -> None:
    """Validation is asked once for each epoch, in the resumed run from the next one on."""
    whole = toy.selector()
    run(whole, tmp_path / "whole", losses_of(whole, broken), validator({1: 9.0} if not broken else {}))

    def kill(row: Row) -> None:
        if row["epoch"] == epoch:
            raise KilledError

    kl = {1: 9.0} if not broken else {}
    selector, again = toy.selector(), toy.selector(seed=5 if epoch else 0)
    with pytest.raises(KilledError):
        train(selector, SETTINGS, losses_of(selector, broken), validator(kl), tmp_path / "cut", kill, GUARD)
    first = epoch + 1 if epoch else 0  # the start leaves no resume state
    shifted = {at - first: value for at, value in kl.items()}
    train(again, SETTINGS, losses_of(again, broken), validator(shifted), tmp_path / "cut", lambda row: None, GUARD)
    for file in sorted((tmp_path / "whole").iterdir()):
        if file.name != "resume.pt":
            assert (tmp_path / "cut" / file.name).read_bytes() == file.read_bytes(), file.name


class Counter:
    """A memory: how many epochs it saw."""

    def __init__(self) -> None:
        self.seen = 0

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


def test_the_memory_is_kept_with_the_checkpoint(toy: Any, tmp_path: Path) -> None:
    def counting(selector: Selector, counter: Counter) -> Losses:
        def epoch_losses(epoch: int, rows: Sequence[Row]) -> Iterator[Callable[[], Loss]]:
            counter.seen += 1
            return losses_of(selector)(epoch, rows)

        return epoch_losses

    def kill(row: Row) -> None:
        if row["epoch"] == 3:
            raise KilledError

    first, second = Counter(), Counter()
    selector = toy.selector()
    with pytest.raises(KilledError):
        train(selector, SETTINGS, counting(selector, first), validator({}), tmp_path, kill, None, first)
    train(selector, SETTINGS, counting(selector, second), validator({}), tmp_path, lambda row: None, None, second)
    assert (first.seen, second.seen) == (3, 5)


def test_a_learning_rate_with_a_schedule_is_followed() -> None:
    """10 updates, two of warm-up: linear from 1 to .1 in steps of .1, times 1/2 and 1."""
    lr = Schedule(kind="linear", start=1.0, end=0.1)
    settings = Optimisation(5, 2, lr, 0.0, 0.2, 1.0, 0)
    expected = [0.5, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    assert [settings.learning_rate(update) for update in range(10)] == pytest.approx(expected)
