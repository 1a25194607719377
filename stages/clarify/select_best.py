"""select-best: of each seed of GRPO keep an evaluation, by how the policy did on the validation questions."""

import json
import shutil

from leverlab.config.dialogue_inference import SelectPolicyParams
from leverlab.csvfile import read_csv
from leverlab.files import write_text
from leverlab.lm.select import best_evaluation
from leverlab.lm.stages import seeds_of, write_rows
from leverlab.stage import Stage, run_stage

COLUMNS = ("step", "reward", "success", "need_success", "over_clarification", "sound")


def body(stage: Stage) -> None:
    """Copy the chosen adapters, and say which they are and which seed is best of all."""
    params, seeds = stage.section("select_best", SelectPolicyParams), seeds_of(stage.value("seeds"))
    runs, out = stage.dep("recipes/clarify/models/grpo"), stage.out("recipes/clarify/models/best")
    chosen = []
    for seed in seeds:
        rows = read_csv(runs / str(seed) / "evaluations.csv", (*COLUMNS, f"{params.by}_se"))
        row = best_evaluation(rows, params.by)
        shutil.copytree(runs / str(seed) / "steps" / str(row["step"]), out / str(seed) / "adapter")
        chosen.append({"seed": seed} | {name: row[name] for name in COLUMNS})
        stage.say(f"seed {seed}: step {row['step']}, {params.by} {row[params.by]:.4f}")
    best = max(chosen, key=lambda row: (row[params.by], -row["seed"]))
    write_rows(out / "choices.csv", chosen)
    write_text(out / "best.json", json.dumps({"seed": best["seed"], "step": best["step"]}, indent=2) + "\n")


if __name__ == "__main__":
    run_stage("select-best", body, home="recipes/clarify")
