"""The choice among the evaluations of a run."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ValidationError

from leverlab.errors import LeverlabError
from leverlab.library_errors import reason_of


def best_evaluation(rows: pd.DataFrame, by: str) -> dict[str, Any]:
    """Return the last row after training began that kept to the guard's limits, unless `by` is better in another.

    Better is what is ahead of the later one by more than a standard error, the larger of both (column `<by>_se`, none
    where it is NaN): a checkpoint that one question more speaks for is not taken for progress. It is the rule of one
    standard error (Breiman et al. 1984, section 3.4.3) with the whole training in the place of the simplest model.
    Raises `LeverlabError` when there is none: what training began with is no result of it.
    """
    sound = rows[rows["sound"].astype(bool) & (rows["step"] > 0) & rows[by].notna()]
    if sound.empty:
        raise LeverlabError(
            f"no evaluation of the run after step 0 kept to the guard's limits ({len(rows)} evaluations); see the "
            "column 'guard' of its evaluations.csv, and lower grpo.lr or raise grpo.beta"
        )
    best = sound.sort_values([by, "step"], ascending=[False, True]).iloc[0]
    error = sound[f"{by}_se"].fillna(0.0).clip(lower=0.0 if np.isnan(best[f"{by}_se"]) else best[f"{by}_se"])
    near = sound[best[by] - sound[by] <= error]
    row: dict[str, Any] = near.sort_values("step").iloc[-1].to_dict()
    return row | {"step": int(row["step"]), "sound": True}


class Best(BaseModel, strict=True, extra="forbid"):
    """The run that was best of all seeds, and the step of its chosen evaluation."""

    seed: int
    step: int


def read_best(folder: Path) -> Best:
    """Return what select-best chose. Raises `LeverlabError` when its file is missing or damaged."""
    path = folder / "best.json"
    try:
        return Best.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        problem = reason_of(error)
        raise LeverlabError(f"{path} cannot be read ({problem}); run dvc repro select-best") from None
