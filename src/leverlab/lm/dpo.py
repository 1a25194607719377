"""DPO on whole dialogues with TRL's `DPOTrainer`: only what the policy says counts, in all four log-probabilities.

The one place that knows TRL's interface for DPO, which takes texts and counts everything after the prompt. Here pairs
come as tokens, and the mask of what counts leaves the words of the user out:

    L = -log sigmoid(beta ((log pi(c) - log ref(c)) - (log pi(r) - log ref(r))))        c: chosen, r: rejected

with log-probabilities summed over the policy's tokens, averaged over the pairs of a batch (arXiv 2305.18290, eq. 7).
The reference is the adapter that training starts from, of which `DPOTrainer` keeps a copy.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer

from leverlab.errors import LeverlabError
from leverlab.lm.adapters import Base
from leverlab.lm.preferences import Pair
from leverlab.lm.trainers import Row, Settings, arguments, run_trainer

# column of a step's row → TRL's name. margin: mean of beta times the bracket above; accuracy: share of pairs where it
# is positive; chosen, rejected: mean log-probabilities of the policy
COLUMNS = {
    "loss": "loss",
    "lr": "learning_rate",
    "grad_norm": "grad_norm",
    "margin": "rewards/margins",
    "accuracy": "rewards/accuracies",
    "chosen": "logps/chosen",
    "rejected": "logps/rejected",
}
_REFERENCE = "ref"  # TRL's name of the adapter that it copies


@dataclass(frozen=True)
class DpoSettings(Settings):
    """Settings with `beta`, how dear it is to leave the reference. batch: pairs of an update."""

    beta: float = 0.1


def train_dpo(
    policy: PeftModel,
    base: Base,
    pairs: Sequence[Pair],
    settings: DpoSettings,
    folder: Path,
    on_log: Callable[[Row], None],
) -> list[Row]:
    """Train the adapter of `policy` in place on `pairs`; return a row a step (`COLUMNS`).

    The adapter that comes in is the reference: a run that was killed must be given the same one again. Checkpoints go
    to `folder`; a run that finds some goes on from them, to the same weights and rows. Raises `LeverlabError` when
    there is no pair, one has a dialogue without a token of the policy, or a loss is no number.
    """
    if not pairs:
        raise LeverlabError(f"{settings.key}: there is no pair to train on; run the stage that makes them again")
    for pair in pairs:
        if not (any(pair.chosen[1][1:]) and any(pair.rejected[1][1:])):
            raise LeverlabError(
                f"{settings.key}: a dialogue on question '{pair.question}' holds no token of the policy; leave it out"
            )
    args = arguments(settings, len(pairs), folder)
    trainer = DialoguePairTrainer(
        model=policy,
        args=DPOConfig(beta=settings.beta, loss_type=["sigmoid"], remove_unused_columns=False, **args),
        data_collator=MaskedCollator(pad_token_id=base.chat.pad),
        train_dataset=Dataset.from_list([_columns(pair) for pair in pairs]),
        processing_class=base.chat.tokenizer,
    )
    try:
        return run_trainer(trainer, policy, settings, COLUMNS, on_log)
    finally:
        policy.delete_adapter(_REFERENCE)


@dataclass
class MaskedCollator(DataCollatorForPreference):
    """TRL's collator, whose mask leaves out what the user says."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the padded batch, chosen dialogues first; its `completion_mask` is 1 for tokens of the policy."""
        batch: dict[str, Any] = super().torch_call([example | {"prompt_ids": []} for example in examples])
        batch["completion_mask"].zero_()
        for row, own in enumerate([example[f"{side}_own"] for side in ("chosen", "rejected") for example in examples]):
            batch["completion_mask"][row, : len(own)] = torch.tensor(own)
        return batch


class DialoguePairTrainer(DPOTrainer):
    """DPO on pairs that are tokens already."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset


def _columns(pair: Pair) -> dict[str, Any]:
    (chosen, chosen_own), (rejected, rejected_own) = pair.chosen, pair.rejected
    return {
        "chosen_ids": chosen,
        "chosen_own": chosen_own,
        "rejected_ids": rejected,
        "rejected_own": rejected_own,
    }
