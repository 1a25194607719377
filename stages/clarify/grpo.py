"""grpo: group-relative policy optimisation on whole dialogues, from RCE's policy, with the verified reward."""

from dataclasses import replace

from leverlab.config.clarify_grpo import DialogueGrpoParams
from leverlab.config.dialogues import BaseModelParams, DialogueParams, DialogueRewardParams
from leverlab.live import Live, Training
from leverlab.lm.adapters import load_base, load_policy
from leverlab.lm.grpo import Run, train_grpo
from leverlab.lm.loop import adapter_file
from leverlab.lm.questions import read_questions
from leverlab.lm.rewards import verified
from leverlab.lm.runs import publish_grpo
from leverlab.lm.stages import limits_of, run_seed
from leverlab.lm.validation import Validator
from leverlab.stage import Stage


def body(stage: Stage, seed: int) -> None:
    """Train one seed; write the adapter of every evaluation, the rows, and every dialogue with its reward terms."""
    source, params = stage.section("base", BaseModelParams), stage.section("grpo", DialogueGrpoParams)
    limits, reward = (
        limits_of(stage.section("dialogues", DialogueParams)),
        stage.section("reward", DialogueRewardParams),
    )
    data = stage.dep("recipes/clarify/data/questions")
    adapters = {
        "sft": stage.dep(f"recipes/clarify/models/sft/{seed}") / "adapter",
        "rce": stage.dep(f"recipes/clarify/models/rce/{seed}") / "adapter",
    }
    base = load_base(source.source, source.dtype)
    policy = load_policy(base, adapters[params.init], trainable=True)
    validator = Validator(
        base.chat,
        read_questions(data / "val.jsonl")[: params.evaluate_on],
        limits,
        reward.alpha,
        reward.high,
        seed,
    )
    run = Run(
        name="grpo",
        seed=seed,
        questions=read_questions(data / "train.jsonl"),
        params=params,
        limits=limits,
        reward=verified,
        evaluate=validator,
        folder=stage.state_dir,
        say=stage.say,
    )
    with Live(Training.of(stage, "step", params.steps, "val/success")) as live:
        memory = train_grpo(policy, base, adapter_file(adapters[params.reference]), replace(run, log=live.log))
    publish_grpo(memory, stage.state_dir, stage.out(f"recipes/clarify/models/grpo/{seed}"))


if __name__ == "__main__":
    run_seed("grpo", body, "recipes/clarify")
