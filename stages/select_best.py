"""select-best: score every checkpoint of every seed on the validation questions and choose one for each method and
seed."""

import json
import shutil
from pathlib import Path

import pandas as pd

from leverlab.config.select_best import SelectBestParams
from leverlab.config.vlm import EvalParams, VlmParams
from leverlab.errors import LeverlabError
from leverlab.files import write_text
from leverlab.parallel import run_tasks
from leverlab.selector.checkpoints import load_selector
from leverlab.stage import Stage, run_stage, workspace_store
from leverlab.training.loop import Row, checkpoint_name
from leverlab.training.prepared import FEATURES, Prepared, features_of
from leverlab.training.runs import choose_epoch, load_epoch, read_metrics
from leverlab.training.validation import Validator
from leverlab.vlm.scoring import Scorer


def run_folders(seed: int) -> dict[str, Path]:
    """Return method → folder of its run with `seed`."""
    grpo = Path(f"models/grpo/{seed}")
    return {
        "sft": Path(f"models/sft/{seed}"),
        "rce": Path(f"models/rce/{seed}"),
        "grpo": grpo / "grpo",
        "sft_control": grpo / "sft_control",
    }


class Worker:
    """One process: the validation questions and their scorer."""

    data: Prepared
    scorer: Scorer
    shots: int

    @classmethod
    def start(cls, vlm: VlmParams, shots: int) -> None:
        """Open the data and the VLM, once in each process."""
        cls.data = Prepared(Path("data/prepared"), ["val"])
        cls.scorer = cls.data.scorer(cls.data.splits["val"], workspace_store() / "scores.sqlite", vlm)
        cls.shots = shots


def score_run(task: tuple[str, int]) -> list[Row]:
    """Return the validation row of every checkpoint of one run, scored anew or from the cache."""
    method, seed = task
    folder = run_folders(seed)[method]
    sft, data = Path(f"models/sft/{seed}"), Worker.data
    validator = Validator(data.queries_with(features_of(sft)), data.splits["val"], Worker.scorer, Worker.shots)
    reference = load_epoch(sft, "best") if method != "sft" else None
    recorded = read_metrics(folder / "metrics.csv")
    sound = recorded["sound"] if "sound" in recorded else [True] * len(recorded)
    return [
        {"epoch": epoch, "sound": kept, **validator(load_selector(folder / checkpoint_name(epoch)), reference)}
        for epoch, kept in zip(recorded["epoch"].tolist(), sound, strict=True)
    ]


def body(stage: Stage) -> None:
    """Write the table of all checkpoints, the choice, and the chosen checkpoints."""
    params, vlm = stage.section("select_best", SelectBestParams), stage.section("vlm", VlmParams)
    shots, seeds = stage.section("eval", EvalParams).shots, [int(seed) for seed in stage.value("seeds")]
    stage.dep("data/prepared")
    tasks = [(method, seed) for seed in seeds for method in run_folders(seed)]
    tables: list[pd.DataFrame] = []
    chosen: list[tuple[str, int, int, float]] = []
    scored = stage.progress(run_tasks(score_run, tasks, Worker.start, (vlm, shots)), "runs", total=len(tasks))
    for (method, seed), rows in zip(tasks, scored, strict=True):
        folder = run_folders(seed)[method]
        stage.dep(str(folder))
        table = pd.DataFrame(rows)
        recorded = read_metrics(folder / "metrics.csv")["val_accuracy"]
        if not (table["val_accuracy"] - recorded).abs().lt(1e-5).all():
            raise LeverlabError(
                f"the checkpoints in {folder} do not score what its metrics.csv says; train that run again"
            )
        epoch = choose_epoch(table, params.strategy, params.max_kl)
        table.insert(0, "method", method)
        table.insert(1, "seed", seed)
        table["chosen"] = table["epoch"] == epoch
        tables.append(table)
        chosen.append((method, seed, epoch, float(table.loc[table["chosen"], "val_accuracy"].iloc[0])))
        name = stage.out("models/best") / f"{method}-{seed}.safetensors"
        name.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / checkpoint_name(epoch), name)
    for seed in seeds:
        if features := features_of(Path(f"models/sft/{seed}")):
            shutil.copyfile(features, stage.out("models/best") / f"{seed}-{FEATURES}")
    everything = pd.concat(tables, ignore_index=True)
    write_text(stage.out("models/best/checkpoints.csv"), everything.to_csv(index=False, float_format="%.6g"))
    overall = max(chosen, key=lambda choice: choice[3])
    keys = ("method", "seed", "epoch", "val_accuracy")
    best = {
        "strategy": params.strategy,
        "overall": dict(zip(keys, overall, strict=True)),
        "chosen": [dict(zip(keys, choice, strict=True)) for choice in chosen],
    }
    write_text(stage.out("models/best/best.json"), json.dumps(best, indent=2) + "\n")
    stage.say(f"{len(everything)} checkpoints scored; best overall: {best['overall']}")


if __name__ == "__main__":
    run_stage("select-best", body)
