"""convert: merge the best adapter into the base, and prove that the merged model says the same."""

import json
import math

from leverlab.config.dialogues import BaseModelParams, DialogueParams
from leverlab.errors import LeverlabError
from leverlab.files import write_text
from leverlab.lm.adapters import load_base, load_policy, save_merged
from leverlab.lm.questions import read_questions
from leverlab.lm.rollouts import roll_out
from leverlab.lm.select import read_best
from leverlab.lm.stages import limits_of
from leverlab.lm.summary import plain
from leverlab.stage import Stage, run_stage


def body(stage: Stage) -> None:
    """Write the merged model in the hub's format; fail when a greedy dialogue on a validation question differs."""
    source, limits = stage.section("base", BaseModelParams), limits_of(stage.section("dialogues", DialogueParams))
    best = stage.dep("recipes/clarify/models/best")
    questions = read_questions(stage.dep("recipes/clarify/data/questions") / "val.jsonl")
    base = load_base(source.source, source.dtype)
    policy = load_policy(base, best / str(read_best(best).seed) / "adapter")
    before = roll_out(policy, base.chat, questions, 1, limits, 0.0, fold=False)  # the adapter beside the weights
    out = stage.out("recipes/clarify/models/merged")
    save_merged(policy, base, out)
    merged = load_base(str(out), source.dtype)
    after = roll_out(merged.model, merged.chat, questions, 1, limits, 0.0)
    differ = [a.dialogue.question.id for a, b in zip(before, after, strict=True) if a.completion != b.completion]
    gaps = [
        abs(x - y)
        for a, b in zip(before, after, strict=True)
        if a.completion == b.completion
        for x, y in zip(a.logps, b.logps, strict=True)
    ]
    largest = max(gaps, default=math.inf)
    proof = {"dialogues": len(before), "equal": len(before) - len(differ), "max_logp_difference": round(largest, 6)}
    write_text(out / "proof.json", json.dumps(plain(proof), indent=2) + "\n")
    stage.say(f"{proof['equal']} of {proof['dialogues']} dialogues equal, log-probabilities within {largest:.2g}")
    if differ:
        raise LeverlabError(
            f"merged, the policy says something else on {len(differ)} of {len(before)} validation questions (first: "
            f"{differ[0]}); merging in {source.dtype} is too coarse: set base.dtype to float32"
        )


if __name__ == "__main__":
    run_stage("convert", body, home="recipes/clarify")
