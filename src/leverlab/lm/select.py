"""The choice among the evaluations of a run."""

from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, ValidationError

from leverlab.errors import LeverlabError


def best_evaluation(rows: pd.DataFrame, by: str) -> dict[str, Any]:
    """Return the row with the highest `by` among those after training began that kept to the guard's limits.

    Ties go to the earlier step. Raises `LeverlabError` when there is none: what training began with is no result of it.
    """
    sound = rows[rows["sound"].astype(bool) & (rows["step"] > 0) & rows[by].notna()]
    if sound.empty:
        raise LeverlabError(
            f"no evaluation of the run after step 0 kept to the guard's limits ({len(rows)} evaluations); see the "
            "column 'guard' of its evaluations.csv, and lower grpo.lr or raise grpo.beta"
        )
    row: dict[str, Any] = sound.sort_values([by, "step"], ascending=[False, True]).iloc[0].to_dict()
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
        problem = " ".join(str(error).split())[:300]
        raise LeverlabError(f"{path} cannot be read ({problem}); run dvc repro select-best") from None
