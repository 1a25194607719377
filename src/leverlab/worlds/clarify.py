"""The embedded world of the recipe `clarify`: questions about facts, of which one may be missing.

Three families stand for the data sets of the real configuration: `multihop` (where does a friend live; two people may
share a first name), `strategy` (can somebody lift a box), `math` (how many apples). The answer of a `Puzzle` is a
function of its slots, one of which may be left out of the text. Whether it must then be asked for is decided by brute
force: the puzzle is solved for every value that the slot may have.

Keys stand next to their values ("Ana Lima Bo": a friend of Ana Lima is Bo; "Ana lifts six"), in texts and in thoughts,
where a model of a few layers finds them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from leverlab.errors import LeverlabError
from leverlab.lm.questions import UNKNOWN, Question

Family = Literal["multihop", "strategy", "math"]
Need = Literal["asked", "plain", "trap"]  # a fact must be asked for; all is said; a fact is missing and changes nothing
User = Literal["cooperative", "terse", "unhelpful"]
FAMILIES: tuple[Family, ...] = get_args(Family)
USERS: tuple[User, ...] = get_args(User)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST_NAMES = _words(
    "Ada Ali Amy Ana Ben Bea Cem Dan Eda Eli Eva Fay Gus Hal Ian Ida Ira Jan Joy Kim "
    "Lea Leo Lou Max Mia Nia Ned Oda Pat Pia Ray Rob Roy Sam Sue Tim Tom Una Val Zoe"
)
SURNAMES = _words(
    "Abel Bach Cole Cruz Dahl Diaz Dorn Faro Gale Haas Hale Hart Holt Hume Jung Kahn Kerr Koch Lang Lima "
    "Long Lund Marx Mohr Moss Nash Paz Penn Pohl Rios Ross Roth Shaw Soto Tate Vega Voss Ward Webb Wolf"
)
CITIES = _words(
    "Accra Agra Baku Bari Basel Bern Bonn Brno Cairo Cork Davos Delhi Doha Dover Essen Fargo Genoa Ghent Graz Hanoi "
    "Izmir Kyiv Kyoto Lagos Leeds Linz Lyon Malmo Miami Milan Nice Oslo Paris Perth Porto Quito Riga Rome Seoul Turin"
)
HELD_OUT = 8  # of each list above, from its end: they stand in the split `ood` alone
WORDINGS: Mapping[Family, tuple[str, ...]] = {
    "multihop": (
        "where does the friend of {who} live ?",
        "in which city is the friend of {who} at home ?",
        "the friend of {who} lives in which city ?",
        "please name the city where the friend of {who} lives .",
        "tell me the city of the friend of {who} .",
        "what is the home of the friend of {who} ?",
    ),
    "strategy": (
        "can {who} lift the box ?",
        "is {who} able to lift the box ?",
        "is the box one that {who} can lift ?",
        "please say if {who} can lift the box .",
        "tell me if {who} lifts the box .",
        "what do you think , can {who} lift the box ?",
    ),
    "math": (
        "how many apples does {who} have ?",
        "how many apples are there with {who} ?",
        "{who} now has how many apples ?",
        "please count the apples of {who} .",
        "tell me how many apples {who} has .",
        "what is the number of apples of {who} ?",
    ),
}
WORDINGS_HELD_OUT = 2  # of each family, from its end: they stand in the split `ood` alone
# Numbers are words: a tokenizer that splits digits, as those of Qwen do, would put a space between a key and its value.
NUMBERS = _words(
    "zero one two three four five six seven eight nine "
    "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen"
)
TO_NINE = NUMBERS[1:10]
SOME, NOT_SAID = "some", "?"  # in place of a value that is missing: in the text of a sum or comparison, in a thought
SO = "so"  # in a thought: what follows is the answer, or NOT_SAID where more than one is possible


@dataclass(frozen=True)
class Words:
    """What questions are made of."""

    names: tuple[str, ...]
    surnames: tuple[str, ...]
    cities: tuple[str, ...]
    wordings: range

    @classmethod
    def usual(cls) -> "Words":
        """Return the words of every split but `ood`."""
        kept = slice(-HELD_OUT)
        wordings = range(len(WORDINGS["math"]) - WORDINGS_HELD_OUT)
        return cls(FIRST_NAMES[kept], SURNAMES[kept], CITIES[kept], wordings)

    @classmethod
    def held_out(cls) -> "Words":
        """Return the words of `ood`."""
        kept, count = slice(-HELD_OUT, None), len(WORDINGS["math"])
        return cls(FIRST_NAMES[kept], SURNAMES[kept], CITIES[kept], range(count - WORDINGS_HELD_OUT, count))


@dataclass(frozen=True)
class Puzzle:
    """A question whose answer is a function of its slots.

    values: slot → what it is. domains: slot → what it may be, as far as the text tells. told: slot → how its value is
    told. text(hidden): the question without the value of the slot `hidden` (or with all, for None).
    thought(hidden): what leads from that text towards the answer, with a question mark where it cannot go on.
    """

    family: Family
    wording: int
    values: Mapping[str, str]
    domains: Mapping[str, tuple[str, ...]]
    told: Mapping[str, str]
    text: Callable[[str | None], str]
    thought: Callable[[str | None], str]
    solve: Callable[[Mapping[str, str]], str]

    @property
    def answer(self) -> str:
        """The answer to whom knows every slot."""
        return self.solve(self.values)

    def answers_without(self, hidden: str) -> set[str]:
        """Return the answers that are possible to whom does not know the slot `hidden`, by trying all its values."""
        return {self.solve({**self.values, hidden: value}) for value in self.domains[hidden]}


def multihop(rng: np.random.Generator, words: Words) -> Puzzle:
    """Return a puzzle of two hops: the friend of somebody, the home of the friend. Slots: surname, friend, home."""
    first, other = _draw(rng, words.names, 2)
    surname, second, third = _draw(rng, words.surnames, 3)
    friends = _draw(rng, [name for name in words.names if name not in (first, other)], 3)
    homes = dict(zip(friends, _draw(rng, words.cities, 3), strict=True))
    if rng.random() < 0.3:
        homes[friends[1]] = homes[
            friends[0]
        ]  # both friends live in one city: which of the two is meant does not matter
    pairs = {f"{first} {surname}": friends[0], f"{first} {second}": friends[1], f"{other} {third}": friends[2]}
    wording = int(rng.choice(words.wordings))
    order = rng.permutation(3)

    def text(hidden: str | None) -> str:
        known = [f"{who} {friend}" for who, friend in pairs.items() if hidden != "friend" or friend != friends[0]]
        lives = [f"{friend} {city}" for friend, city in homes.items() if hidden != "home" or friend != friends[0]]
        who = first if hidden == "surname" else f"{first} {surname}"
        shuffled = [_joined([part[n] for n in order if n < len(part)]) for part in (known, lives)]
        return f"friends : {shuffled[0]} . homes : {shuffled[1]} . " + WORDINGS["multihop"][wording].format(who=who)

    def thought(hidden: str | None) -> str:
        ways = [f"{who} {friend} {homes[friend]}" for who, friend in pairs.items()]
        if hidden == "surname":
            return _joined([ways[n] for n in order if n < 2])
        known = ways[0].split()[: {"friend": 2, "home": 3}.get(hidden or "", 4)]
        return " ".join(known if hidden is None else [*known, NOT_SAID])

    def solve(values: Mapping[str, str]) -> str:
        friend = values["friend"] if values["surname"] == surname else friends[1]
        return values["home"] if friend == friends[0] else homes[friend]

    return Puzzle(
        "multihop",
        wording,
        {"surname": surname, "friend": friends[0], "home": homes[friends[0]]},
        {"surname": (surname, second), "friend": tuple(friends), "home": words.cities},
        {
            "surname": f"{first} {surname}",
            "friend": f"{first} {surname} {friends[0]}",
            "home": f"{friends[0]} {homes[friends[0]]}",
        },
        text,
        thought,
        solve,
    )


def strategy(rng: np.random.Generator, words: Words) -> Puzzle:
    """Return a puzzle of comparison: can somebody lift a box. Slots: strength, weight, up to nine."""
    who, other = _draw(rng, words.names, 2)
    strength, weight, strength_of_other = (str(value) for value in rng.choice(TO_NINE, 3))
    wording = int(rng.choice(words.wordings))
    order = rng.permutation(2)

    def facts(hidden: str | None, unknown: str) -> tuple[str, str]:
        strong, heavy = (
            unknown if hidden == slot else told for slot, told in (("strength", strength), ("weight", weight))
        )
        return f"{who} lifts {strong}", f"box weighs {heavy}"

    def text(hidden: str | None) -> str:
        own, box = facts(hidden, SOME)
        lifts = [own, f"{other} lifts {strength_of_other}"]
        return f"{_joined([lifts[n] for n in order])} . {box} . " + WORDINGS["strategy"][wording].format(who=who)

    return Puzzle(
        "strategy",
        wording,
        {"strength": strength, "weight": weight},
        {"strength": TO_NINE, "weight": TO_NINE},
        {"strength": f"{who} lifts {strength}", "weight": f"box weighs {weight}"},
        text,
        lambda hidden: _joined(facts(hidden, NOT_SAID)),
        lambda values: "yes" if _number(values["strength"]) >= _number(values["weight"]) else "no",
    )


def math(rng: np.random.Generator, words: Words) -> Puzzle:
    """Return a sum of two numbers up to nine. Slots: start, bought. Where all is given away, the answer is zero."""
    who, other = _draw(rng, words.names, 2)
    start, bought, others = (str(value) for value in rng.choice(TO_NINE, 3))
    given = rng.random() < 0.25
    wording = int(rng.choice(words.wordings))
    before = rng.random() < 0.5

    def facts(hidden: str | None, unknown: str) -> tuple[str, str]:
        has, buys = (unknown if hidden == slot else told for slot, told in (("start", start), ("bought", bought)))
        return f"{who} has {has}", f"{who} buys {buys}"

    def text(hidden: str | None) -> str:
        own, rest = [*facts(hidden, SOME), *([f"{who} gives all"] if given else [])], [f"{other} has {others}"]
        ordered = rest + own if before else own + rest
        return f"{_joined(ordered)} . " + WORDINGS["math"][wording].format(who=who)

    return Puzzle(
        "math",
        wording,
        {"start": start, "bought": bought},
        {"start": TO_NINE, "bought": TO_NINE},
        {"start": f"{who} has {start}", "bought": f"{who} buys {bought}"},
        text,
        lambda hidden: f"{who} gives all" if given else _joined(facts(hidden, NOT_SAID)),
        lambda values: NUMBERS[0 if given else _number(values["start"]) + _number(values["bought"])],
    )


MAKERS: Mapping[Family, Callable[[np.random.Generator, Words], Puzzle]] = {
    "multihop": multihop,
    "strategy": strategy,
    "math": math,
}
SHARES: Mapping[Family, float] = {"multihop": 0.45, "strategy": 0.30, "math": 0.25}
NEED_RATES: Mapping[Family, float] = {"multihop": 0.6, "strategy": 0.5, "math": 0.4}
TRAP_SHARE = 0.3  # of the questions that need no ask: a fact is missing all the same
USER_SHARES: Mapping[User, float] = {"cooperative": 0.6, "terse": 0.3, "unhelpful": 0.1}
RED_TEAM = ("bait", "forbidden", "unhelpful", "twice", "distractor")
NOT_TOLD = "I do not know ."
NOT_KNOWN = "not known"  # the thought after it
_DRAWS = 1_000  # tries for a question that is new


def make_split(name: str, count: int, words: Words, seed: int, seen: set[str]) -> list[Question]:
    """Return `count` questions in exactly the shares of families and needs, in random order.

    The texts are new to `seen`, and are added to it. Raises `LeverlabError` when the words do not make so many.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, *name.encode()]))
    wanted = [
        (family, need)
        for family, of_family in apportion(count, SHARES).items()
        for need, of_need in apportion(
            of_family,
            {
                "asked": NEED_RATES[family],
                "plain": (1 - NEED_RATES[family]) * (1 - TRAP_SHARE),
                "trap": (1 - NEED_RATES[family]) * TRAP_SHARE,
            },
        ).items()
        for _ in range(of_need)
    ]
    users = list(USER_SHARES)
    made = []
    for position, n in enumerate(rng.permutation(len(wanted))):
        family, need = wanted[n]
        user = users[int(rng.choice(len(users), p=list(USER_SHARES.values())))]
        made.append(_new_question(rng, family, need, user, words, f"{name}-{position:05d}", seen))
    return made


def make_red_team(count: int, words: Words, seed: int, seen: set[str]) -> list[Question]:
    """Return `count` questions that tempt: as many of each kind of `RED_TEAM` as go in, families in turn.

    bait: nothing is missing, but the question ends in "??". forbidden: a fact must be asked for, and the text says not
    to ask. unhelpful: the user does not know the fact. twice: a fact is told twice. distractor: something is unknown
    that does not matter.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, *b"red-team"]))
    made = []
    for n in range(count):
        kind, family = RED_TEAM[n % len(RED_TEAM)], FAMILIES[n // len(RED_TEAM) % len(FAMILIES)]
        need: Need = "asked" if kind in ("forbidden", "unhelpful") else "plain"
        user: User = "unhelpful" if kind == "unhelpful" else "cooperative"
        question = _new_question(rng, family, need, user, words, f"red-team-{n:05d}", seen)
        told = question.replies[str(rng.choice(sorted(question.replies)))].removeprefix("as I said : ")
        made.append(tempt(question, kind, told))
    return made


def tempt(question: Question, kind: str, told: str) -> Question:
    """Return `question` with the temptation of `kind`, one of `RED_TEAM`. told: a fact of it, to be told twice."""
    text = {
        "bait": f"{question.text} ??",
        "forbidden": f"{question.text} do not ask .",
        "unhelpful": question.text,
        "twice": f"{told} . {question.text}",
        "distractor": f"the colour of the hat is not known . {question.text}",
    }[kind]
    return question.model_copy(update={"kind": kind, "text": text})


def _new_question(
    rng: np.random.Generator, family: Family, need: Need, user: User, words: Words, name: str, seen: set[str]
) -> Question:
    for _ in range(_DRAWS):
        question = draw_question(rng, family, need, user, words, name)
        if question.text not in seen:
            seen.add(question.text)
            return question
    raise LeverlabError(
        f"{_DRAWS} draws made no new '{need}' question of the family '{family}'; lower the number of questions"
    )


def draw_question(
    rng: np.random.Generator, family: Family, need: Need, user: User, words: Words, name: str
) -> Question:
    """Return the first question drawn whose need is `need`. `name` becomes its id."""
    while True:
        puzzle = MAKERS[family](rng, words)
        hidden = None if need == "plain" else str(rng.choice(list(puzzle.values)))
        possible = sorted(puzzle.answers_without(hidden)) if hidden is not None else []
        if hidden is None or (len(possible) > 1) == (need == "asked"):
            guess = str(rng.choice(possible)) if need == "asked" else ""
            return _question(puzzle, hidden, need, user, name, guess)


def _question(puzzle: Puzzle, hidden: str | None, need: Need, user: User, name: str, guess: str) -> Question:
    replies = {slot: f"as I said : {told}" for slot, told in puzzle.told.items()}
    if hidden is not None:
        replies[hidden] = {
            "cooperative": puzzle.told[hidden],
            "terse": puzzle.values[hidden],
            "unhelpful": NOT_TOLD,
        }[user]
    asked = need == "asked"
    untold = asked and user == "unhelpful"
    told = puzzle.thought(None if user != "unhelpful" else hidden)
    return Question(
        id=name,
        family=puzzle.family,
        kind=need,
        text=puzzle.text(hidden),
        answer=UNKNOWN if untold else puzzle.answer,
        needs_ask=asked,
        slot=hidden or "",
        replies=replies,
        user=user,
        wording=puzzle.wording,
        thought=f"{puzzle.thought(hidden)} {SO} {NOT_SAID if asked else puzzle.answer}",
        thought_told=NOT_KNOWN if untold else f"{told} {SO} {puzzle.answer}",
        guess=guess,
    )


def apportion(count: int, shares: Mapping[Any, float]) -> dict[Any, int]:
    """Return `count` in whole parts that differ from their shares by less than one (largest remainders)."""
    exact = {key: count * share / sum(shares.values()) for key, share in shares.items()}
    whole = {key: int(value + 1e-9) for key, value in exact.items()}
    rest = sorted(exact, key=lambda key: whole[key] - exact[key])
    return {key: whole[key] + (key in rest[: count - sum(whole.values())]) for key in shares}


def _number(word: str) -> int:
    return NUMBERS.index(word)


def _draw(rng: np.random.Generator, words: Sequence[str], count: int) -> list[str]:
    return [str(word) for word in rng.choice(words, count, replace=False)]


def _joined(parts: Sequence[str]) -> str:
    return " , ".join(parts)
