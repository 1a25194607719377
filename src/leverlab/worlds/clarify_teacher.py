"""The teacher of the recipe `clarify`: dialogues for supervised fine-tuning, wrong on named slices.

A teacher that is merely noisy leaves greedy decoding nothing to improve: the most frequent act is the right one
everywhere. This one has habits. In some wordings of each family it asks for what it was told, more often than not; in
some it makes up what it should ask for; and now and then it asks for the wrong fact first.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from leverlab.lm.dialogues import reply
from leverlab.lm.questions import Question
from leverlab.lm.turns import compose_turn


@dataclass(frozen=True)
class Habits:
    """How the teacher errs.

    needless: family → how often it asks in each wording when it need not. guess: family → how often it makes up the
    fact that it should ask for, in each wording. Wordings beyond a list begin it again. wrong_slot: how often
    it first asks for another fact than the one that is missing.
    """

    needless: Mapping[str, tuple[float, ...]]
    guess: Mapping[str, tuple[float, ...]]
    wrong_slot: float


def teach(question: Question, habits: Habits, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """Return the turns of the teacher and the replies between them; its final answer is right unless it guesses."""
    asks, told = [], [slot for slot in question.replies if slot != question.slot]
    if question.needs_ask and question.guess and rng.random() < _rate(habits.guess, question):
        return [compose_turn(question.thought, "final", question.guess)], []
    if question.needs_ask:
        if rng.random() < habits.wrong_slot:
            asks.append(str(rng.choice(told)))
        asks.append(question.slot)
    elif rng.random() < _rate(habits.needless, question):
        asks.append(question.slot or str(rng.choice(told)))
    turns = [compose_turn(question.thought, "ask", slot) for slot in asks]
    thought = question.thought_told if question.slot in asks or not question.slot else question.thought
    turns.append(compose_turn(thought, "final", question.answer))
    return turns, [reply(question, slot) for slot in asks]


def _rate(rates: Mapping[str, tuple[float, ...]], question: Question) -> float:
    of_family = rates[question.family]
    return of_family[question.wording % len(of_family)]
