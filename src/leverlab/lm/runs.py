"""What a run of GRPO leaves for other stages: rows, the adapter of each evaluation, every dialogue with its reward."""

import shutil
from pathlib import Path

import pandas as pd

from leverlab.errors import LeverlabError
from leverlab.files import write_text
from leverlab.lm.loop import Memory


def publish_grpo(memory: Memory, state: Path, out: Path) -> None:
    """Write `out`: evaluations.csv, steps.csv, rollouts.jsonl, and steps/<step>/ for each evaluation.

    state: the folder of the run. What a killed attempt left there of later steps is not taken. Raises `LeverlabError`
    when the record of a step is missing.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in (("evaluations", memory.rows), ("steps", memory.steps)):
        write_text(out / f"{name}.csv", pd.DataFrame(rows).to_csv(index=False, float_format="%.6g"))
    for row in memory.rows:
        shutil.copytree(state / "steps" / str(row["step"]), out / "steps" / str(row["step"]))
    last = memory.steps[-1]["step"] if memory.steps else 0
    with (out / "rollouts.jsonl").open("w", encoding="utf-8") as file:
        for path in sorted((state / "rollouts").glob("*.jsonl")):
            if int(path.stem) < last:
                file.write(path.read_text(encoding="utf-8"))
    if last and not (out / "rollouts.jsonl").stat().st_size:
        raise LeverlabError(f"{state / 'rollouts'} holds no dialogue of the run; delete {state} and run again")
