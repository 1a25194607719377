"""The training loop that all stages share: updates, schedule, checkpoints, resume.

A checkpoint of every epoch is written as it comes, with everything needed to go on from there; what is random in an
epoch depends on (seed, epoch) alone. So a run that was killed ends with the same bytes as one that was not.
"""

import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from leverlab.config.training import OptimiserParams
from leverlab.errors import LeverlabError
from leverlab.files import write_bytes, write_text
from leverlab.rl.schedules import warmup_cosine
from leverlab.selector.checkpoints import save_selector
from leverlab.selector.network import Selector
from leverlab.training.resume import read_state, state_error

Loss = tuple[Tensor, dict[str, Tensor]]
Row = dict[str, float]


@dataclass(frozen=True)
class Optimisation:
    """How weights move: AdamW, cosine schedule with warm-up, gradient clip."""

    epochs: int
    updates_per_epoch: int
    lr: float
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
) -> None:
    """Train `selector` in place and leave a checkpoint of every epoch and `metrics.csv` in `folder`.

    `losses(epoch, rows)` yields one closure for each update of epoch 1, 2, …, given the rows of all epochs before; a
    closure returns the loss and its diagnostics, whose means over the epoch become a row. A run continues after the
    last epoch found in `folder`. Raises `LeverlabError` when a loss or a weight becomes NaN or infinite; checkpoints up
    to then are kept.
    """
    optimizer = torch.optim.AdamW(selector.parameters(), settings.lr, weight_decay=settings.weight_decay)
    resume = folder / "resume.pt"
    rows: list[Row] = []
    if resume.exists():
        state = read_state(resume, ("selector", "optimizer", "rows"))
        try:
            selector.load_state_dict(state["selector"])
            optimizer.load_state_dict(state["optimizer"])
            rows = state["rows"]
            if not rows or [row["epoch"] for row in rows] != list(range(len(rows))):
                raise ValueError("its rows are not those of epochs 0, 1, …")
        except Exception as error:  # a state of another form: torch raises errors of many kinds
            raise state_error(resume, error) from None
    else:
        rows.append({"epoch": 0, "step": 0, **validate(selector)})
        save_selector(folder / checkpoint_name(0), selector)
        on_epoch(rows[-1])
    for epoch in range(len(rows), settings.epochs + 1):
        torch.manual_seed(settings.seed * 1_000_003 + epoch)
        summary = _run_epoch(
            selector, optimizer, settings, losses(epoch, rows), (epoch - 1) * settings.updates_per_epoch
        )
        if not all(bool(torch.isfinite(weight).all()) for weight in selector.parameters()):
            raise LeverlabError(
                f"a weight is not a number after epoch {epoch}; lower the learning rate. "
                "The checkpoints so far are kept"
            )
        rows.append({"epoch": epoch, "step": epoch * settings.updates_per_epoch, **summary, **validate(selector)})
        save_selector(folder / checkpoint_name(epoch), selector)
        state = {"selector": selector.state_dict(), "optimizer": optimizer.state_dict(), "rows": rows}
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_bytes(resume, buffer.getvalue())
        on_epoch(rows[-1])
    selector.eval()
    write_text(folder / "metrics.csv", pd.DataFrame(rows).to_csv(index=False, float_format="%.6g"))


def _run_epoch(
    selector: Selector,
    optimizer: torch.optim.Optimizer,
    settings: Optimisation,
    closures: Iterator[Callable[[], Loss]],
    step: int,
) -> Row:
    """Run the updates of one epoch and return the means of what they report."""
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    total = settings.epochs * settings.updates_per_epoch
    done = 0
    for closure in closures:
        factor = warmup_cosine(step + done, total, settings.warmup)
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * factor
        loss, diagnostics = closure()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(selector.parameters(), settings.grad_clip)
        if not math.isfinite(float(loss.detach())) or not math.isfinite(float(norm)):
            raise LeverlabError(
                f"the loss or its gradient is not a number at update {step + done + 1} (learning rate "
                f"{settings.lr * factor:g}); lower the learning rate. The checkpoints so far are kept"
            )
        optimizer.step()
        done += 1
        for name, value in {"loss": loss.detach(), "grad_norm": norm, **diagnostics}.items():
            sums[name] = sums.get(name, 0.0) + float(value)
            counts[name] = counts.get(name, 0) + 1
    return {"lr": settings.lr * factor if done else 0.0, **{name: sums[name] / counts[name] for name in sums}}
