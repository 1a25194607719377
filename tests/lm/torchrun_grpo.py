"""What each process of `torchrun` does in test_torchrun.py: GRPO twice, and SFT, on the tiny model.

`python -m torch.distributed.run ... -m tests.lm.torchrun_grpo FOLDER`. Each process tells in FOLDER what it ended with.
"""

import json
import os
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from leverlab.lm import grpo
from leverlab.lm.adapters import new_adapter
from leverlab.lm.chat import Chat
from leverlab.lm.imitation import train_sft
from leverlab.lm.loop import adapter_weights
from leverlab.lm.questions import Question
from leverlab.lm.rewards import Reward
from leverlab.lm.rollouts import Limits, Rollout, roll_out
from leverlab.lm.trainers import Settings
from tests.lm.test_grpo import SOUND, by_tokens, run_of, trained
from tests.lm.training_runs import EXAMPLES, base

Weights = dict[str, torch.Tensor]


def half_flat(rollout: Rollout, alpha: float) -> Reward:
    """No spread on the questions a to c, so that processes differ in how many of their groups have some."""
    luck = by_tokens(rollout, alpha)
    return Reward(1.0, luck.terms, luck.reasons) if rollout.dialogue.question.id in "abc" else luck


def by_question(
    model: Any, chat: Chat, asked: Sequence[Question], copies: int, limits: Limits, temperature: float, _: object
) -> list[Rollout]:
    """Dialogues that do not depend on which process holds them: each question has a generator of its own, and a length
    of its own, so that processes differ in how many tokens they hold."""
    return [
        one
        for question in asked
        for one in roll_out(
            model, chat, [question], copies, Limits(limits.turns, 3 + 2 * (ord(question.id) % 4)), temperature,
            torch.Generator().manual_seed(zlib.crc32(question.id.encode())),
        )
    ]  # fmt: skip


def train_twice(folder: Path) -> tuple[list[str], Weights]:
    """Two runs of GRPO: the memories, and the weights of the second."""
    grpo.roll_out = by_question
    memories = []
    for name in ("once", "again"):
        run = run_of(
            folder / name,
            half_flat,
            # a process would evaluate to something of its own
            lambda policy: SOUND | {"success": float(os.environ.get("RANK", "0"))},
            steps=2,
            questions=4,
            group=4,
            evaluate_every=1,
            lr=0.01,
        )
        memory, weights = trained(run)
        memories.append(json.dumps(memory.__dict__))
    return memories, weights


def imitate(folder: Path) -> Weights:
    """Two steps of SFT on four examples each."""
    one = base()
    policy = new_adapter(one, rank=4, alpha=8, seed=1)
    settings = Settings(lr=0.01, batch=4, steps=2, save_every=1)
    examples = [*EXAMPLES, EXAMPLES[0]]  # or the last batch would be filled up, with one more where two share it
    train_sft(policy, one, examples, settings, folder / "sft" / "checkpoints", lambda row: None)
    return adapter_weights(policy)


def main(folder: Path) -> None:
    """Train, and write what this process ended with, and which files it opened to write."""
    rank, written = os.environ["RANK"], set[str]()

    def watch(event: str, given: tuple[Any, ...]) -> None:
        if event == "open" and str(folder) in str(given[0]) and given[2] & (os.O_WRONLY | os.O_RDWR):
            written.add(Path(str(given[0])).name)

    sys.addaudithook(watch)
    memories, weights = train_twice(folder)
    save_file(weights, folder / f"grpo-{rank}.safetensors")
    save_file(imitate(folder), folder / f"sft-{rank}.safetensors")
    told = {"processes": torch.distributed.get_world_size(), "memories": memories, "written": sorted(written)}
    (folder / f"told-{rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
