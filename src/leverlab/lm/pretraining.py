"""Training of a small language model from random weights: every batch a function of (seed, step) alone."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from leverlab.lm.tokens import IGNORED
from leverlab.lm.tokens import Tokens as Tokens
from leverlab.training.resume import read_state, state_error

WARMUP = 100  # steps in which the learning rate climbs
CHUNK = 8  # rows of one forward pass
DECAY = 0.4  # last share of the steps, in which it falls to 0


def collate(rows: Sequence[Tokens], pad: int) -> tuple[Tensor, Tensor]:
    """Return `(ids_BP, labels_BP)`, padded on the right; labels are `IGNORED` where nothing is to be predicted."""
    length = max(len(ids) for ids, _ in rows)
    ids_BP = torch.full((len(rows), length), pad)
    labels_BP = torch.full_like(ids_BP, IGNORED)
    for row, (ids, wanted) in enumerate(rows):
        ids_BP[row, : len(ids)] = torch.tensor(ids)
        labels_BP[row, : len(ids)] = torch.where(torch.tensor(wanted), torch.tensor(ids), IGNORED)
    return ids_BP, labels_BP


def next_token_loss(model: Any, ids_BP: Tensor, labels_BP: Tensor) -> tuple[Tensor, Tensor]:
    """Return the summed cross-entropy of the labelled tokens, and how many of them are the most probable ones.

    Padding stands on the right, behind the causal mask, and needs no mask of its own.
    """
    hidden_BPD = model.model(input_ids=ids_BP, use_cache=False).last_hidden_state
    wanted_BP = labels_BP[:, 1:] != IGNORED
    logits = model.lm_head(hidden_BPD[:, :-1][wanted_BP])
    targets = labels_BP[:, 1:][wanted_BP]
    return functional.cross_entropy(logits, targets, reduction="sum"), (logits.argmax(-1) == targets).sum()


def step_gradient(model: Any, rows: Sequence[Tokens], pad: int) -> dict[str, float]:
    """Add the gradient of the mean cross-entropy of `rows` to the model's; return `loss` and `accuracy`, per token.

    Rows of like length go together: in one batch, half of it would be padding.
    """
    wanted = sum(sum(own[1:]) for _, own in rows)
    ordered, loss, right = sorted(rows, key=lambda row: len(row[0])), 0.0, 0.0
    for start in range(0, len(ordered), CHUNK):
        summed, found = next_token_loss(model, *collate(ordered[start : start + CHUNK], pad))
        (summed / wanted).backward()
        loss, right = loss + float(summed.detach()), right + float(found)
    return {"loss": loss / wanted, "accuracy": right / wanted}


def learning_rate_factor(step: int, steps: int) -> float:
    """Return the factor on the learning rate at `step` of `steps`: up in `WARMUP` steps, down in the last `DECAY`."""
    return min(1.0, (step + 1) / WARMUP, (steps - step) / (DECAY * steps))


def fit(
    model: Any,
    batch: Callable[[np.random.Generator, int], list[Tokens]],
    pad: int,
    *,
    steps: int,
    learning_rate: float,
    seed: int,
    save_every: int,
    state_file: Path,
    on_step: Callable[[int, dict[str, float]], None],
) -> None:
    """Train `model` in place for `steps` steps; continue from `state_file` where it exists.

    `batch(generator, step)` returns the rows of a step. `on_step` gets the step, from 1 on, with loss and accuracy.
    Raises `LeverlabError` when the resume state is damaged.
    """
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
    first = 0
    if state_file.exists():
        state = read_state(state_file, ("model", "optimizer", "step"))
        try:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            if type(first := state["step"]) is not int:
                raise ValueError(f"its step is {first!r}")
        except Exception as error:  # a state of another form: torch raises errors of many kinds
            raise state_error(state_file, error) from None
    model.train()
    for step in range(first, steps):
        rows = batch(np.random.default_rng([seed, step]), step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * learning_rate_factor(step, steps)
        optimizer.zero_grad(set_to_none=True)
        diagnostics = step_gradient(model, rows, pad)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        on_step(step + 1, diagnostics)
        if (step + 1) % save_every == 0 and step + 1 < steps:
            partial = state_file.with_suffix(".partial")
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}, partial)
            partial.replace(state_file)
    model.eval()
