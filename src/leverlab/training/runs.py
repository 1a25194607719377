"""The folder that a training stage leaves for one seed: `metrics.csv` and a checkpoint of every epoch."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from leverlab.csvfile import read_csv
from leverlab.errors import LeverlabError
from leverlab.selector.checkpoints import load_selector
from leverlab.selector.network import Selector
from leverlab.training.loop import checkpoint_name

COLUMNS = ("epoch", "val_accuracy", "val_loss", "kl")


def read_metrics(path: Path) -> pd.DataFrame:
    """Return the rows of a run, one an epoch from 0 on.

    Raises `LeverlabError` when the file is missing, cut or damaged, or lacks a column.
    """
    rows = read_csv(path, COLUMNS)
    numbers = all(rows[name].dtype.kind in "if" and not np.isinf(rows[name]).any() for name in COLUMNS)
    if (
        not numbers
        or rows["epoch"].tolist() != list(range(len(rows)))
        or not rows["val_accuracy"].between(0, 1).all()
        or rows["val_loss"].isna().any()
    ):
        raise LeverlabError(f"{path} is damaged: not every epoch has its numbers; run the training stage again")
    return rows


def choose_epoch(rows: pd.DataFrame, strategy: str, max_kl: float = float("inf")) -> int:
    """Return the epoch that `strategy` chooses among those that the guard found sound; the earliest among equals.

    'val_accuracy' takes the highest validation accuracy, 'val_loss' the lowest validation loss, 'kl' the highest
    accuracy among epochs whose divergence from the reference is at most `max_kl` nats per pick (an epoch without one
    counts as 0), 'last' the last. Raises `LeverlabError` when no epoch qualifies.
    """
    if "sound" in rows:
        rows = rows[rows["sound"]]
    if strategy == "last":
        return int(rows["epoch"].iloc[-1])
    if strategy == "val_loss":
        return int(rows.loc[rows["val_loss"].idxmin(), "epoch"])
    allowed = rows[rows["kl"].fillna(0.0) <= max_kl] if strategy == "kl" else rows
    if allowed.empty:
        raise LeverlabError(f"no epoch stays within select_best.max_kl = {max_kl} nats per pick; raise it")
    return int(allowed.loc[allowed["val_accuracy"].idxmax(), "epoch"])


def load_epoch(folder: Path, which: str) -> Selector:
    """Return the selector of a run at its 'best' (by validation accuracy) or 'last' epoch, in evaluation mode."""
    rows = read_metrics(folder / "metrics.csv")
    epoch = choose_epoch(rows, "val_accuracy" if which == "best" else "last")
    return load_selector(folder / checkpoint_name(epoch))


def publish_run(folder: Path, out: Path) -> None:
    """Copy the metrics and checkpoints of a finished run to `out`; what else a kill left in `folder` stays there."""
    out.mkdir(parents=True, exist_ok=True)
    epochs = range(len(read_metrics(folder / "metrics.csv")))
    for name in ["metrics.csv", *map(checkpoint_name, epochs)]:
        shutil.copyfile(folder / name, out / name)
