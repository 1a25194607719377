"""Dialogues of two policies on the same questions, side by side: where the later one does better, and where worse."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from leverlab.lm.dialogues import Dialogue
from leverlab.lm.questions import Question
from leverlab.lm.reasons import reasons
from leverlab.lm.records import DialogueRecord
from leverlab.lm.rewards import sound

BEFORE, AFTER = "sft", "grpo"


@dataclass(frozen=True)
class Pair:
    """One question, what both policies of a seed made of it, and the greedy dialogue of each."""

    seed: int
    before: Dialogue
    after: Dialogue

    @property
    def question(self) -> Question:
        """The question of both."""
        return self.before.question


@dataclass(frozen=True)
class Changes:
    """Pairs that improved and that got worse: how many of all there are, and the ones to show."""

    pairs: int
    improved: int
    worse: int
    shown_improved: Sequence[Pair]
    shown_worse: Sequence[Pair]


def changes(records: Iterable[DialogueRecord], questions: Mapping[str, Question], count: int) -> Changes:
    """Return what changed from SFT to GRPO on `questions`, at most `count` pairs each way to show.

    A pair improved when only the later dialogue is `sound`, and got worse when only the earlier one is. Compared are
    greedy dialogues of the same seed. Shown are the first by seed and id, families in turn; the order of `records` does
    not matter.
    """
    found: dict[tuple[int, str], dict[str, Dialogue]] = {}
    for record in records:
        if record.temperature == 0 and record.policy in (BEFORE, AFTER) and record.question in questions:
            dialogue = record.dialogue(questions[record.question])
            found.setdefault((record.seed, record.question), {})[record.policy] = dialogue
    pairs = [
        Pair(seed, of[BEFORE], of[AFTER]) for (seed, _), of in sorted(found.items()) if BEFORE in of and AFTER in of
    ]
    improved = [pair for pair in pairs if sound(pair.after) and not sound(pair.before)]
    worse = [pair for pair in pairs if sound(pair.before) and not sound(pair.after)]
    return Changes(len(pairs), len(improved), len(worse), _in_turn(improved)[:count], _in_turn(worse)[:count])


def lines(turns: Sequence[str], replies: Sequence[str]) -> list[tuple[str, str]]:
    """Return a dialogue as (speaker, text), turn and reply by turn and reply."""
    spoken = zip_longest(turns, replies)
    return [said for turn, told in spoken for said in (("policy", turn), ("user", told)) if said[1] is not None]


def verdict(dialogue: Dialogue) -> str:
    """Return in words whether the answer is right and which asks were not needed."""
    found = reasons(dialogue)
    return f"{found['correct']}; {found['needless']}"


def _in_turn(pairs: Sequence[Pair]) -> list[Pair]:
    """Return the pairs, the first of every family before the second of any."""
    families: dict[str, list[Pair]] = {}
    for pair in pairs:
        families.setdefault(pair.question.family, []).append(pair)
    return [
        pair for row in zip_longest(*(of for _, of in sorted(families.items()))) for pair in row if pair is not None
    ]
