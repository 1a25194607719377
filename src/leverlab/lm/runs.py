"""What a training leaves for other stages: rows, adapters, and of GRPO every dialogue with its reward."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from peft import PeftModel

from leverlab.errors import LeverlabError
from leverlab.lm.adapters import Base, save_adapter
from leverlab.lm.loop import Memory
from leverlab.lm.stages import write_rows
from leverlab.lm.validation import Validator
from leverlab.stage import Stage


def publish_policy(
    stage: Stage, out: Path, policy: PeftModel, base: Base, rows: Sequence[Mapping[str, object]], validator: Validator
) -> None:
    """Write `out`: adapter/, steps.csv (the rows of the training), and evaluations.csv, of its greedy dialogues."""
    save_adapter(policy, base, out / "adapter")
    write_rows(out / "steps.csv", rows)
    found = validator.greedy(policy)
    write_rows(out / "evaluations.csv", [{"step": len(rows), **found}])
    stage.say(", ".join(f"{name} {value:.3f}" for name, value in found.items()))


def publish_grpo(memory: Memory, state: Path, out: Path) -> None:
    """Write `out`: evaluations.csv, steps.csv, rollouts.jsonl, and steps/<step>/ for each evaluation.

    state: the folder of the run. What a killed attempt left there of later steps is not taken. Raises `LeverlabError`
    when the record of a step is missing.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_rows(out / "evaluations.csv", memory.rows)
    write_rows(out / "steps.csv", memory.steps)
    for row in memory.rows:
        shutil.copytree(state / "steps" / str(row["step"]), out / "steps" / str(row["step"]))
    last = memory.steps[-1]["step"] if memory.steps else 0
    with (out / "rollouts.jsonl").open("w", encoding="utf-8") as file:
        for path in sorted((state / "rollouts").glob("*.jsonl")):
            if int(path.stem) < last:
                file.write(path.read_text(encoding="utf-8"))
    if last and not (out / "rollouts.jsonl").stat().st_size:
        raise LeverlabError(f"{state / 'rollouts'} holds no dialogue of the run; delete {state} and run again")
