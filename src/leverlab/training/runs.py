"""The folder that a training stage leaves for one seed: `metrics.csv` and a checkpoint of every epoch."""

import shutil
from pathlib import Path

import pandas as pd

from leverlab.errors import LeverlabError
from leverlab.selector.checkpoints import load_selector
from leverlab.selector.network import Selector
from leverlab.training.loop import checkpoint_name


def read_metrics(path: Path) -> pd.DataFrame:
    """Return the rows of a run, one an epoch. Raises `LeverlabError` when the file is missing, empty or lacks a
    column."""
    try:
        rows = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise LeverlabError(f"{path} cannot be read ({error}); run the training stage again") from None
    missing = {"epoch", "val_accuracy", "val_loss", "kl"} - set(rows.columns)
    if missing or rows.empty or rows["val_accuracy"].isna().any():
        raise LeverlabError(f"{path} holds no whole run (lacking {sorted(missing)}); run the training stage again")
    return rows


def choose_epoch(rows: pd.DataFrame, strategy: str, max_kl: float = float("inf")) -> int:
    """Return the epoch that `strategy` chooses; the earliest among equals.

    'val_accuracy' takes the highest validation accuracy, 'val_loss' the lowest validation loss, 'kl' the highest
    accuracy among epochs whose divergence from the reference is at most `max_kl` nats per pick (an epoch without one
    counts as 0), 'last' the last. Raises `LeverlabError` when no epoch qualifies.
    """
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
    """Copy a finished run to `out`, without what is only needed to resume it."""
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("resume.pt"), dirs_exist_ok=True)
