"""Imitation of dialogues: SFT with TRL's `SFTTrainer`, and RCE, where each dialogue counts by its reward.

The one place that knows TRL's interface for SFT. Examples come as tokens: `SFTTrainer` leaves a data set alone that has
`input_ids` and `labels`, and takes the loss where a label is not -100, which is where the policy speaks.

    SFT   L = sum_i sum_t CE_it / sum_i T_i                 i: dialogues of a batch, t: the policy's T_i tokens of one
    RCE   L = sum_i G_i w_i sum_t CE_it / sum_i T_i         w = softmax(reward / tau) in a group of G_i rollouts

The weights G w have the mean 1 in each group: with tau to infinity RCE is SFT on the same rows, at the same rate.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling, SFTTrainer

from leverlab.errors import LeverlabError
from leverlab.lm.adapters import Base
from leverlab.lm.tokens import Tokens, labels
from leverlab.lm.trainers import Row, Settings, arguments, run_trainer
from leverlab.rl.losses import rce_weights

# column of a step's row → TRL's name; entropy and accuracy are means over the policy's tokens, unweighted
COLUMNS = {
    "loss": "loss",
    "lr": "learning_rate",
    "grad_norm": "grad_norm",
    "entropy": "entropy",
    "accuracy": "mean_token_accuracy",
}


@dataclass(frozen=True)
class Weighted:
    """Which rollouts RCE imitates, and how much each counts.

    rows: their indices. weights: one a row, of mean 1 in every group. flat: groups without spread, which are left out.
    groups: how many there were in all.
    """

    rows: list[int]
    weights: list[float]
    flat: int
    groups: int


def weigh(groups: Sequence[str], rewards: Sequence[float], tau: float) -> Weighted:
    """Return G softmax(reward / tau) for the rollouts of each group; `groups` names the group (question) of each.

    Groups whose rewards are all the same teach nothing about what is better; they are left out and counted. Raises
    `LeverlabError` for a reward that is no number, a tau that is not positive, or when no group has spread.
    """
    members: dict[str, list[int]] = {}
    for row, name in enumerate(groups):
        members.setdefault(name, []).append(row)
    found: dict[int, float] = {}
    flat = 0
    for name, rows in members.items():
        of_group = [rewards[row] for row in rows]
        if not all(map(math.isfinite, of_group)):
            raise LeverlabError(f"the rewards of question '{name}' are {of_group}; score its rollouts again")
        if len(set(of_group)) == 1:
            flat += 1
            continue
        weights_1G = rce_weights(torch.tensor([of_group], dtype=torch.float64), tau)
        found |= zip(rows, (weights_1G[0] * len(rows)).tolist(), strict=True)
    if not found:
        raise LeverlabError(
            f"all {len(members)} groups of rollouts are without spread, there is nothing to learn from them; draw "
            "larger groups, or at a higher temperature"
        )
    rows = sorted(found)
    return Weighted(rows, [found[row] for row in rows], flat, len(members))


def train_sft(
    policy: PeftModel,
    base: Base,
    examples: Sequence[Tokens],
    settings: Settings,
    folder: Path,
    on_log: Callable[[Row], None],
) -> list[Row]:
    """Train the adapter of `policy` in place on the own tokens of `examples`; return a row a step (`COLUMNS`).

    Checkpoints go to `folder`; a run that finds some goes on from them, to the same weights and rows. Raises
    `LeverlabError` for an example without a token of the policy, and when a loss is no number.
    """
    rows = _columns(examples, settings)
    trainer = SFTTrainer(
        model=policy,
        args=SFTConfig(**arguments(settings, len(examples), folder)),
        train_dataset=Dataset.from_dict(rows),
        processing_class=base.chat.tokenizer,
    )
    return run_trainer(trainer, policy, settings, COLUMNS, on_log)


def train_rce(
    policy: PeftModel,
    base: Base,
    examples: Sequence[Tokens],
    weights: Sequence[float],
    settings: Settings,
    folder: Path,
    on_log: Callable[[Row], None],
) -> list[Row]:
    """Train as `train_sft`, every example counting `weights` times (see `weigh`); 1 everywhere is SFT."""
    if len(weights) != len(examples):
        raise LeverlabError(f"RCE got {len(examples)} examples and {len(weights)} weights; give one to each")
    rows = _columns(examples, settings) | {"weight": list(weights)}
    trainer = WeightedTrainer(
        model=policy,
        args=SFTConfig(remove_unused_columns=False, **arguments(settings, len(examples), folder)),
        data_collator=WeightedCollator(pad_token_id=base.chat.pad),
        train_dataset=Dataset.from_dict(rows),
        processing_class=base.chat.tokenizer,
    )
    return run_trainer(trainer, policy, settings, COLUMNS, on_log)


@dataclass
class WeightedCollator(DataCollatorForLanguageModeling):
    """TRL's collator, with the column `weight`."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the padded batch with `weight`, one a row."""
        batch: dict[str, Any] = super().torch_call(examples)
        return batch | {"weight": torch.tensor([example["weight"] for example in examples])}


class WeightedTrainer(SFTTrainer):
    """SFT where the log-probabilities of a row count `weight` times; all else is TRL's."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Return TRL's loss on weighted log-probabilities: the sum over tokens by the batch's number of tokens."""
        weight_B = inputs.pop("weight")

        def weighted(**batch: Any) -> Any:
            outputs = model(**batch)
            outputs.log_probs = outputs.log_probs * weight_B[:, None]
            return outputs

        loss: Any = super().compute_loss(weighted, inputs, *args, **kwargs)  # type: ignore[no-untyped-call]
        return loss


def _columns(examples: Sequence[Tokens], settings: Settings) -> dict[str, list[Any]]:
    if not examples:
        raise LeverlabError(f"{settings.key}: there is no example to train on; run the stage that makes them again")
    for number, (_, own) in enumerate(examples):
        if not any(own[1:]):
            raise LeverlabError(f"{settings.key}: example {number} holds no token of the policy; leave it out")
    return {"input_ids": [ids for ids, _ in examples], "labels": [labels(tokens) for tokens in examples]}
