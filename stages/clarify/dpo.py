"""dpo: the other branch from SFT: preferences between sampled dialogues."""

from leverlab.config.dialogue_training import DpoParams
from leverlab.config.dialogues import BaseModelParams, DialogueParams, DialogueRewardParams
from leverlab.live import Live, Training
from leverlab.lm.adapters import load_base, load_policy
from leverlab.lm.dpo import DpoSettings, train_dpo
from leverlab.lm.preferences import preference_pairs
from leverlab.lm.questions import read_questions
from leverlab.lm.records import RewardRecord, read_records
from leverlab.lm.runs import publish_policy
from leverlab.lm.stages import limits_of, questions_by_id, run_seed, say_every, settings_of, tokens_of
from leverlab.lm.validation import Validator
from leverlab.stage import Stage


def body(stage: Stage, seed: int) -> None:
    """Train one seed and write its adapter."""
    source, params = stage.section("base", BaseModelParams), stage.section("dpo", DpoParams)
    limits, reward = (
        limits_of(stage.section("dialogues", DialogueParams)),
        stage.section("reward", DialogueRewardParams),
    )
    data = stage.dep("recipes/clarify/data/questions")
    path = stage.dep(f"recipes/clarify/data/rl/{seed}") / "groups.jsonl"
    records, questions = read_records(path, RewardRecord), questions_by_id(data / "train.jsonl")
    base = load_base(source.source, source.dtype)
    policy = load_policy(base, stage.dep(f"recipes/clarify/models/sft/{seed}") / "adapter", trainable=True)
    found = preference_pairs(
        [record.question for record in records],
        [record.total for record in records],
        [tokens_of(base.chat, record, questions, path) for record in records],
        params.margin,
        params.pairs,
        seed,
    )
    stage.say(f"{len(found.pairs)} pairs; {found.without} of {found.questions} questions have none")
    settings = DpoSettings(**vars(settings_of(params, "dpo", seed)), beta=params.beta)
    with Live(Training.of(stage, "step", settings.updates(len(found.pairs)))) as live:
        rows = train_dpo(policy, base, found.pairs, settings, stage.state_dir, live.also(say_every(stage, 10)))
    validator = Validator(base.chat, read_questions(data / "val.jsonl"), limits, reward.alpha, reward.high, seed)
    publish_policy(stage, stage.out(f"recipes/clarify/models/dpo/{seed}"), policy, base, rows, validator)


if __name__ == "__main__":
    run_seed("dpo", body, "recipes/clarify")
