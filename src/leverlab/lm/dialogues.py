"""Dialogues between a policy and a simulated user, and what they are worth."""

from dataclasses import dataclass
from typing import Literal

from leverlab.lm.answers import plain_answer
from leverlab.lm.questions import UNKNOWN, Question
from leverlab.lm.thoughts import grounded_thought
from leverlab.lm.turns import Turn

End = Literal["final", "unparsed", "cut", "turns"]  # answered; not a turn; a turn too long; asked in the last turn
NOT_UNDERSTOOD = "I do not understand ."
COSTLY_ASKS = 3  # more cost nothing more, and are spam
SPAM_ASKS = 3  # more than so many asks are spam


@dataclass(frozen=True)
class Dialogue:
    """A question, the turns of a policy, the replies between them, and how it ended."""

    question: Question
    turns: tuple[Turn, ...]
    replies: tuple[str, ...]
    end: End

    @property
    def asks(self) -> tuple[str, ...]:
        """The slots that were asked for, in order."""
        return tuple(turn.ask for turn in self.turns if turn.ask is not None)

    @property
    def final(self) -> str | None:
        """The final answer, if there is one."""
        return self.turns[-1].final if self.turns else None

    @property
    def success(self) -> bool:
        """Whether the final answer is right. That nobody can tell is right only after the fact was asked for."""
        if self.final is None or plain_answer(self.final) != plain_answer(self.question.answer):
            return False
        return self.question.answer != UNKNOWN or self.asked_needed

    @property
    def grounded_thoughts(self) -> tuple[bool, ...]:
        """Whether the thought of each turn is grounded (`grounded_thought`) in what the policy was told before it; one
        before an ask may also name a slot that the user has a reply for."""
        question, grounded = self.question, []
        for number, turn in enumerate(self.turns):
            slots = question.replies if turn.ask is not None else ()
            grounded.append(grounded_thought(turn.think, question.text, self.replies[:number], slots))
        return tuple(grounded)

    @property
    def spam(self) -> bool:
        """Whether it holds more than `SPAM_ASKS` asks, or the same one twice."""
        return len(self.asks) > SPAM_ASKS or len(set(self.asks)) < len(self.asks)

    @property
    def asked_needed(self) -> bool:
        """Whether the fact that is needed was asked for, under any name that its user has the same reply to."""
        if not self.question.needs_ask:
            return False
        told = self.question.replies[self.question.slot]
        return any(self.question.replies.get(ask) == told for ask in self.asks)

    @property
    def needless_asks(self) -> int:
        """How many asks were not needed: all but the first for the fact that is."""
        return len(self.asks) - self.asked_needed


def reply(question: Question, ask: str) -> str:
    """Return what the user says when asked for `ask`: a pure function of the question."""
    return question.replies.get(ask, NOT_UNDERSTOOD)


@dataclass(frozen=True)
class Terms:
    """The terms of the verified reward of one dialogue.

    correct: the final answer is right. parses: every turn does. thought: every turn has a grounded thought. Each is 0
    or 1. needless: asks that cost, 0 to `COSTLY_ASKS`.
    """

    correct: float
    parses: float
    thought: float
    needless: float


WEIGHTS = {"correct": 0.8, "parses": 0.1, "thought": 0.1}


def terms(dialogue: Dialogue) -> Terms:
    """Return the terms of a dialogue; asking as such earns nothing."""
    turns = dialogue.turns
    return Terms(
        correct=float(dialogue.success),
        parses=float(bool(turns) and all(turn.parses for turn in turns)),
        thought=float(bool(turns) and all(dialogue.grounded_thoughts)),
        needless=float(min(dialogue.needless_asks, COSTLY_ASKS)),
    )


def verified_reward(found: Terms, alpha: float) -> float:
    """Return .8 correct + .1 parses + .1 thought - alpha * needless asks (at most `COSTLY_ASKS`)."""
    return sum(weight * getattr(found, name) for name, weight in WEIGHTS.items()) - alpha * found.needless
