"""What the trainers on fixed examples share: settings of transformers' `Trainer`, and runs that a kill does not change.

Every step is logged, so that the rows of a run that was killed do not depend on where. Nothing in a row was measured
with a clock.
"""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from leverlab.errors import LeverlabError
from leverlab.lm.checkpoints import MarkWhole, resume_point

Row = dict[str, float]


@dataclass(frozen=True)
class Settings:
    """How weights move: AdamW, a learning rate that climbs to `lr` in `warmup` and falls to 0 along a cosine.

    epochs: over the examples, where `steps` is None; else the number of updates. batch: examples of an update.
    warmup: share of the updates. grad_clip: most that the norm of the gradient may be. save_every: updates between two
    checkpoints. key: of the section of params.yaml, for messages.
    """

    lr: float
    batch: int
    epochs: int = 1
    steps: int | None = None
    warmup: float = 0.0
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    seed: int = 0
    save_every: int = 100
    key: str = "sft"

    def updates(self, examples: int) -> int:
        """Return how many updates a run on so many examples takes."""
        return self.epochs * math.ceil(examples / self.batch) if self.steps is None else self.steps


def arguments(settings: Settings, examples: int, folder: Path) -> dict[str, Any]:
    """Return the arguments that TRL's configs of all trainers share: on CPU plain float32, on a GPU bfloat16.

    Checkpoints go to `folder`; one in reserve is kept, because a kill may leave the newest half written.
    """
    cuda, updates = torch.cuda.is_available(), settings.updates(examples)
    processes = int(os.environ.get("WORLD_SIZE", "1"))  # set by torchrun and accelerate
    if settings.batch % processes:
        raise LeverlabError(
            f"{settings.key}.batch = {settings.batch} cannot be shared by {processes} processes; make it a multiple"
        )
    return {
        "output_dir": str(folder),
        "seed": settings.seed,
        "data_seed": settings.seed,
        "max_steps": updates,
        "per_device_train_batch_size": settings.batch // processes,
        "learning_rate": settings.lr,
        "lr_scheduler_type": "cosine",
        "warmup_steps": round(settings.warmup * updates),
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.grad_clip,
        "optim": "adamw_torch",
        "max_length": None,  # examples are used whole, or not at all
        "use_cpu": not cuda,
        "bf16": cuda,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would log the last loss that was a number instead
        "save_strategy": "steps",
        "save_steps": settings.save_every,
        "save_total_limit": 2,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "report_to": [],
    }


def run_trainer(
    trainer: Trainer, policy: PeftModel, settings: Settings, columns: Mapping[str, str], on_log: Callable[[Row], None]
) -> list[Row]:
    """Train `policy`, which the trainer has, from the newest whole checkpoint on; return a row a step.

    columns: of a row beside `step` → what the trainer calls them. `on_log` gets the rows of the steps that are taken
    now, not of those that a checkpoint holds. The policy is left in eval mode. Raises `LeverlabError` when a loss or
    gradient is no number.
    """
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(MarkWhole())
    trainer.add_callback(_Rows(settings, columns, on_log))
    with trainer.args.main_process_first(local=False):  # which removes what a kill left half
        checkpoint = resume_point(Path(str(trainer.args.output_dir)))
    if checkpoint is not None and _is_finished(Path(checkpoint), trainer.args.max_steps):
        # `train` would take one step more, where the steps are no whole number of epochs
        trainer._load_from_checkpoint(checkpoint)
        trainer.state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
    else:
        trainer.train(resume_from_checkpoint=checkpoint)
    policy.eval()
    return [_row(entry, columns) for entry in trainer.state.log_history if "loss" in entry]


def _is_finished(checkpoint: Path, steps: int) -> bool:
    """Return whether a checkpoint is that of the last step."""
    return bool(TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).global_step >= steps)


class _Rows(TrainerCallback):
    """Hands each row on, and ends a run whose loss is no number before it is saved."""

    def __init__(self, settings: Settings, columns: Mapping[str, str], on_row: Callable[[Row], None]):
        self._settings, self._columns, self._on_row = settings, columns, on_row

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        entry = state.log_history[-1]
        if "loss" not in entry:  # what is logged once, at the end
            return
        for name in ("loss", "grad_norm"):
            if not math.isfinite(entry[name]):
                raise LeverlabError(
                    f"the {name} is {entry[name]} at step {entry['step']}; lower {self._settings.key}.lr "
                    f"({self._settings.lr:g}) or {self._settings.key}.grad_clip ({self._settings.grad_clip:g})"
                )
        if state.is_world_process_zero:
            self._on_row(_row(entry, self._columns))


def _row(entry: Mapping[str, float], columns: Mapping[str, str]) -> Row:
    return {"step": entry["step"]} | {name: float(entry[source]) for name, source in columns.items()}
