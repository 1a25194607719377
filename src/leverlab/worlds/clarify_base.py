"""What the base of the recipe `clarify` reads before any fine-tuning: sequences to repeat, and dialogues of no habit.

A base must be able to read what it is shown, or adapters learn nothing. Whether to ask is left open here: acts are
drawn at random, and only what follows from them (thoughts, slots that exist, answers) is always right.
"""

from typing import get_args

import numpy as np

from leverlab.lm.chat import Chat
from leverlab.lm.dialogues import NOT_UNDERSTOOD, reply
from leverlab.lm.questions import UNKNOWN, Question
from leverlab.lm.tokens import Tokens, dialogue_tokens
from leverlab.lm.turns import compose_turn
from leverlab.worlds import clarify
from leverlab.worlds.clarify import CITIES, FIRST_NAMES, NOT_KNOWN, NOT_TOLD, NUMBERS, SURNAMES, WORDINGS, Need, Words

NEEDS: tuple[Need, ...] = get_args(Need)
SLOTS = ("surname", "friend", "home", "strength", "weight", "start", "bought")
_FRAME = (
    "friends : homes : . , lifts box weighs has buys gives all as I said so some ? ?? yes no do not ask "
    "the colour of the hat is not known"
)


def vocabulary() -> list[str]:
    """Return texts that hold every word of the world."""
    wordings = [text.format(who="") for family in WORDINGS.values() for text in family]
    words = (*FIRST_NAMES, *SURNAMES, *CITIES, *NUMBERS, *SLOTS, UNKNOWN)
    return [*wordings, _FRAME, NOT_TOLD, NOT_KNOWN, NOT_UNDERSTOOD, *words]


def all_words() -> Words:
    """Return every name, city and wording, those too that are held out from fine-tuning: a base has read them all."""
    return Words(FIRST_NAMES, SURNAMES, CITIES, range(len(WORDINGS["math"])))


class Reader:
    """Draws what the base reads, as tokens."""

    def __init__(self, chat: Chat):
        self._chat = chat
        ids = {
            token for text in vocabulary() for token in chat.tokenizer(f" {text}", add_special_tokens=False).input_ids
        }
        self._ids = np.asarray(sorted(ids))

    def repetition(self, rng: np.random.Generator, length: int) -> Tokens:
        """Return `length` tokens: some random words, then pieces of that sequence in random order.

        To be predicted is each piece but its first word: what follows a word is found by the word alone. Were the whole
        repeated, a fixed distance would do, and nothing be learnt that serves reading. Short sequences, whose pieces
        come often, are where a model finds this out.
        """
        words = rng.choice(self._ids, int(rng.integers(3, length // 2)), replace=False).tolist()
        ids, wanted = list(words), [False] * len(words)
        while len(ids) < length:
            begin = int(rng.integers(len(words) - 1))
            piece = words[begin : begin + int(rng.integers(2, 6))]
            ids += piece
            wanted += [False] + [True] * (len(piece) - 1)
        return ids[:length], wanted[:length]

    def dialogue(self, rng: np.random.Generator) -> tuple[str, Tokens]:
        """Return the family of a new question and a dialogue on it; the turns of the policy are to be predicted."""
        question = draw_question(rng)
        return question.family, dialogue_tokens(self._chat, question.text, *without_habit(question, rng))


def draw_question(rng: np.random.Generator) -> Question:
    """Return a question of any family, need and user."""
    family = clarify.FAMILIES[int(rng.choice(3, p=list(clarify.SHARES.values())))]
    need = NEEDS[int(rng.choice(3, p=(0.5, 0.3, 0.2)))]
    user = clarify.USERS[int(rng.choice(3, p=(0.45, 0.4, 0.15)))]
    return clarify.draw_question(rng, family, need, user, all_words(), "base")


def without_habit(question: Question, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """Return turns and replies that end in the right answer: any ask may come before it, needed or not."""
    told = [slot for slot in question.replies if slot != question.slot]
    asks = [str(slot) for slot in rng.permutation(told)[: int(rng.choice(3, p=(0.7, 0.2, 0.1)))]]
    if question.needs_ask or (question.slot and rng.random() < 0.5):
        asks.insert(int(rng.integers(len(asks) + 1)), question.slot)
    replies = [reply(question, slot) for slot in asks]
    known, turns = False, []
    for slot in asks:
        turns.append(compose_turn(question.thought_told if known else question.thought, "ask", slot))
        known = known or slot == question.slot
    turns.append(compose_turn(question.thought_told if known else question.thought, "final", question.answer))
    return turns, replies
