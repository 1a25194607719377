"""The recipe `clarify` on real data: HotpotQA, StrategyQA and GSM8K, and the need to ask that is made in them.

A row becomes a pair of twins: its text whole, which needs no ask, and its text without one fact, which does. What can
be left out, and by what name it is asked for: `clarify_rows`. A need is one of the text: a policy that has read the
source of the data may know the fact all the same.
"""

import math
import zlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import ValidationError

from leverlab.errors import LeverlabError
from leverlab.library_errors import reason_of
from leverlab.lm.questions import UNKNOWN, Question
from leverlab.lm.turns import tag_in
from leverlab.worlds.clarify import FAMILIES, NOT_KNOWN, NOT_TOLD, USER_SHARES, USERS, Family, User, Words, apportion
from leverlab.worlds.clarify_rows import AS_SAID, QUESTION, Cut, Math, Multihop, Row, Strategy
from leverlab.worlds.hub import check_no_times, load_splits

ROWS: Mapping[Family, type[Row]] = {"multihop": Multihop, "strategy": Strategy, "math": Math}
# of hotpotqa/hotpot_qa, ChilleD/StrategyQA and openai/gsm8k
CONFIGS: Mapping[Family, str | None] = {"multihop": "distractor", "strategy": None, "math": "main"}
MAX_PARAGRAPHS = 6
_T = TypeVar("_T")
_FILES = (".parquet", ".json", ".jsonl")
_SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` leaves in a folder


@dataclass(frozen=True)
class Twins:
    """Pairs of questions, side by side: the whole one and the one that needs an ask.

    skipped: reason → how many rows made no pair.
    """

    questions: tuple[Question, ...]
    skipped: Mapping[str, int]


def load_family(family: Family, source: str, split: str, limit: int | None = None) -> list[dict[str, Any]]:
    """Return the rows of a split, the first `limit` of them (all for None), with the columns that the family needs.

    source: a hub id; a folder with parquet, JSON or JSON-lines files as the hub stores them (in a subfolder named after
    the configuration or not), or as `save_to_disk` does; or such a file, which is the split whatever its name.
    Raises `LeverlabError` when there is no such source or split, when it has no rows, or when it lacks a column.
    """
    if limit is not None and limit < 1:
        raise LeverlabError(f"the limit of rows of '{family}' is {limit}; it must be at least 1, or null for all")
    try:
        data = _load(source, CONFIGS[family], split)
    except LeverlabError:
        raise
    except Exception as error:  # the library raises errors of many kinds, its own and those of the network
        problem = reason_of(error)
        raise LeverlabError(
            f"the split '{split}' of the family '{family}' cannot be loaded from '{source}' ({problem}); name a hub id "
            f"that datasets can load, or a folder or file in {', '.join(_FILES)}"
        ) from error
    needed = list(ROWS[family].model_fields)
    if missing := [column for column in needed if column not in data.column_names]:
        raise LeverlabError(
            f"'{source}' {split} lacks the columns {missing} of the family '{family}'; it holds {data.column_names}"
        )
    data = data.select_columns(needed)
    check_no_times(data, needed, f"'{source}' {split}")
    return list(data if limit is None else data.select(range(min(limit, len(data)))))


def _load(source: str, config: str | None, split: str) -> Any:
    from datasets import DatasetDict, load_dataset, load_from_disk

    path = Path(source)
    if path.is_file():
        if path.suffix not in _FILES:
            raise LeverlabError(f"{path} is no data file that is known here; name one in {', '.join(_FILES)}")
        return load_splits(source)["train"]
    if not path.is_dir():
        return load_dataset(source, config, split=split)
    if any((path / name).exists() for name in _SAVED):
        saved = load_from_disk(source)
        return saved[split] if isinstance(saved, DatasetDict) else saved
    found = load_splits(str(path / config if config and (path / config).is_dir() else path))
    if split not in found:
        raise ValueError(f"it has the splits {sorted(found)}")
    return found[split]


def make_twins(
    family: Family,
    rows: Sequence[Mapping[str, Any]],
    seed: int,
    user_shares: Mapping[User, float] = USER_SHARES,
    max_paragraphs: int = MAX_PARAGRAPHS,
) -> Twins:
    """Return a pair of questions for every row that a fact can be taken from: the whole one, then the one without.

    The second needs an ask, and names the first as its twin. What is hidden depends on `seed` and the row alone.
    user_shares: exactly so many pairs have each user. max_paragraphs: of multihop, the supporting ones and others up to
    so many; in the second text another takes the place of the hidden one, so that their number does not tell. Raises
    `LeverlabError` for a bad cell, an id that stands twice, bad shares, or when no row can be used.
    """
    _check_shares(user_shares, USERS)
    if max_paragraphs < 1:
        raise LeverlabError(f"max_paragraphs is {max_paragraphs}; it must be at least 1")
    cuts, skipped = _cuts(family, rows, seed, max_paragraphs)
    if not cuts:
        found = ", ".join(f"{reason}: {count}" for reason, count in skipped.items()) or "there is none"
        raise LeverlabError(f"no row of the family '{family}' can be used ({found}); use other data")
    users = [user for user, count in apportion(len(cuts), user_shares).items() for _ in range(count)]
    order = _rng(seed, family).permutation(len(users))
    pairs = [_pair(family, name, cut, users[n]) for (name, cut), n in zip(cuts.items(), order, strict=True)]
    return Twins(tuple(question for pair in pairs for question in pair), skipped)


def _cuts(
    family: Family, rows: Sequence[Mapping[str, Any]], seed: int, max_paragraphs: int
) -> tuple[dict[str, Cut], dict[str, int]]:
    """Return id → row with a fact to leave out, and reason → how many rows have none."""
    cuts: dict[str, Cut] = {}
    skipped: Counter[str] = Counter()
    names: set[str] = set()
    texts: set[str] = set()
    for n, raw in enumerate(rows):
        row = _checked(family, raw, n)
        if row.name in names and family != "math":  # there the name is made of the text, which is seen to below
            raise LeverlabError(f"the id '{row.name}' of the family '{family}' stands twice; every id must be unique")
        names.add(row.name)
        cut = row.cut(_rng(seed, f"{family}-{row.name}"), max_paragraphs)
        if isinstance(cut, Cut) and {cut.whole, cut.text} & texts:
            cut = "another row has its text"
        if isinstance(cut, Cut) and any(map(tag_in, cut.said)):
            cut = "what a policy is to say of it spells a tag"
        if isinstance(cut, str):
            skipped[cut] += 1
        else:
            texts |= {cut.whole, cut.text}
            cuts[f"{family}-{row.name}"] = cut
    return cuts, dict(skipped)


def _checked(family: Family, raw: Mapping[str, Any], n: int) -> Row:
    try:
        return ROWS[family].model_validate(dict(raw))
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        raise LeverlabError(
            f"row {n} of the family '{family}': {place}: {problem['msg']}; mend or remove the row"
        ) from None


def _pair(family: Family, name: str, cut: Cut, user: User) -> tuple[Question, Question]:
    """Return the whole question, and the one that needs an ask, which names it as its twin."""
    fact = {"cooperative": cut.told, "terse": cut.terse, "unhelpful": NOT_TOLD}[user]
    wording = _wording(cut.question_of_whole)
    plain = Question(
        id=f"{name}-plain",
        family=family,
        kind="plain",
        text=cut.whole,
        answer=cut.answer,
        needs_ask=False,
        slot="",
        replies=_told(cut, cut.whole, cut.question_of_whole) | dict.fromkeys(cut.names, f"{AS_SAID}{cut.told}"),
        thought=cut.through,
        thought_told=cut.through,
        user=user,
        wording=wording,
    )
    asked = Question(
        id=f"{name}-asked",
        family=family,
        kind="asked",
        text=cut.text,
        answer=UNKNOWN if user == "unhelpful" else cut.answer,
        needs_ask=True,
        slot=cut.names[0],
        replies=_told(cut, cut.text, cut.question_of_text) | dict.fromkeys(cut.names, fact),
        thought=cut.before,
        thought_told=NOT_KNOWN if user == "unhelpful" else cut.through,
        twin=plain.id,
        guess=cut.guess,
        user=user,
        wording=wording,
    )
    return plain, asked


def _told(cut: Cut, text: str, question: str) -> dict[str, str]:
    """Return slot → reply for what stands in `text`, the question among it."""
    others = {slot: f"{AS_SAID}{said}" for slot, said in cut.others.items() if said in text}
    return others | {QUESTION: f"{AS_SAID}{question}"}


def _wording(question: str) -> int:
    """Return one of as many wordings as the embedded questions have: a class of the first word, which twins share."""
    return zlib.crc32(question.split()[0].lower().encode()) % len(Words.usual().wordings)


def split_twins(
    questions: Sequence[Question], pairs: Mapping[str, int], shares: Mapping[Family, float], seed: int
) -> dict[str, list[Question]]:
    """Return split → its questions in random order: `pairs[split]` pairs in exactly the shares of families.

    Twins stay together, and no question is in two splits. Splits are filled in the order of `pairs`, so that a split
    depends on `seed`, its own number and those before it alone. Raises `LeverlabError` for a question without its twin,
    bad shares or numbers, or a family that has too few pairs.
    """
    _check_shares(shares, FAMILIES)
    if negative := [name for name, count in pairs.items() if count < 0]:
        raise LeverlabError(f"the splits {negative} have fewer than 0 pairs; ask for 0 or more")
    left = {family: _shuffled(_twins(questions, family), _rng(seed, family)) for family in shares}
    split: dict[str, list[Question]] = {}
    for name, count in pairs.items():
        taken = []
        for family, wanted in apportion(count, shares).items():
            if wanted > len(left[family]):
                raise LeverlabError(
                    f"the split '{name}' needs {wanted} pairs of the family '{family}', but {len(left[family])} are "
                    "left for it; lower the numbers of pairs or the share of the family, or load more rows"
                )
            taken += [question for pair in left[family][:wanted] for question in pair]
            left[family] = left[family][wanted:]
        split[name] = _shuffled(taken, _rng(seed, f"split-{name}"))
    return split


def _twins(questions: Sequence[Question], family: Family) -> list[list[Question]]:
    """Return the pairs of a family, by id."""
    groups: dict[str, list[Question]] = {}
    for question in questions:
        if question.family == family:
            groups.setdefault(question.twin or question.id, []).append(question)
    for name, group in groups.items():
        if sorted(question.needs_ask for question in group) != [False, True]:
            raise LeverlabError(
                f"the question '{name}' and its twins are {len(group)}; there must be two, one of which needs an ask"
            )
    return [sorted(groups[name], key=lambda question: question.needs_ask) for name in sorted(groups)]


def _shuffled(items: Sequence[_T], rng: np.random.Generator) -> list[_T]:
    return [items[n] for n in rng.permutation(len(items))]


def _check_shares(shares: Mapping[Any, float], known: Collection[str]) -> None:
    if (
        not set(shares) <= set(known)
        or not all(0 <= share < math.inf for share in shares.values())
        or not sum(shares.values())
    ):
        raise LeverlabError(f"{dict(shares)} are no shares; give {list(known)} numbers of 0 or more, not all of them 0")


def _rng(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence([seed, *name.encode()]))
