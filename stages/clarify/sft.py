"""sft: teach a fresh adapter the teacher's dialogues."""

from leverlab.config.dialogue_training import DialogueSftParams
from leverlab.config.dialogues import BaseModelParams, DialogueParams, DialogueRewardParams, LoraParams
from leverlab.live import Live, Training
from leverlab.lm.adapters import load_base, new_adapter
from leverlab.lm.imitation import train_sft
from leverlab.lm.questions import read_questions
from leverlab.lm.records import Taught, read_records
from leverlab.lm.runs import publish_policy
from leverlab.lm.stages import limits_of, question_of, questions_by_id, run_seed, say_every, settings_of
from leverlab.lm.tokens import dialogue_tokens
from leverlab.lm.validation import Validator
from leverlab.stage import Stage


def body(stage: Stage, seed: int) -> None:
    """Train one seed and write its adapter."""
    source, lora = stage.section("base", BaseModelParams), stage.section("lora", LoraParams)
    params, reward = stage.section("sft", DialogueSftParams), stage.section("reward", DialogueRewardParams)
    limits, data = limits_of(stage.section("dialogues", DialogueParams)), stage.dep("recipes/clarify/data/questions")
    questions = questions_by_id(data / "train.jsonl")
    base = load_base(source.source, source.dtype)
    examples = [
        dialogue_tokens(
            base.chat, question_of(questions, said.question, data / "taught.jsonl").text, said.turns, said.replies
        )
        for said in read_records(data / "taught.jsonl", Taught)
    ]
    policy = new_adapter(base, lora.rank, lora.alpha, seed)
    settings = settings_of(params, "sft", seed)
    with Live(Training.of(stage, "step", settings.updates(len(examples)))) as live:
        rows = train_sft(policy, base, examples, settings, stage.state_dir, live.also(say_every(stage, 20)))
    validator = Validator(base.chat, read_questions(data / "val.jsonl"), limits, reward.alpha, reward.high, seed)
    publish_policy(stage, stage.out(f"recipes/clarify/models/sft/{seed}"), policy, base, rows, validator)


if __name__ == "__main__":
    run_seed("sft", body, "recipes/clarify")
