"""All splits of the recipe `clarify`, embedded or from the hub, in one form."""

from collections.abc import Mapping

import numpy as np

from leverlab.config.clarify_data import ClarifyDataParams, SourceParams
from leverlab.errors import LeverlabError
from leverlab.lm.questions import Question
from leverlab.worlds import clarify
from leverlab.worlds.clarify import FAMILIES, RED_TEAM, SHARES, Words
from leverlab.worlds.clarify_hub import load_family, make_twins, split_twins

Splits = dict[str, list[Question]]


def make_splits(params: ClarifyDataParams) -> tuple[Splits, list[str]]:
    """Return the splits train, val, test, shadow, calib, ood and red_team, and what the data card says of them.

    Raises `LeverlabError` when there are not as many questions as `params` asks for.
    """
    return embedded(params) if params.world == "clarify" else from_hub(params)


def embedded(params: ClarifyDataParams) -> tuple[Splits, list[str]]:
    """Return the splits of the embedded world, whose texts are all different."""
    seen: set[str] = set()
    usual, held_out = Words.usual(), Words.held_out()
    splits = {name: clarify.make_split(name, n, usual, params.seed, seen) for name, n in _counts(params).items()}
    splits["ood"] = clarify.make_split("ood", params.ood, held_out, params.seed, seen)
    splits["red_team"] = clarify.make_red_team(params.red_team, usual, params.seed, seen)
    return splits, [
        "Generated questions about facts, of which one may be missing. Whether it must be asked for is decided by "
        "brute force: more than one answer is possible without it. Names, cities and wordings of `ood` stand in no "
        "other split; the base has read them."
    ]


def from_hub(params: ClarifyDataParams) -> tuple[Splits, list[str]]:
    """Return the splits made from HotpotQA, StrategyQA and GSM8K: twins of which one lacks a fact.

    Half of the questions of every split need an ask, in every family: twins are never torn apart.
    """
    red_pairs = params.red_team
    counts = {name: count // 2 for name, count in _counts(params).items()} | {"red_team": red_pairs}
    rest, skipped = _twins(params.sources, "split", params.seed)
    splits = split_twins(rest, counts, SHARES, params.seed)
    other, skipped_ood = _twins(params.sources, "ood", params.seed)
    splits |= split_twins(other, {"ood": params.ood // 2}, SHARES, params.seed)
    splits["red_team"] = _red_team(splits["red_team"], params.red_team, params.seed)
    notes = [f"Rows that made no pair of twins: {skipped}; of the split for `ood`: {skipped_ood}."]
    return splits, [
        "HotpotQA, StrategyQA and GSM8K. The need to ask is made: one supporting paragraph, fact or number is taken "
        "out, and the whole question stays beside it as its twin. `ood` is made from the sources' own "
        "evaluation splits.",
        *notes,
    ]


def _counts(params: ClarifyDataParams) -> dict[str, int]:
    return {name: getattr(params, name) for name in ("train", "val", "test", "shadow", "calib")}


def _twins(
    sources: Mapping[str, SourceParams], key: str, seed: int
) -> tuple[list[Question], dict[str, dict[str, int]]]:
    """Return the twins of all families from the split that `key` names, and why rows made none."""
    found: list[Question] = []
    skipped: dict[str, dict[str, int]] = {}
    for family in FAMILIES:
        source = sources[family]
        twins = make_twins(family, load_family(family, source.source, getattr(source, key)), seed)
        found += twins.questions
        skipped[family] = dict(twins.skipped)
    return found, skipped


def _red_team(questions: list[Question], count: int, seed: int) -> list[Question]:
    """Return `count` of the questions with temptations, as many of each kind as go in, families in turn."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, *b"red-team"]))
    waiting: dict[tuple[str, bool], list[Question]] = {}
    for question in questions:
        unhelpful = question.needs_ask and question.user == "unhelpful"
        waiting.setdefault((question.family, question.needs_ask), []).append(question)
        if unhelpful:
            waiting.setdefault((question.family, True), []).insert(0, waiting[question.family, True].pop())
    made: list[Question] = []
    for n in range(count):
        kind, family = RED_TEAM[n % len(RED_TEAM)], FAMILIES[n // len(RED_TEAM) % len(FAMILIES)]
        of_need = waiting.get((family, kind in ("forbidden", "unhelpful")), [])
        if not of_need:
            raise LeverlabError(
                f"there are too few questions of '{family}' for a red team of {count}; lower data.red_team"
            )
        question = of_need.pop(0 if kind == "unhelpful" else -1)
        told = question.replies[str(rng.choice(sorted(question.replies)))]
        made.append(clarify.tempt(question, kind, told))
    return made
