"""The loop: kill and resume, the schedule of every update, clip, decay, means, and what stops it."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from leverlab.config.schedule import Schedule
from leverlab.errors import LeverlabError
from leverlab.rl.schedules import warmup_cosine
from leverlab.selector.checkpoints import load_selector
from leverlab.selector.network import Selector
from leverlab.training.loop import Loss, Optimisation, Row, checkpoint_name, describe, train

BASE: dict[str, Any] = {
    "epochs": 3,
    "updates_per_epoch": 2,
    "lr": Schedule.model_validate(0.01),
    "weight_decay": 0.1,
    "warmup": 0.3,
    "grad_clip": 1.0,
    "seed": 4,
}
Losses = Callable[[int, Sequence[Row]], Iterator[Callable[[], Loss]]]


class KilledError(Exception):
    """Stands for a kill."""


def validate(selector: Selector) -> Row:
    """A row that depends on the weights, as accuracy and KL do; KL is NaN when there is no reference."""
    selector.eval()
    return {"val_accuracy": float(selector.key.weight.detach().abs().mean()), "val_loss": 1.0, "kl": math.nan}


def random_losses(selector: Selector, updates: int = 2, dies_at: tuple[int, int] | None = None) -> Losses:
    """Cross-entropy of lists drawn anew from the global generator, with dropout on: all that may differ on resume."""

    def epoch_losses(epoch: int, rows: Sequence[Row]) -> Iterator[Callable[[], Loss]]:
        for update in range(updates):
            if dies_at == (epoch, update):
                raise KilledError
            yield loss

    def loss() -> Loss:
        selector.train()
        query = (torch.randn(3, 4), torch.randn(3, 3))
        demos = (torch.randn(3, 5, 4), torch.randn(3, 5, 3), torch.randn(3, 5, 2))
        picks = torch.rand(3, 2, 5).argsort(-1)[..., :3]
        logp_BG = selector.list_logp(selector.encode(query, demos), picks).sum(-1)
        return -logp_BG.mean(), {"spread": logp_BG.detach().std()}

    return epoch_losses


def silent(row: Row) -> None:
    pass


def contents(folder: Path) -> dict[str, tuple[Any, bytes]]:
    """Every file of a run but the resume state. A checkpoint is told as its header and the bytes after it."""
    found: dict[str, tuple[Any, bytes]] = {}
    for file in folder.iterdir():
        data = file.read_bytes()
        if file.suffix == ".safetensors":
            end = 8 + int.from_bytes(data[:8], "little")
            found[file.name] = json.loads(data[8:end]), data[end:]
        elif file.name != "resume.pt":
            found[file.name] = None, data
    return found


@pytest.fixture(name="unbroken")
def run_unbroken(toy: Any, tmp_path: Path) -> dict[str, tuple[Any, bytes]]:
    selector = toy.selector(dropout=0.3)
    train(selector, Optimisation(**BASE), random_losses(selector), validate, tmp_path / "unbroken", silent)
    return contents(tmp_path / "unbroken")


def test_a_run_leaves_a_checkpoint_of_every_epoch_and_its_rows(unbroken: dict[str, Any], tmp_path: Path) -> None:
    assert sorted(unbroken) == [*(f"epoch-{epoch:03d}.safetensors" for epoch in range(4)), "metrics.csv"]
    rows = pd.read_csv(tmp_path / "unbroken" / "metrics.csv")
    assert rows["epoch"].tolist() == [0, 1, 2, 3]
    assert rows["step"].tolist() == [0, 2, 4, 6]
    assert rows[["loss", "grad_norm", "lr", "spread"]].isna().sum(axis=1).tolist() == [4, 0, 0, 0]
    for epoch, recorded in zip(rows["epoch"], rows["val_accuracy"], strict=True):
        checkpoint = load_selector(tmp_path / "unbroken" / checkpoint_name(epoch))
        assert recorded == pytest.approx(validate(checkpoint)["val_accuracy"], rel=1e-5)
    assert rows["val_accuracy"].is_unique


def test_what_has_no_loss_moves_nothing_and_is_told(toy: Any, tmp_path: Path) -> None:
    """Of two updates an epoch the first has a loss in epochs 1 and 3 alone; it keeps its place in the schedule."""
    selector = toy.selector()
    moved = selector.gate.bias

    def losses(epoch: int, rows: Sequence[Row]) -> Iterator[Callable[[], Loss]]:
        yield lambda: (moved.sum() if epoch != 2 else None, {"flat": torch.tensor(0.5 if epoch != 2 else 1.0)})
        yield lambda: (None, {"flat": torch.tensor(1.0)})

    biases, settings = [], Optimisation(**BASE | {"weight_decay": 0.0})
    train(selector, settings, losses, validate, tmp_path, lambda row: biases.append(float(moved.detach().sum())))
    rows = pd.read_csv(tmp_path / "metrics.csv")
    assert rows["flat"].tolist()[1:] == [0.75, 1.0, 0.75]
    assert rows["loss"].isna().tolist() == [True, False, True, False]
    assert rows["lr"].tolist()[1:] == pytest.approx([settings.learning_rate(update) for update in (1, 3, 5)], rel=1e-5)
    assert biases[1] < biases[0]
    assert biases[2] == biases[1]
    step = (biases[2] - biases[3]) / len(moved)  # Adam's step for gradients of one size
    assert step == pytest.approx(settings.learning_rate(4), rel=1e-3)


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_killed_after_an_epoch_and_resumed_equals_unkilled(
    unbroken: dict[str, Any], toy: Any, tmp_path: Path, epoch: int
) -> None:
    """The second process starts from other weights and another random state: all comes from the folder."""

    def kill(row: Row) -> None:
        if row["epoch"] == epoch:
            raise KilledError

    selector, settings = toy.selector(dropout=0.3), Optimisation(**BASE)
    with pytest.raises(KilledError):
        train(selector, settings, random_losses(selector), validate, tmp_path / "killed", kill)
    assert not (tmp_path / "killed" / "metrics.csv").exists()
    again, told = toy.selector(seed=77, dropout=0.3), list[Row]()
    train(again, settings, random_losses(again), validate, tmp_path / "killed", told.append)
    assert contents(tmp_path / "killed") == unbroken
    assert [row["epoch"] for row in told] == list(range(epoch + 1, 4))
    assert not again.training


@pytest.mark.parametrize("place", [(1, 0), (1, 1), (2, 1), (3, 0)])
def test_killed_inside_an_epoch_and_resumed_equals_unkilled(
    unbroken: dict[str, Any], toy: Any, tmp_path: Path, place: tuple[int, int]
) -> None:
    selector, settings = toy.selector(dropout=0.3), Optimisation(**BASE)
    with pytest.raises(KilledError):
        train(selector, settings, random_losses(selector, dies_at=place), validate, tmp_path / "killed", silent)
    again = toy.selector(dropout=0.3)
    torch.manual_seed(99)
    train(again, settings, random_losses(again), validate, tmp_path / "killed", silent)
    assert contents(tmp_path / "killed") == unbroken


def test_killed_between_checkpoint_and_resume_state(
    unbroken: dict[str, Any], toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KilledError

    selector, settings = toy.selector(dropout=0.3), Optimisation(**BASE)
    with monkeypatch.context() as patch:
        patch.setattr("leverlab.training.loop.torch.save", die)
        with pytest.raises(KilledError):
            train(selector, settings, random_losses(selector), validate, tmp_path / "killed", silent)
    assert (tmp_path / "killed" / checkpoint_name(1)).exists()
    again = toy.selector(dropout=0.3)
    train(again, settings, random_losses(again), validate, tmp_path / "killed", silent)
    assert contents(tmp_path / "killed") == unbroken


def test_a_finished_run_is_left_as_it_is(unbroken: dict[str, Any], toy: Any, tmp_path: Path) -> None:
    again, told = toy.selector(seed=1), list[Row]()
    train(again, Optimisation(**BASE), random_losses(again), validate, tmp_path / "unbroken", told.append)
    assert told == []
    assert contents(tmp_path / "unbroken") == unbroken


def test_another_seed_gives_another_run(unbroken: dict[str, Any], toy: Any, tmp_path: Path) -> None:
    selector = toy.selector(dropout=0.3)
    settings = Optimisation(**BASE | {"seed": 5})
    train(selector, settings, random_losses(selector), validate, tmp_path / "other", silent)
    assert contents(tmp_path / "other")[checkpoint_name(0)] == unbroken[checkpoint_name(0)]
    assert contents(tmp_path / "other")[checkpoint_name(1)] != unbroken[checkpoint_name(1)]


def test_a_cut_resume_state_is_refused(toy: Any, tmp_path: Path) -> None:
    selector, settings = toy.selector(), Optimisation(**BASE)
    train(selector, settings, random_losses(selector), validate, tmp_path, silent)
    resume = tmp_path / "resume.pt"
    resume.write_bytes(resume.read_bytes()[:500])
    with pytest.raises(LeverlabError, match=r"resume\.pt"):
        train(selector, settings, random_losses(selector), validate, tmp_path, silent)


Update = tuple[float, float]  # learning rate, and norm of the gradient that the optimiser gets


@pytest.fixture(name="updates")
def record_updates(monkeypatch: pytest.MonkeyPatch) -> list[Update]:
    """What AdamW was given at every update, in order."""
    seen: list[Update] = []
    step = torch.optim.AdamW.step

    def recording(self: torch.optim.AdamW, closure: None = None) -> None:
        gradients = [p.grad.flatten() for g in self.param_groups for p in g["params"] if p.grad is not None]
        seen.append((self.param_groups[0]["lr"], float(torch.cat(gradients).norm())))
        step(self, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", recording)
    return seen


def test_the_learning_rate_of_every_update_by_hand(toy: Any, tmp_path: Path, updates: list[Update]) -> None:
    """4 updates, half of them warm-up: 1/2, 1, then half a cosine over two steps: 1, 1/2."""
    selector = toy.selector()
    settings = Optimisation(**BASE | {"epochs": 2, "warmup": 0.5})
    train(selector, settings, random_losses(selector), validate, tmp_path, silent)
    assert [lr for lr, _ in updates] == pytest.approx([0.005, 0.01, 0.01, 0.005])
    assert pd.read_csv(tmp_path / "metrics.csv")["lr"].tolist()[1:] == pytest.approx([0.01, 0.005])


def test_the_learning_rate_of_every_update_is_that_of_the_schedule(
    toy: Any, tmp_path: Path, updates: list[Update]
) -> None:
    selector = toy.selector()
    settings = Optimisation(**BASE | {"epochs": 4, "updates_per_epoch": 5, "warmup": 0.2})
    train(selector, settings, random_losses(selector, 5), validate, tmp_path, silent)
    assert [lr for lr, _ in updates] == [0.01 * warmup_cosine(step, 20, 0.2) for step in range(20)]


def test_epochs_with_fewer_updates_do_not_shift_the_schedule(toy: Any, tmp_path: Path, updates: list[Update]) -> None:
    """Of 3 updates an epoch, epoch 1 takes one, epoch 2 none, epoch 3 two: they are updates 0, 6 and 7 of 9."""
    selector = toy.selector()
    one = random_losses(selector)

    def fewer(epoch: int, rows: Sequence[Row]) -> Iterator[Callable[[], Loss]]:
        closures = list(one(epoch, rows))
        yield from closures[: {1: 1, 2: 0, 3: 2}[epoch]]

    train(selector, Optimisation(**BASE | {"updates_per_epoch": 3}), fewer, validate, tmp_path, silent)
    assert [lr for lr, _ in updates] == [0.01 * warmup_cosine(step, 9, 0.3) for step in (0, 6, 7)]
    rows = pd.read_csv(tmp_path / "metrics.csv")
    assert rows["step"].tolist() == [0, 3, 6, 9]
    assert rows["lr"].tolist()[2] == 0
    assert rows["loss"].isna().tolist() == [True, False, True, False]


def constant_losses(selector: Selector, values: Sequence[dict[str, float]], factor: float) -> Losses:
    """One update for each of `values`, its diagnostics; the loss is `factor` times the sum of `key.bias`."""

    def epoch_losses(epoch: int, rows: Sequence[Row]) -> Iterator[Callable[[], Loss]]:
        for diagnostics in values:
            yield lambda diagnostics=diagnostics: (  # type: ignore[misc]
                factor * selector.key.bias.sum(),
                {name: torch.tensor(value) for name, value in diagnostics.items()},
            )

    return epoch_losses


def test_the_gradient_is_clipped_and_its_own_norm_reported(toy: Any, tmp_path: Path, updates: list[Update]) -> None:
    """The gradient is 3 at each of 16 biases: norm 3 * 4 = 12, clipped to 0.5."""
    selector = toy.selector()
    settings = Optimisation(**BASE | {"epochs": 1, "grad_clip": 0.5})
    train(selector, settings, constant_losses(selector, [{}], 3.0), validate, tmp_path, silent)
    assert updates[0][1] == pytest.approx(0.5, rel=1e-4)
    assert pd.read_csv(tmp_path / "metrics.csv")["grad_norm"].tolist()[1] == pytest.approx(12)


def test_gradients_of_one_update_do_not_reach_the_next(toy: Any, tmp_path: Path, updates: list[Update]) -> None:
    selector = toy.selector()
    settings = Optimisation(**BASE | {"epochs": 1, "grad_clip": 100.0})
    train(selector, settings, constant_losses(selector, [{}, {}], 3.0), validate, tmp_path, silent)
    assert [norm for _, norm in updates] == pytest.approx([12, 12], rel=1e-4)


def test_weight_decay_is_decoupled(toy: Any, tmp_path: Path) -> None:
    """A gradient of zero leaves Adam's moments at zero: only w <- w (1 - lr * decay) is left, .1 * .5 here."""
    selector = toy.selector()
    before = selector.key.bias.detach().clone()
    settings = Optimisation(
        **BASE | {"epochs": 1, "updates_per_epoch": 1, "lr": Schedule.model_validate(0.1), "weight_decay": 0.5}
    )
    train(selector, settings, constant_losses(selector, [{}], 0.0), validate, tmp_path, silent)
    torch.testing.assert_close(selector.key.bias.detach(), before * 0.95)


def test_a_row_holds_means_over_the_updates_that_report(toy: Any, tmp_path: Path) -> None:
    selector = toy.selector()
    settings = Optimisation(**BASE | {"epochs": 1, "updates_per_epoch": 3})
    losses = constant_losses(selector, [{"a": 1.0, "b": 5.0}, {"a": 2.0}, {"a": 6.0, "b": 6.0}], 0.0)
    train(selector, settings, losses, validate, tmp_path, silent)
    row = pd.read_csv(tmp_path / "metrics.csv").iloc[1]
    assert (row["a"], row["b"], row["loss"]) == (3.0, 5.5, 0.0)


def test_losses_are_given_the_rows_of_all_epochs_before(toy: Any, tmp_path: Path) -> None:
    selector, seen = toy.selector(), list[list[float]]()
    losses = random_losses(selector)

    def asking(epoch: int, rows: Sequence[Row]) -> Iterator[Callable[[], Loss]]:
        seen.append([row["epoch"] for row in rows])
        return losses(epoch, rows)

    train(selector, Optimisation(**BASE), asking, validate, tmp_path, silent)
    assert seen == [[0], [0, 1], [0, 1, 2]]


@pytest.mark.parametrize("kind", ["loss", "infinite loss", "gradient"])
def test_a_loss_or_gradient_that_is_not_a_number_stops_the_run_and_keeps_checkpoints(
    toy: Any, tmp_path: Path, kind: str
) -> None:
    """Epoch 1 is sound; in epoch 2 the second update, number 4 of the run, is not. sqrt(0 w) is 0 with slope NaN; the
    slope of w + infinity is 1."""
    selector = toy.selector()
    sound = random_losses(selector)

    def losses(epoch: int, rows: Sequence[Row]) -> Iterator[Callable[[], Loss]]:
        first, second = sound(epoch, rows)
        yield first
        yield second if epoch == 1 else bad

    def bad() -> Loss:
        total = selector.key.weight.sum()
        bad_loss = {"loss": total * math.nan, "infinite loss": total + math.inf, "gradient": (total * 0).sqrt()}
        return bad_loss[kind], {}

    for _ in range(2):  # a second try continues after epoch 1 and stops at the same place
        with pytest.raises(LeverlabError, match=r"not a number at update 4 .*lower the learning rate"):
            train(selector, Optimisation(**BASE), losses, validate, tmp_path, silent)
    assert sorted(file.name for file in tmp_path.glob("epoch-*")) == [checkpoint_name(0), checkpoint_name(1)]
    for epoch in (0, 1):
        assert all(
            torch.isfinite(tensor).all() for tensor in load_selector(tmp_path / checkpoint_name(epoch)).parameters()
        )


def test_a_weight_that_becomes_infinite_in_the_last_update_stops_the_run(toy: Any, tmp_path: Path) -> None:
    """The loss of the update does not touch the weight, so that neither loss nor gradient betrays it."""
    selector = toy.selector()

    def losses(epoch: int, rows: Sequence[Row]) -> Iterator[Callable[[], Loss]]:
        yield corrupting

    def corrupting() -> Loss:
        with torch.no_grad():
            selector.gate.bias[0] = math.inf
        return selector.key.weight.sum(), {}

    settings = Optimisation(**BASE | {"epochs": 1, "updates_per_epoch": 1})
    with pytest.raises(LeverlabError, match="a weight is not a number after epoch 1"):
        train(selector, settings, losses, validate, tmp_path, silent)
    assert sorted(file.name for file in tmp_path.glob("epoch-*")) == [checkpoint_name(0)]


def test_an_epoch_in_a_line() -> None:
    assert describe({"epoch": 3, "val_accuracy": 0.51236}, 8) == "epoch 3 of 8: validation accuracy 0.5124"
    assert checkpoint_name(12) == "epoch-012.safetensors"
