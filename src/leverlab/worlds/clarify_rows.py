"""Rows of HotpotQA, StrategyQA and GSM8K, and what can be left out of each of them.

A fact that is taken out must be needed, and a policy must be able to ask for it: the slot is known to whom has the text
alone.

- multihop: a supporting paragraph. The slot is the name of what it is about (its title without what stands in brackets
  at its end), which must stand in the question or in another supporting paragraph.
- strategy: one of the facts. The slot is "fact".
- math: a number that the solution calculates with, "some" in its place (`clarify_some`). The slot is "number".

A text is paragraphs ("title: sentences", one a line) or facts ("- fact", one a line), an empty line, and "Question: …";
in math it is the question alone. White space of the source becomes single spaces.

HotpotQA: Yang et al. 2018, arXiv:1809.09600. StrategyQA: Geva et al. 2021, arXiv:2101.02235. GSM8K: Cobbe et al. 2021,
arXiv:2110.14168.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from leverlab.texts import normalised
from leverlab.worlds.clarify_some import with_some
from leverlab.worlds.clarify_sums import FIGURES, answers_without, number_of, operands

AS_SAID = "as I said : "
FACT, NUMBER, QUESTION = "fact", "number", "question"  # slots
_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!\b[A-Z]\.)(?<!\b(?:Mr|Ms|Dr|St|Jr|vs)\.)(?<!\bMrs\.) +(?=[\"'(]?[A-Z0-9$])")
_NUMBER = re.compile(rf"(?<![\w.,:/$-])\$?({FIGURES})%?(?![\w/:]|[.,]\d)")
_SUM = re.compile(r"<<([^<>=]*)=([^<>=]*)>>")
# what words stand for in calculations: a figure beside one of them may not be the number that is calculated with
_IN_WORDS: Mapping[str, tuple[str, ...]] = {
    "0": ("zero",),
    "1": ("one", "once"),
    "2": ("two", "twice", "double", "doubled", "doubles", "half", "pair", "pairs", "couple", "both"),
    "3": ("three", "thrice", "triple", "tripled", "third", "thirds"),
    "4": ("four", "quarter", "quarters", "fourth", "fourths"),
    "5": ("five", "fifth", "fifths"),
    "6": ("six",),
    "7": ("seven", "week", "weeks", "weekly"),
    "8": ("eight",),
    "9": ("nine",),
    "10": ("ten",),
    "11": ("eleven",),
    "12": ("twelve", "dozen", "dozens", "year", "years", "yearly", "foot", "feet"),
    "60": ("sixty", "hour", "hours", "hourly", "minute", "minutes"),
}


def _single_spaced(text: object) -> object:
    return normalised(" ".join(text.split())) if isinstance(text, str) else text


_Line = Annotated[str, BeforeValidator(_single_spaced)]
_Text = Annotated[str, BeforeValidator(_single_spaced), Field(min_length=1)]


@dataclass(frozen=True)
class Cut:
    """A text, and the same with one fact left out.

    names: how the fact may be asked for, the slot first. whole, text: all that is told, with and without the fact, and
    the question in each. told, terse: the fact in full and in short. others: other slot → what the texts say of it.
    before: the thought that leads up to the fact, and a question mark. through: the thought that leads to the answer.
    guess: an answer that is wrong and possible without the fact, where one is known.
    """

    names: tuple[str, ...]
    whole: str
    question_of_whole: str
    text: str
    question_of_text: str
    told: str
    terse: str
    others: Mapping[str, str]
    answer: str
    guess: str
    before: str
    through: str

    @property
    def said(self) -> tuple[str, ...]:
        """All that turns of a policy are made of: slots, answers, thoughts."""
        return (*self.names, *self.others, self.answer, self.guess, self.before, self.through)


_R = TypeVar("_R")


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class Row(_Record):
    """A row of a data set; columns that are not named here do not matter."""

    @property
    def name(self) -> str:
        """What tells it from the other rows."""
        raise NotImplementedError

    def cut(self, rng: np.random.Generator, max_paragraphs: int) -> Cut | str:
        """Return it with one fact to leave out, drawn from those that can be; or why there is none."""
        raise NotImplementedError


class _Supporting(_Record):
    title: list[_Text]
    sent_id: list[int]

    @model_validator(mode="after")
    def _pairs(self) -> "_Supporting":
        return _same_length(self, self.title, self.sent_id)


class _Context(_Record):
    title: list[_Text]
    sentences: list[list[_Line]]

    @model_validator(mode="after")
    def _pairs(self) -> "_Context":
        return _same_length(self, self.title, self.sentences)


class Multihop(Row):
    """A row of HotpotQA (distractor)."""

    id: _Text
    question: _Text
    answer: _Text
    supporting_facts: _Supporting
    context: _Context

    @property
    def name(self) -> str:
        """Its id."""
        return self.id

    def cut(self, rng: np.random.Generator, max_paragraphs: int) -> Cut | str:
        """Leave out a supporting paragraph.

        Its name must stand in the question or in the others, and the answer must go with it (unless it is yes or no, or
        stands in the question). Where there is a paragraph to spare it takes the place of the one left out, so that
        their number does not tell.
        """
        sentences = dict(zip(self.context.title, self.context.sentences, strict=True))
        paragraphs = {title: " ".join(filter(None, parts)) for title, parts in sentences.items()}
        support = self._support(sentences)
        if not support:
            return "its supporting facts are not in its context"
        slots = {title: slot for title in support if (slot := self._slot(title, paragraphs, list(support)))}
        if not slots:
            return "no supporting paragraph is named elsewhere and holds the answer alone"
        hidden = str(rng.choice(list(slots)))
        rest = [title for title in paragraphs if title not in support and paragraphs[title]]
        shown = max(0, min(max_paragraphs - len(support), len(rest) - 1))
        drawn = [rest[n] for n in rng.permutation(len(rest))[: shown + 1]]
        of_whole = [title for title in paragraphs if title in support or title in drawn[:shown]]
        of_text = [drawn[shown] if title == hidden and drawn else title for title in of_whole]
        of_text = [title for title in of_text if title != hidden]
        slot, others = slots[hidden], [title for title in support if title != hidden]
        return Cut(
            names=tuple(dict.fromkeys([slot, hidden, slot.lower()])),
            whole=_laid_out([f"{title}: {paragraphs[title]}" for title in of_whole], self.question),
            question_of_whole=self.question,
            text=_laid_out([f"{title}: {paragraphs[title]}" for title in of_text], self.question),
            question_of_text=self.question,
            told=f"{hidden}: {paragraphs[hidden]}",
            terse=self._shortest(support[hidden]),
            others={title: next(filter(None, sentences[title])) for title in of_text},
            answer=self.answer,
            guess={"yes": "no", "no": "yes"}.get(self.answer.lower(), ""),
            before=" ".join([*(line for title in others for line in support[title]), f"{slot} ?"]),
            through=" ".join(line for title in [*others, hidden] for line in support[title]),
        )

    def _support(self, sentences: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """Return title → its supporting sentences; none when a paragraph is not there.

        A few rows of HotpotQA name sentences that their paragraph does not have; these are left out.
        """
        found: dict[str, list[str]] = {}
        for title, n in zip(self.supporting_facts.title, self.supporting_facts.sent_id, strict=True):
            if title not in sentences:
                return {}
            if 0 <= n < len(sentences[title]) and sentences[title][n]:
                found.setdefault(title, []).append(sentences[title][n])
        return found

    def _slot(self, title: str, paragraphs: Mapping[str, str], support: Sequence[str]) -> str | None:
        """Return the name of what a paragraph is about, or None when the paragraph cannot be left out."""
        others = [f"{other}: {paragraphs[other]}" for other in support if other != title]
        open_answer = self.answer.lower() not in ("yes", "no") and not _holds(self.question, self.answer)
        if open_answer and (_holds("\n".join(others), self.answer) or not _holds(paragraphs[title], self.answer)):
            return None
        name = re.sub(r"(?<=.) \([^()]*\)$", "", title)
        return name if re.search(_whole_words(name), "\n".join([self.question, *others])) else None

    def _shortest(self, lines: Sequence[str]) -> str:
        """Return the shortest supporting sentence that holds the answer, or all of them when none does."""
        return min((line for line in lines if _holds(line, self.answer)), key=len, default=" ".join(lines))


class Strategy(Row):
    """A row of StrategyQA; facts may be one text, which is then cut into its sentences."""

    qid: _Text
    question: _Text
    answer: bool
    facts: _Line | list[_Line]

    @property
    def name(self) -> str:
        """Its id."""
        return self.qid

    def cut(self, rng: np.random.Generator, max_paragraphs: int) -> Cut | str:
        """Leave out one of the facts. There must be two: that there are none at all would tell."""
        found = _SENTENCE_END.split(self.facts) if isinstance(self.facts, str) else self.facts
        facts = list(dict.fromkeys(filter(None, found)))
        if len(facts) < 2:
            return "it has fewer than two facts"
        n = int(rng.integers(len(facts)))
        others = facts[:n] + facts[n + 1 :]
        if any(facts[n] in other for other in others):
            return "another fact holds the fact to hide"
        return Cut(
            names=(FACT,),
            whole=_laid_out([f"- {fact}" for fact in facts], self.question),
            question_of_whole=self.question,
            text=_laid_out([f"- {fact}" for fact in others], self.question),
            question_of_text=self.question,
            told=facts[n],
            terse=facts[n],
            others={},
            answer="yes" if self.answer else "no",
            guess="no" if self.answer else "yes",
            before=" ".join([*others, f"{FACT} ?"]),
            through=" ".join(facts),
        )


class Math(Row):
    """A row of GSM8K, whose answer is a solution with its calculations in << >> and "#### 42" at its end."""

    question: _Text
    answer: str

    @property
    def name(self) -> str:
        """A digest of the question: rows have no id."""
        return hashlib.sha256(self.question.encode()).hexdigest()[:16]

    def cut(self, rng: np.random.Generator, max_paragraphs: int) -> Cut | str:
        """Leave out a number that is in the question once, changes the answer when it changes, and can be "some"."""
        solution, marked, final = self.answer.rpartition("####")
        answer = final.strip().replace(",", "").removeprefix("$")
        if not marked or not re.fullmatch(r"-?\d+(\.\d+)?", answer):
            return "its answer does not end in '####' and a number"
        lines = solution.strip().split("\n")
        sums = [(n, left, right) for n, line in enumerate(lines) for left, right in _SUM.findall(line)]
        found = list(_NUMBER.finditer(self.question))
        if not found:
            return "its question has no number"
        words = set(re.findall(r"[a-z]+", self.question.lower()))
        told = [number_of(match[1]) for match in found]
        told += [float(number) for number, spelt in _IN_WORDS.items() if words & set(spelt)]
        chain = [(left, right) for _, left, right in sums]
        once = [match for match in found if told.count(number_of(match[1])) == 1]
        answers = {match: answers_without(number_of(match[1]), chain, answer) for match in once}
        used = [match for match in once if answers[match]]
        if not used:
            return "no number of its question stands there once and decides its calculations"
        texts = {match: with_some(self.question, *match.span()) for match in used}
        used = [match for match in used if texts[match]]
        if not used:
            return "no number of its question that decides its calculations can be 'some'"
        match = used[int(rng.integers(len(used)))]
        text = str(texts[match])
        first = next(n for n, left, _ in sums if number_of(match[1]) in operands(left))
        said = [" ".join(_SUM.sub("", line).split()) for line in lines]
        if not any(said):
            return "its solution says nothing"
        return Cut(
            names=(NUMBER,),
            whole=self.question,
            question_of_whole=self.question,
            text=text,
            question_of_text=text,
            told=_sentence_at(self.question, match.start()),
            terse=match[0],
            others={},
            answer=answer,
            guess=str(rng.choice(answers[match])),
            before=" ".join([*filter(None, said[:first]), f"{NUMBER} ?"]),
            through=" ".join(filter(None, said)),
        )


def _same_length(record: _R, first: Sequence[object], second: Sequence[object]) -> _R:
    if len(first) != len(second):
        raise ValueError(f"has {len(first)} titles beside {len(second)} values, must have as many")
    return record


def _whole_words(words: str) -> str:
    return rf"(?<!\w){re.escape(words)}(?!\w)"


def _holds(text: str, words: str) -> bool:
    return re.search(_whole_words(words), text, re.IGNORECASE) is not None


def _sentence_at(text: str, place: int) -> str:
    begin = max((end.end() for end in _SENTENCE_END.finditer(text) if end.end() <= place), default=0)
    return _SENTENCE_END.split(text[begin:], maxsplit=1)[0]


def _laid_out(lines: Sequence[str], question: str) -> str:
    return "\n".join([*lines, "", f"Question: {question}"])
