"""Whether groups of dialogues hold anything to learn from, before anything is trained on them."""

from collections.abc import Mapping, Sequence

import numpy as np

from leverlab.errors import LeverlabError
from leverlab.lm.questions import Question
from leverlab.lm.records import RewardRecord
from leverlab.rl.advantages import FLAT_TOLERANCE


def group_health(records: Sequence[RewardRecord], questions: Mapping[str, Question]) -> dict[str, float]:
    """Return figures of the groups (the records of one question), all shares in [0, 1] but the two rewards.

    live_groups: with any spread of rewards. mixed_groups: with right and wrong dialogues, the headroom of greedy
    choice. success, best_of_group: of a dialogue, and of the best one of each group. asked_in_need, asked_needlessly:
    dialogues with an ask, by need. parses: dialogues whose every turn parses. reward_mean, reward_std: over dialogues.
    Raises `LeverlabError` for no record.
    """
    if not records:
        raise LeverlabError("there is no group of dialogues; raise rl_data.questions")
    groups: dict[str, list[RewardRecord]] = {}
    for record in records:
        groups.setdefault(record.question, []).append(record)
    totals = [np.array([record.total for record in group]) for group in groups.values()]
    right = [[record.terms["correct"] > 0 for record in group] for group in groups.values()]
    dialogues = [record.dialogue(questions[record.question]) for record in records]
    asked = [(dialogue.question.needs_ask, bool(dialogue.asks)) for dialogue in dialogues]
    rewards = np.concatenate(totals)
    return {
        "live_groups": _share([bool(np.ptp(group) > FLAT_TOLERANCE) for group in totals]),
        "mixed_groups": _share([any(group) and not all(group) for group in right]),
        "success": _share([one for group in right for one in group]),
        "best_of_group": _share([any(group) for group in right]),
        "asked_in_need": _share([ask for needed, ask in asked if needed]),
        "asked_needlessly": _share([ask for needed, ask in asked if not needed]),
        "parses": _share([record.terms["parses"] > 0 for record in records]),
        "reward_mean": float(rewards.mean()),
        "reward_std": float(rewards.std()),
    }


def _share(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else float("nan")
