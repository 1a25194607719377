"""The training loop that all stages share: updates, schedule, checkpoints, resume.

A checkpoint of every epoch is written as it comes, with everything needed to go on from there; what is random in an
epoch depends on (seed, epoch) alone. So a run that was killed ends with the same bytes as one that was not.
"""

import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import torch
from torch import Tensor

from leverlab.config.guard import GuardParams
from leverlab.config.schedule import Schedule
from leverlab.config.training import OptimiserParams
from leverlab.errors import LeverlabError
from leverlab.files import write_bytes, write_text
from leverlab.rl.guard import Decision, intervene, last_sound, rollbacks
from leverlab.rl.schedules import warmup, warmup_cosine
from leverlab.selector.checkpoints import load_selector, save_selector
from leverlab.selector.network import Selector
from leverlab.training.resume import read_state, state_error

Loss = tuple[Tensor | None, dict[str, Tensor]]  # None: nothing to learn from; the diagnostics count all the same
Row = dict[str, Any]  # numbers, and with a guard the columns of its `Decision`


class NotFiniteError(LeverlabError):
    """A loss, a gradient or a weight is NaN or infinite."""


class Memory(Protocol):
    """What losses learn from one epoch for the next; it is kept with the checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        """Return its state as plain data."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state."""


@dataclass(frozen=True)
class Optimisation:
    """How weights move: AdamW, gradient clip, warm-up; a constant `lr` falls along a cosine, another is followed."""

    epochs: int
    updates_per_epoch: int
    lr: Schedule
    weight_decay: float
    warmup: float
    grad_clip: float
    seed: int

    @classmethod
    def of(cls, params: OptimiserParams, updates_per_epoch: int, seed: int) -> "Optimisation":
        """Return the settings of a params section."""
        return cls(
            epochs=params.epochs,
            updates_per_epoch=updates_per_epoch,
            lr=params.lr,
            weight_decay=params.weight_decay,
            warmup=params.warmup,
            grad_clip=params.grad_clip,
            seed=seed,
        )

    def learning_rate(self, update: int) -> float:
        """Return the learning rate of an update, counted from 0 over all epochs."""
        total = self.epochs * self.updates_per_epoch
        if self.lr.kind == "constant":
            return self.lr.start * warmup_cosine(update, total, self.warmup)
        return self.lr.at(update / max(total - 1, 1)) * warmup(update, total, self.warmup)


def describe(row: Row, epochs: int) -> str:
    """Return one line about an epoch."""
    return f"epoch {row['epoch']:.0f} of {epochs}: validation accuracy {row['val_accuracy']:.4f}"


def checkpoint_name(epoch: int) -> str:
    """Return the file name of an epoch's checkpoint; epoch 0 is the start."""
    return f"epoch-{epoch:03d}.safetensors"


def train(
    selector: Selector,
    settings: Optimisation,
    losses: Callable[[int, Sequence[Row]], Iterator[Callable[[], Loss]]],
    validate: Callable[[Selector], Row],
    folder: Path,
    on_epoch: Callable[[Row], None],
    guard: GuardParams | None = None,
    memory: Memory | None = None,
) -> None:
    """Train `selector` in place and leave a checkpoint of every epoch and `metrics.csv` in `folder`.

    `losses(epoch, rows)` yields one closure for each update of epoch 1, 2, …, given the rows of all epochs before; a
    closure returns the loss and its diagnostics, whose means over the epoch become a row. A run continues after the
    last epoch found in `folder`. With a `guard` an epoch that breaks a limit, or ends in NaN, is undone: the next one
    starts from the last sound checkpoint, with fresh moments of AdamW and a smaller learning rate. Without one a NaN
    raises `NotFiniteError`; checkpoints up to then are kept.
    """
    run = _Run(selector, settings, folder, guard, memory)
    untouched = {} if guard is None else asdict(Decision())
    if not run.resume():
        run.rows.append({"epoch": 0, "step": 0, **validate(selector), **untouched})
        save_selector(folder / checkpoint_name(0), selector)
        on_epoch(run.rows[-1])
    for epoch in range(len(run.rows), settings.epochs + 1):
        if run.rows[-1].get("action") == "stop":
            break
        torch.manual_seed(settings.seed * 1_000_003 + epoch)
        problem, summary = None, Row()
        try:
            summary = run.epoch(losses(epoch, run.rows), epoch)
        except NotFiniteError as error:
            if guard is None:
                raise
            problem = str(error)
            run.go_back()  # before the validation, which a policy of NaN cannot pass
        row = {"epoch": epoch, "step": epoch * settings.updates_per_epoch, **summary, **validate(selector), **untouched}
        save_selector(folder / checkpoint_name(epoch), selector)
        if guard is not None:
            row |= asdict(intervene([*run.rows, row], guard, problem))
            if row["action"] == "back":
                run.go_back()
        run.rows.append(row)
        run.save()
        on_epoch(row)
    selector.eval()
    write_text(folder / "metrics.csv", pd.DataFrame(run.rows).to_csv(index=False, float_format="%.6g"))


class _Run:
    """A training run between two epochs: weights, optimiser, rows, and the state from which it can go on."""

    def __init__(
        self,
        selector: Selector,
        settings: Optimisation,
        folder: Path,
        guard: GuardParams | None,
        memory: Memory | None,
    ):
        self.selector, self.settings, self.folder, self.guard, self.memory = selector, settings, folder, guard, memory
        self.rows: list[Row] = []
        self._optimizer = self._fresh_optimizer()

    def _fresh_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.selector.parameters(), weight_decay=self.settings.weight_decay)

    @property
    def _resume_file(self) -> Path:
        return self.folder / "resume.pt"

    def resume(self) -> bool:
        """Take over the state of the last epoch in the folder; return False when there is none."""
        if not self._resume_file.exists():
            return False
        state = read_state(self._resume_file, ("selector", "optimizer", "rows", "memory"))
        try:
            self.selector.load_state_dict(state["selector"])
            self._optimizer.load_state_dict(state["optimizer"])
            if self.memory is not None:
                self.memory.load_state_dict(state["memory"])
            self.rows = state["rows"]
            if not self.rows or [row["epoch"] for row in self.rows] != list(range(len(self.rows))):
                raise ValueError("its rows are not those of epochs 0, 1, …")
        except Exception as error:  # a state of another form: torch raises errors of many kinds
            raise state_error(self._resume_file, error) from None
        return True

    def save(self) -> None:
        """Write the state after the last row, whole or not at all."""
        state = {
            "selector": self.selector.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "rows": self.rows,
            "memory": None if self.memory is None else self.memory.state_dict(),
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_bytes(self._resume_file, buffer.getvalue())

    def go_back(self) -> None:
        """Take the weights of the last sound epoch; the moments of what went wrong are forgotten."""
        sound = load_selector(self.folder / checkpoint_name(last_sound(self.rows)))
        self.selector.load_state_dict(sound.state_dict())
        self._optimizer = self._fresh_optimizer()

    def epoch(self, closures: Iterator[Callable[[], Loss]], epoch: int) -> Row:
        """Run the updates of one epoch and return the means of what they report. Raises `NotFiniteError`."""
        sums: dict[str, float] = {}
        counts: dict[str, int] = {}
        first = (epoch - 1) * self.settings.updates_per_epoch
        smaller = 1.0 if self.guard is None else self.guard.lr_factor ** rollbacks(self.rows)
        lr = 0.0
        for update, closure in enumerate(closures, start=first):
            lr = self.settings.learning_rate(update) * smaller
            for group in self._optimizer.param_groups:
                group["lr"] = lr
            loss, diagnostics = closure()
            if loss is not None:
                norm = self._step(loss, f"update {update + 1} (learning rate {lr:g})")
                diagnostics = {"loss": loss.detach(), "grad_norm": norm, **diagnostics}
            for name, value in diagnostics.items():
                sums[name] = sums.get(name, 0.0) + float(value)
                counts[name] = counts.get(name, 0) + 1
        if not all(bool(torch.isfinite(weight).all()) for weight in self.selector.parameters()):
            raise NotFiniteError(
                f"a weight is not a number after epoch {epoch}; lower the learning rate. "
                "The checkpoints so far are kept"
            )
        return {"lr": lr, **{name: sums[name] / counts[name] for name in sums}}

    def _step(self, loss: Tensor, where: str) -> Tensor:
        """Make one update and return the norm of the gradient before it was clipped."""
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.selector.parameters(), self.settings.grad_clip)
        if not math.isfinite(float(loss.detach())) or not math.isfinite(float(norm)):
            raise NotFiniteError(
                f"the loss or its gradient is not a number at {where}; lower the learning rate. "
                "The checkpoints so far are kept"
            )
        self._optimizer.step()
        return norm
