"""Training of a small language model from random weights: every batch a function of (seed, step) alone."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from leverlab.lm.tokens import IGNORED, Tokens
from leverlab.training.resume import read_state, state_error

WARMUP = 100  # steps in which the learning rate climbs
ECHO_LAYER, ECHOES = 2, 2
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


class EchoHeads(torch.nn.Module):
    """Linear readers of the token before and the one before that, after layer `ECHO_LAYER`, in training only.

    To find what followed a word, a layer must know at each place which words came before it, and a later layer look
    that up (an induction head). Left to itself a model of this size does not find the first half in thousands of steps;
    asked for it, it finds both in a few hundred.
    """

    def __init__(self, width: int, vocabulary: int):
        super().__init__()
        self.readers = torch.nn.ModuleList(torch.nn.Linear(width, vocabulary) for _ in range(ECHOES))

    def loss(self, hidden_BPD: Tensor, ids_BP: Tensor) -> Tensor:
        """Return the summed cross-entropy of the earlier tokens, over all places, padding too."""
        losses = [
            functional.cross_entropy(reader(hidden_BPD[:, back:]).flatten(0, 1), ids_BP[:, :-back].flatten())
            for back, reader in enumerate(self.readers, 1)
        ]
        return torch.stack(losses).sum()


def next_token_loss(model: Any, ids_BP: Tensor, labels_BP: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the summed cross-entropy of the labelled tokens, how many of them are the most probable ones, and the
    hidden states (B, P, width) after layer `ECHO_LAYER`.

    Padding stands on the right, behind the causal mask, and needs no mask of its own.
    """
    output = model.model(input_ids=ids_BP, use_cache=False, output_hidden_states=True)
    wanted_BP = labels_BP[:, 1:] != IGNORED
    logits = model.lm_head(output.last_hidden_state[:, :-1][wanted_BP])
    targets = labels_BP[:, 1:][wanted_BP]
    loss = functional.cross_entropy(logits, targets, reduction="sum")
    return loss, (logits.argmax(-1) == targets).sum(), output.hidden_states[ECHO_LAYER]


def step_gradient(
    model: Any, heads: EchoHeads, rows: Sequence[Tokens], pad: int, echo_weight: float
) -> dict[str, float]:
    """Add the gradient of the mean cross-entropy of `rows` to the model's; return `loss` and `accuracy`, per token.

    echo_weight: of the loss of `heads`; at 0 they are left out. Rows of like length go together: in one batch, half of
    it would be padding.
    """
    wanted = sum(sum(own[1:]) for _, own in rows)
    ordered, loss, right = sorted(rows, key=lambda row: len(row[0])), 0.0, 0.0
    for start in range(0, len(ordered), CHUNK):
        part = ordered[start : start + CHUNK]
        ids_BP, labels_BP = collate(part, pad)
        summed, found, hidden_BPD = next_token_loss(model, ids_BP, labels_BP)
        total = summed / wanted
        if echo_weight:
            total = total + echo_weight * len(part) / len(ordered) * heads.loss(hidden_BPD, ids_BP)
        total.backward()
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
    echo_weight: float,
    echo_steps: int,
    seed: int,
    save_every: int,
    state_file: Path,
    on_step: Callable[[int, dict[str, float]], None],
) -> None:
    """Train `model` in place for `steps` steps; continue from `state_file` where it exists.

    `batch(generator, step)` returns the rows of a step. echo_weight: loss weight of `EchoHeads`, in the first
    `echo_steps`. `on_step` gets the step, from 1 on, with loss and accuracy.
    Raises `LeverlabError` when the resume state is damaged.
    """
    torch.manual_seed(seed)
    heads = EchoHeads(model.config.hidden_size, model.config.vocab_size)
    parameters = [*model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.05)
    first = 0
    if state_file.exists():
        state = read_state(state_file, ("model", "heads", "optimizer", "step"))
        try:
            model.load_state_dict(state["model"])
            heads.load_state_dict(state["heads"])
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
        diagnostics = step_gradient(model, heads, rows, pad, echo_weight if step < echo_steps else 0.0)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        on_step(step + 1, diagnostics)
        if (step + 1) % save_every == 0 and step + 1 < steps:
            partial = state_file.with_suffix(".partial")
            state = {"model": model.state_dict(), "heads": heads.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**state, "step": step + 1}, partial)
            partial.replace(state_file)
    model.eval()
