"""rl-data: groups of dialogues sampled from the SFT policy, with their rewards: what RCE and DPO learn from."""

import json

import torch

from leverlab.config.clarify_rl_data import DialogueGroupParams
from leverlab.config.dialogues import BaseModelParams, DialogueParams
from leverlab.errors import LeverlabError
from leverlab.files import write_text
from leverlab.lm.adapters import load_base, load_policy
from leverlab.lm.group_health import group_health
from leverlab.lm.questions import read_questions
from leverlab.lm.records import RewardRecord, read_records, write_records
from leverlab.lm.rewards import rewarded, verified
from leverlab.lm.rollouts import roll_out
from leverlab.lm.stages import limits_of, run_seed
from leverlab.lm.summary import plain
from leverlab.stage import Stage


def body(stage: Stage, seed: int) -> None:
    """Write the groups of one seed, and their health; fail when they hold too little to learn from."""
    source, params = stage.section("base", BaseModelParams), stage.section("rl_data", DialogueGroupParams)
    limits = limits_of(stage.section("dialogues", DialogueParams))
    questions = read_questions(stage.dep("recipes/clarify/data/questions") / "train.jsonl")[: params.questions]
    base = load_base(source.source, source.dtype)
    policy = load_policy(base, stage.dep(f"recipes/clarify/models/sft/{seed}") / "adapter")
    records: list[RewardRecord] = []
    alpha = params.alpha
    for start in stage.progress(range(0, len(questions), params.batch), "dialogues"):
        kept = stage.state_dir / f"{start:06d}.jsonl"  # so that a kill costs no more than one batch
        if not kept.exists():
            generator = torch.Generator(policy.device).manual_seed(seed * 1_000_003 + start)
            part = questions[start : start + params.batch]
            rollouts = roll_out(policy, base.chat, part, params.group, limits, params.temperature, generator)
            rows = [
                rewarded(one, verified(one, alpha), "sft", seed, n % params.group, params.temperature, alpha)
                for n, one in enumerate(rollouts)
            ]
            write_records(kept, rows)
        records += read_records(kept, RewardRecord)
    health = group_health(records, {question.id: question for question in questions})
    out = f"recipes/clarify/data/rl/{seed}"
    write_records(stage.out(out) / "groups.jsonl", records)
    write_text(stage.out(f"recipes/clarify/reports/health/{seed}.json"), json.dumps(plain(health), indent=2) + "\n")
    stage.say(", ".join(f"{name} {value:.3f}" for name, value in health.items()))
    if health["live_groups"] < params.min_live:
        raise LeverlabError(
            f"only {health['live_groups']:.1%} of the groups have any spread of rewards, rl_data.min_live asks for "
            f"{params.min_live:.1%}: there is hardly anything to learn from; raise rl_data.temperature or rl_data.group"
        )


if __name__ == "__main__":
    run_seed("rl-data", body, "recipes/clarify")
