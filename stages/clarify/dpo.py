"""dpo: the other branch from SFT: preferences between its own sampled dialogues, no reward in training but the pairs'."""

from leverlab.config.dialogue_training import DpoParams
from leverlab.config.dialogues import BaseModelParams, DialogueParams, DialogueRewardParams
from leverlab.lm.adapters import load_base, load_policy, save_adapter
from leverlab.lm.dpo import train_dpo
from leverlab.lm.preferences import prefer
from leverlab.lm.questions import read_questions
from leverlab.lm.records import RewardRecord, read_records
from leverlab.lm.stages import limits_of, questions_by_id, run_seed, say_every, settings_of, write_rows
from leverlab.lm.validation import Validator
from leverlab.stage import Stage


def body(stage: Stage, seed: int) -> None:
    """Train one seed and write its adapter."""
    raise NotImplementedError


if __name__ == "__main__":
    run_seed("dpo", body, "recipes/clarify")
