"""clarify-base: train the base of the recipe `clarify` from random weights, gate it on the reading test, save it in the
hub's format."""

import json
import math
from typing import Any

import numpy as np
import pandas as pd
import torch

from leverlab.config.clarify_base import ClarifyBaseParams
from leverlab.csvfile import read_csv
from leverlab.errors import LeverlabError
from leverlab.files import write_text
from leverlab.lm.chat import Chat
from leverlab.lm.pretraining import fit
from leverlab.lm.reading import read_shares
from leverlab.lm.tiny import build_model, build_tokenizer
from leverlab.lm.tokens import Tokens
from leverlab.stage import Stage, run_stage
from leverlab.worlds.clarify_base import Reader, vocabulary

_TEST = 1  # second part of the seed of the reading test: its dialogues are not those of training


def body(stage: Stage) -> None:
    """Train, test, save."""
    params = stage.section("clarify_base", ClarifyBaseParams)
    tokenizer = build_tokenizer(vocabulary())
    chat = Chat(tokenizer)
    reader = Reader(chat)
    torch.manual_seed(params.seed)
    model: Any = build_model(tokenizer)
    rows_file = stage.state_dir / "training.csv"
    rows = read_csv(rows_file, ["step"]).to_dict("records") if rows_file.exists() else []

    def batch(rng: np.random.Generator, step: int) -> list[Tokens]:
        repeated = params.rows if step < params.warmup else params.repetitions
        return [
            *(reader.repetition(rng, params.length) for _ in range(repeated)),
            *(reader.dialogue(rng)[1] for _ in range(params.rows - repeated)),
        ]

    def on_step(step: int, diagnostics: dict[str, float]) -> None:
        if not math.isfinite(diagnostics["loss"]):
            raise LeverlabError(f"the loss is not a number at step {step}; lower clarify_base.lr")
        if step % 50 == 0 or step == params.steps:
            rows[:] = [row for row in rows if row["step"] < step] + [{"step": step, **diagnostics}]
            write_text(rows_file, pd.DataFrame(rows).to_csv(index=False, float_format="%.5g"))
            stage.say(f"step {step} of {params.steps}: " + ", ".join(f"{k} {v:.3f}" for k, v in diagnostics.items()))

    fit(
        model,
        batch,
        chat.pad,
        steps=params.steps,
        learning_rate=params.lr,
        echo_weight=params.echo_weight,
        echo_steps=params.warmup,
        seed=params.seed,
        save_every=params.save_every,
        state_file=stage.state_dir / "resume.pt",
        on_step=on_step,
    )
    model = model.to(torch.bfloat16)
    out = stage.out("worlds/clarify/base")
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    model = model.float()  # the weights as stored, rounded to bfloat16, are what is judged
    rng = np.random.default_rng([params.seed, _TEST, params.steps])
    tests = [reader.dialogue(rng) for _ in range(params.test_dialogues)]
    shares = read_shares(model, chat, [tokens for _, tokens in tests], [family for family, _ in tests])
    write_text(stage.out("worlds/clarify/reading.json"), json.dumps({"reading": shares}, indent=2) + "\n")
    write_text(stage.out("worlds/clarify/training.csv"), rows_file.read_text())
    stage.say(f"reading test: {shares}")
    family, worst = min(shares.items(), key=lambda item: item[1])
    if worst < params.min_reading:
        raise LeverlabError(
            f"the base reads {worst:.3f} of the dialogues of '{family}' without a slip, below "
            f"clarify_base.min_reading = {params.min_reading}; train longer (clarify_base.steps) or with another seed"
        )


if __name__ == "__main__":
    run_stage("clarify-base", body, home="worlds/clarify")
