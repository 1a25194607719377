"""What a run of GRPO on dialogues remembers: evaluations, the guard's events, and which questions went badly.

All of it is saved with every checkpoint, so that a run that was killed decides as one that was not.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file

from leverlab.config.clarify_grpo import LadderParams
from leverlab.errors import LeverlabError
from leverlab.files import write_text
from leverlab.library_errors import reason_of
from leverlab.rl.guard import windowed_kl

Row = dict[str, Any]
Reaction = Literal["none", "alpha", "back", "stop"]

REFERENCE = "ref"  # TRL's name for the adapter that the KL is measured to
_MEMORY, _GOOD = "loop.json", "good.safetensors"


@dataclass
class Memory:
    """The state of a run beside weights and optimiser.

    rows: one an evaluation, the first before any training, with the columns of `Event`. steps: one an optimiser step.
    success: question id → share of its last group that was `sound`. alpha_factor, beta: as the guard has left them.
    """

    beta: float
    alpha_factor: float = 1.0
    rows: list[Row] = field(default_factory=list)
    steps: list[Row] = field(default_factory=list)
    success: dict[str, float] = field(default_factory=dict)

    @property
    def stopped(self) -> bool:
        """Whether the guard ended the run."""
        return bool(self.rows) and self.rows[-1]["action"] == "stop"

    def save(self, folder: Path, good: Mapping[str, torch.Tensor]) -> None:
        """Write all of it, with the weights of the last good evaluation, beside a checkpoint."""
        save_file(dict(good), folder / _GOOD)
        write_text(folder / _MEMORY, json.dumps(self.__dict__) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "tuple[Memory, dict[str, torch.Tensor]]":
        """Return what `save` wrote. Raises `LeverlabError` when it is missing or damaged."""
        try:
            memory = cls(**json.loads((folder / _MEMORY).read_text(encoding="utf-8")))
            return memory, load_file(folder / _GOOD)
        except Exception as error:  # safetensors and json raise errors of many kinds
            problem = reason_of(error)
            raise LeverlabError(
                f"the checkpoint {folder} is damaged ({type(error).__name__}: {problem}); delete it and run again: the "
                "run goes on from the one before"
            ) from None


@dataclass(frozen=True)
class Event:
    """What the guard does after an evaluation, and why; `sound` says whether the evaluation kept to the limits."""

    action: Reaction = "none"
    guard: str = ""
    sound: bool = True


def react(rows: Sequence[Row], limits: LadderParams) -> Event:
    """Return the reaction to the last of `rows`, the first of which is before training and never beyond a limit.

    A policy whose log-probabilities are no numbers ends the run before: it can hold no dialogue. The ladder: the first
    time beyond a limit asks cost `alpha_factor` times as much; then the run goes back to its last
    good evaluation with the KL coefficient times `beta_factor`, at most `rollbacks` times; then it stops.
    """
    problem = beyond(rows, limits)
    if problem is None:  # sound by its own KL: nobody should choose it or go back to it else
        return Event(sound=len(rows) < 2 or rows[-1]["kl"] <= limits.kl)
    done = [row["action"] for row in rows[:-1]]
    if "alpha" not in done and "back" not in done:
        return Event("alpha", f"asks cost {limits.alpha_factor:g} times as much: {problem}", False)
    if done.count("back") < limits.rollbacks:
        good = max(n for n, row in enumerate(rows[:-1]) if row["sound"])
        return Event(
            "back", f"back to step {rows[good]['step']}, KL weight times {limits.beta_factor:g}: {problem}", False
        )
    return Event("stop", f"stopped: {problem} (went back {limits.rollbacks} times before)", False)


def beyond(rows: Sequence[Row], limits: LadderParams) -> str | None:
    """Return what the last evaluation is beyond, or None. What is not a number is beyond any limit.

    rows have `kl` (nats per token of the policy), `spam` and `format_exploit` (shares of dialogues).
    """
    if len(rows) < 2:
        return None
    last, kl = rows[-1], windowed_kl(rows, limits.window)
    found = [
        (not kl <= limits.kl, f"KL {kl:.3g} nats per token is above {limits.kl:g}"),
        (not last["spam"] <= limits.spam, f"{last['spam']:.1%} of the dialogues are ask spam, above {limits.spam:.1%}"),
        (
            not last["format_exploit"] <= limits.format_exploit,
            f"{last['format_exploit']:.1%} exploit the format, above {limits.format_exploit:.1%}",
        ),
    ]
    return next((text for is_beyond, text in found if is_beyond), None)


def adapter_weights(policy: PeftModel) -> dict[str, torch.Tensor]:
    """Return a copy of the weights of the adapter that is trained."""
    weights = get_peft_model_state_dict(policy, adapter_name="default")
    return {name: weight.detach().cpu().clone().contiguous() for name, weight in weights.items()}


def set_adapter_weights(policy: PeftModel, weights: Mapping[str, torch.Tensor], name: str = "default") -> None:
    """Put `weights` into the adapter `name`."""
    set_peft_model_state_dict(policy, dict(weights), adapter_name=name)


def adapter_file(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a saved adapter. Raises `LeverlabError` when they are missing or damaged."""
    path = folder / SAFETENSORS_WEIGHTS_NAME
    try:
        return load_file(path)
    except Exception as error:
        raise LeverlabError(f"{path} cannot be read ({error}); run the stage that trains the adapter") from None


def check_finite(row: Row, where: str, key: str) -> None:
    """Raise `LeverlabError` when the loss of a row is no number; `key` of params is what to lower."""
    if not math.isfinite(row.get("loss", 0.0)):
        raise LeverlabError(f"{where}: the loss is {row['loss']} at step {row['step']}; lower {key}")
