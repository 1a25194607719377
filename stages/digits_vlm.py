"""digits-vlm: train the embedded world's VLM from random weights, gate it on the matching test, save it in the hub's
format."""

import json
import math
from typing import Any

import pandas as pd
import torch

from leverlab.config.digits_vlm import DigitsVlmParams
from leverlab.csvfile import read_csv
from leverlab.errors import LeverlabError
from leverlab.files import write_text
from leverlab.stage import Stage, run_stage
from leverlab.training.digits_vlm import fit, matching_accuracy
from leverlab.vlm.tiny import build_model, build_processor, build_tokenizer
from leverlab.worlds.digits_scenes import CLASSES, QUESTIONS, WORDS, scan_parts

SHOTS = (2, 3, 4)


def body(stage: Stage) -> None:
    """Train, test, save."""
    params = stage.section("digits_vlm", DigitsVlmParams)
    words = [*(word for names in CLASSES.values() for word in names), *WORDS]
    questions = [question for wordings in QUESTIONS.values() for question in wordings]
    tokenizer = build_tokenizer([*questions, *(f" {word}" for word in words)])
    processor = build_processor(tokenizer)
    torch.manual_seed(params.seed)
    model: Any = build_model(tokenizer)
    rows_file = stage.state_dir / "training.csv"
    rows = read_csv(rows_file, ["step"]).to_dict("records") if rows_file.exists() else []

    def on_step(step: int, diagnostics: dict[str, float]) -> None:
        if not math.isfinite(diagnostics["loss"]):
            raise LeverlabError(f"the loss is not a number at step {step}; lower digits_vlm.lr")
        if step % 50 == 0 or step == params.steps:
            rows[:] = [row for row in rows if row["step"] < step] + [{"step": step, **diagnostics}]
            write_text(rows_file, pd.DataFrame(rows).to_csv(index=False, float_format="%.5g"))
            stage.say(
                f"step {step} of {params.steps}: accuracy {diagnostics['accuracy']:.3f}, loss {diagnostics['loss']:.3f}"
            )

    fit(
        model,
        processor,
        scan_parts()["meta"],
        steps=params.steps,
        episodes=params.episodes,
        items=params.items,
        learning_rate=params.lr,
        unseen_weight=params.unseen_weight,
        head_weight=params.head_weight,
        seed=params.seed,
        save_every=params.save_every,
        state_file=stage.state_dir / "resume.pt",
        on_step=on_step,
    )
    model = model.to(torch.bfloat16)
    out = stage.out("worlds/digits/vlm")
    model.save_pretrained(out)
    processor.save_pretrained(out)
    model = model.float()  # the weights as stored, rounded to bfloat16, are what is judged
    accuracy = {
        f"shots_{shots}": matching_accuracy(
            model, processor, scan_parts()["pool"], shots, params.test_episodes, params.seed
        )
        for shots in SHOTS
    }
    write_text(stage.out("worlds/digits/matching.json"), json.dumps({"matching": accuracy}, indent=2) + "\n")
    write_text(stage.out("worlds/digits/training.csv"), rows_file.read_text())
    stage.say(f"matching test: {accuracy}")
    if accuracy["shots_4"] < params.min_matching:
        raise LeverlabError(
            f"the VLM matches {accuracy['shots_4']:.3f} of the demos at 4 shots, below digits_vlm.min_matching = "
            f"{params.min_matching}: it does not learn in context; train longer (digits_vlm.steps) or with another seed"
        )


if __name__ == "__main__":
    run_stage("digits-vlm", body, home="worlds/digits")
