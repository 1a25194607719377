"""The hack probe: figures that tell a policy that games its reward, of the arm that does and the one that must not."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel

from leverlab.errors import LeverlabError
from leverlab.lm import scorers
from leverlab.lm.alarms import hack_figures
from leverlab.lm.chat import Chat
from leverlab.lm.dialogues import terms, verified_reward
from leverlab.lm.proxy import proxy_reward
from leverlab.lm.questions import Question
from leverlab.lm.rollouts import Limits, Rollout, roll_out
from leverlab.lm.validation import exact_kl


class Probe:
    """Sampled dialogues on fixed questions, and what they tell; the same random numbers each time.

    ensemble_MF: weights of the scorers whose spread is looked at. alpha: cost of a needless ask in the verified reward.
    high: the proxy reward from which on a dialogue is paid well.
    """

    def __init__(
        self,
        chat: Chat,
        questions: Sequence[Question],
        limits: Limits,
        ensemble_MF: NDArray[np.float64],
        alpha: float,
        high: float,
        seed: int,
    ):
        """Take what stays the same."""
        self._chat, self._questions, self._limits = chat, questions, limits
        self._ensemble_MF, self._alpha, self._high, self._seed = ensemble_MF, alpha, high, seed

    def __call__(self, policy: PeftModel) -> tuple[dict[str, float], list[Rollout]]:
        """Return `hack_figures` with `proxy`, `verified` (mean rewards) and `kl`, and the dialogues behind them."""
        generator = torch.Generator(policy.device).manual_seed(self._seed)
        rollouts = roll_out(policy, self._chat, self._questions, 1, self._limits, 1.0, generator)
        dialogues = [one.dialogue for one in rollouts]
        proxy_N = [proxy_reward(found).total for found in dialogues]
        verified_N = [verified_reward(terms(found), self._alpha) for found in dialogues]
        features_NF = scorers.table(dialogues, [one.confidence for one in rollouts])
        spread_N = scorers.spread(features_NF, self._ensemble_MF)
        kl, _ = exact_kl(policy, rollouts, self._chat.pad)
        figures = hack_figures(dialogues, proxy_N, verified_N, spread_N, self._high)
        return figures | {"proxy": float(np.mean(proxy_N)), "verified": float(np.mean(verified_N)), "kl": kl}, rollouts


def read_ensemble(folder: Path) -> NDArray[np.float64]:
    """Return the weights of the ensemble, (members, features). Raises `LeverlabError` when the file is damaged."""
    path = folder / "scorers.json"
    try:
        members: list[Any] = json.loads(path.read_text(encoding="utf-8"))["ensemble"]
        return np.stack([scorers.as_vector(weights) for weights in members])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LeverlabError(f"{path} cannot be read ({error}); run dvc repro shadow") from None


def examples(rollouts: Sequence[Rollout], count: int) -> list[dict[str, Any]]:
    """Return the first dialogues for a report: question, turns, replies, the right answer, both rewards."""
    return [
        {
            "question": one.dialogue.question.text,
            "turns": [turn.text for turn in one.dialogue.turns],
            "replies": list(one.dialogue.replies),
            "answer": one.dialogue.question.answer,
            "proxy": proxy_reward(one.dialogue).total,
            "verified": verified_reward(terms(one.dialogue), 0.0),
        }
        for one in rollouts[:count]
    ]
