"""rce: imitate the sampled dialogues of each group by their reward."""

from leverlab.config.dialogue_training import DialogueRceParams
from leverlab.config.dialogues import BaseModelParams, DialogueParams, DialogueRewardParams
from leverlab.live import Live, Training
from leverlab.lm.adapters import load_base, load_policy
from leverlab.lm.imitation import train_rce, weigh
from leverlab.lm.questions import read_questions
from leverlab.lm.records import RewardRecord, read_records
from leverlab.lm.runs import publish_policy
from leverlab.lm.stages import limits_of, questions_by_id, run_seed, say_every, settings_of, tokens_of
from leverlab.lm.validation import Validator
from leverlab.stage import Stage


def body(stage: Stage, seed: int) -> None:
    """Train one seed and write its adapter."""
    source, params = stage.section("base", BaseModelParams), stage.section("rce", DialogueRceParams)
    limits, reward = (
        limits_of(stage.section("dialogues", DialogueParams)),
        stage.section("reward", DialogueRewardParams),
    )
    data = stage.dep("recipes/clarify/data/questions")
    path = stage.dep(f"recipes/clarify/data/rl/{seed}") / "groups.jsonl"
    records, questions = read_records(path, RewardRecord), questions_by_id(data / "train.jsonl")
    base = load_base(source.source, source.dtype)
    policy = load_policy(base, stage.dep(f"recipes/clarify/models/sft/{seed}") / "adapter", trainable=True)
    found = weigh([record.question for record in records], [record.total for record in records], params.tau)
    stage.say(f"{found.flat} of {found.groups} groups have no spread and are left out")
    examples = [tokens_of(base.chat, records[row], questions, path) for row in found.rows]
    settings = settings_of(params, "rce", seed)
    with Live(Training.of(stage, "step", settings.updates(len(examples)))) as live:
        say = live.also(say_every(stage, 4))
        rows = train_rce(policy, base, examples, found.weights, settings, stage.state_dir, say)
    rows = [row | {"flat_groups": found.flat / found.groups} for row in rows]
    validator = Validator(base.chat, read_questions(data / "val.jsonl"), limits, reward.alpha, reward.high, seed)
    publish_policy(stage, stage.out(f"recipes/clarify/models/rce/{seed}"), policy, base, rows, validator)


if __name__ == "__main__":
    run_seed("rce", body, "recipes/clarify")
