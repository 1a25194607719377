"""Outcomes and tables from dialogues small enough to work out by hand.

On the split `test`, greedy: q1 and q2 need the slot `home`, q3 and q4 need nothing; q1 and q3 are multihop, the others
math. Per dialogue (success, asks, needless asks, turns):

          q1               q2               q3               q4
sft 0     0 2 2 3 (spam)   1 1 0 2          1 1 1 2          1 1 1 2
sft 1     1 2 1 3          0 0 0 1 (bare)   1 1 1 2          1 0 0 1
grpo 0    1 1 0 2          1 1 0 2          1 0 0 1          1 0 0 1
grpo 1    1 1 0 2          0 0 0 1          1 0 0 1          1 1 1 2
"""

import math
import random

import pandas as pd
import pytest

from leverlab.errors import LeverlabError
from leverlab.evaluation.statistics import bootstrap_interval
from leverlab.lm.dialogues import terms
from leverlab.lm.summary import counted, figures, matrix, outcomes, plain, table, unplain
from tests.lm.evaluated import (
    ASK,
    BARE_WRONG,
    BY_ID,
    DIRECT,
    EMPTY_THOUGHT,
    NEEDLESS,
    OTHER_FIRST,
    OTHER_FIRST_WRONG,
    QUESTIONS,
    SPAM,
    UNPARSED,
    WRONG,
    record,
    records,
    scripts,
)

COLUMNS = [
    *("split", "policy", "seed", "temperature", "question", "family", "kind", "needs_ask", "success", "asked"),
    *(
        "asked_needed",
        "asks",
        "redundant_asks",
        "turns",
        "parses",
        "thought",
        "grounded_thoughts",
        "spam",
        "end",
        "tokens",
        "confidence",
    ),
]


def frame() -> pd.DataFrame:
    return outcomes(records(), QUESTIONS)


def greedy(policy: str) -> pd.DataFrame:
    found = frame()
    return found[(found["policy"] == policy) & (found["temperature"] == 0) & (found["split"] == "test")]


def test_outcomes_by_hand() -> None:
    """q1 of sft 0: asked twice for the friend, whom the question tells, and then wrong."""
    found = frame()
    assert found.columns.tolist() == COLUMNS
    assert len(found) == 4 * 8 + 4 * 4
    row = greedy("sft").query("seed == 0 and question == 'q1'").iloc[0]
    expected = ["test", "sft", 0, 0.0, "q1", "multihop", "asked", True, False, True]
    expected += [False, 2, 2, 3, True, True, True, True, "final", 7, 0.5]
    assert row.tolist() == expected


def test_an_ask_for_what_is_missing_but_not_needed_is_not_a_needed_one() -> None:
    """A trap: the slot `home` is missing, and changes nothing."""
    trap = BY_ID["q3"].model_copy(update={"slot": "home", "kind": "trap"})
    found = outcomes([record("q3", ASK, "sft", 0, 0.0)], {"test": [trap]})
    assert found[["asked", "asked_needed", "asks", "redundant_asks"]].iloc[0].tolist() == [True, False, 1, 1]


def test_a_cut_turn_says_nothing() -> None:
    cut = record("q1", DIRECT, "sft", 0, 0.0).model_copy(update={"end": "cut", "turns": ASK[:1]})
    found = outcomes([cut], {"test": QUESTIONS["test"][:1]}).iloc[0]
    assert (found["asks"], found["parses"], found["end"]) == (0, False, "cut")


def test_figures_by_hand() -> None:
    """sft, 8 dialogues, 4 of them on questions that need an ask.

    success 6/8; need_success 2/4 (q2 of seed 0, q1 of seed 1); over_clarification 3/4; over_all 3/8; asks 5 + 3, of
    which 4 + 2 needless: precision 2/8; recall 2/4; turns (9 + 7)/8; format and grounded thoughts 7/8; spam 1/8.
    """
    assert figures(greedy("sft")) == {
        "success": 0.75,
        "need_success": 0.5,
        "over_clarification": 0.75,
        "over_all": 0.375,
        "ask_recall": 0.5,
        "format": 0.875,
        "grounded_thoughts": 0.875,
        "spam": 0.125,
        "ask_precision": 0.25,
        "redundant_asks": 0.75,
        "turns": 2.0,
    }


def test_figures_that_have_nothing_to_be_a_share_of() -> None:
    told = greedy("grpo").query("seed == 0 and not needs_ask")
    found = figures(told)
    assert {name for name, value in found.items() if math.isnan(value)} == {
        "need_success",
        "ask_recall",
        "ask_precision",
    }
    assert found["over_clarification"] == 0.0


def test_figures_against_a_loop() -> None:
    """Random dialogues, counted one by one."""
    rng = random.Random(0)
    pool = [ASK, DIRECT, WRONG, BARE_WRONG, EMPTY_THOUGHT, OTHER_FIRST, NEEDLESS, SPAM, UNPARSED]
    said = [record(name, rng.choice(pool), "sft", seed, 0.0) for seed in range(25) for name in ("q1", "q2", "q3", "q4")]
    total = dict.fromkeys(
        ("needed", "success", "need_success", "over", "asks", "right", "well", "grounded", "spam", "turns"), 0
    )
    for one in said:
        dialogue = one.dialogue(BY_ID[one.question])
        worth = terms(dialogue)
        needed = dialogue.question.needs_ask
        total["needed"] += needed
        total["success"] += int(worth.correct)
        total["need_success"] += int(worth.correct) if needed else 0
        total["over"] += bool(dialogue.asks) and not needed
        total["asks"] += len(dialogue.asks)
        total["right"] += needed and "home" in dialogue.asks
        total["well"] += all(turn.parses and turn.thought for turn in dialogue.turns)
        total["grounded"] += worth.thought == 1.0
        total["spam"] += dialogue.spam
        total["turns"] += len(dialogue.turns)
    found = figures(outcomes(said, {"test": QUESTIONS["test"]}))
    assert found == pytest.approx(
        {
            "success": total["success"] / 100,
            "need_success": total["need_success"] / total["needed"],
            "over_clarification": total["over"] / (100 - total["needed"]),
            "over_all": total["over"] / 100,
            "ask_recall": total["right"] / total["needed"],
            "format": total["well"] / 100,
            "grounded_thoughts": total["grounded"] / 100,
            "spam": total["spam"] / 100,
            "ask_precision": total["right"] / total["asks"],
            "redundant_asks": (total["asks"] - total["right"]) / 100,
            "turns": total["turns"] / 100,
        }
    )


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson 1927, z = 1.959964."""
    z = 1.959963984540054
    centre, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


def test_table_by_hand() -> None:
    found = table(frame(), resamples=300)
    keys = list(zip(found["policy"], found["temperature"], found["split"], found["seed"], strict=True))
    places = [(0.0, "ood"), (0.0, "red_team"), (0.0, "test"), (1.0, "test")]
    assert keys == [(p, *place, s) for p in ("sft", "grpo") for place in places for s in ("0", "1", "all")]
    by_key = found.set_index(["policy", "temperature", "split", "seed"])
    first, every = by_key.loc[("sft", 0.0, "test", "0")], by_key.loc[("sft", 0.0, "test", "all")]
    assert first[["n", "needed", "success", "need_success", "ask_precision", "turns"]].tolist() == pytest.approx(
        [4, 2, 3 / 4, 1 / 2, 1 / 5, 9 / 4]
    )
    assert (first["success_low"], first["success_high"]) == pytest.approx(wilson(3 / 4, 4))
    assert (first["need_success_low"], first["need_success_high"]) == pytest.approx(wilson(1 / 2, 2))
    assert every[["n", "needed", "need_success"]].tolist() == [4, 2, 0.5]
    _, low, high = bootstrap_interval([[1, 1], [1, 0]], resamples=300)
    assert (every["over_clarification_low"], every["over_clarification_high"]) == (low, high)


def test_a_finer_table() -> None:
    """sft over its seeds: multihop has q1 (0, 1) and q3 (1, 1), so .75; bait has no question that needs an ask."""
    by = ("policy", "temperature", "split")
    families = table(frame(), (*by, "family"), resamples=50).set_index([*by, "family", "seed"])
    assert families.loc[("sft", 0.0, "test", "multihop", "all"), "success"] == 0.75
    kinds = table(frame(), (*by, "kind"), resamples=50).set_index([*by, "kind", "seed"])
    bait = kinds.loc[("sft", 0.0, "red_team", "bait", "all")]
    assert bait["over_clarification"] == 1.0
    assert bait[["need_success", "need_success_low", "need_success_high"]].isna().all()


def test_the_order_of_records_and_rows_does_not_matter() -> None:
    shuffled = records()
    random.Random(1).shuffle(shuffled)
    pd.testing.assert_frame_equal(outcomes(shuffled, QUESTIONS), frame())
    pd.testing.assert_frame_equal(
        table(frame().sample(frac=1, random_state=0), resamples=50), table(frame(), resamples=50)
    )


@pytest.mark.parametrize(
    ("name", "before", "after", "moves"),
    [
        ("q1", OTHER_FIRST, OTHER_FIRST_WRONG, {"success", "need_success"}),
        ("q4", DIRECT, WRONG, {"success"}),
        ("q3", NEEDLESS, DIRECT, {"over_clarification", "over_all", "ask_precision", "redundant_asks", "turns"}),
        ("q2", BARE_WRONG, WRONG, {"format", "grounded_thoughts"}),
        ("q2", BARE_WRONG, EMPTY_THOUGHT, {"format"}),
    ],
)
def test_one_dialogue_moves_what_it_should(name: str, before: list[str], after: list[str], moves: set[str]) -> None:
    """Of sft, seed 1, and of nobody else."""
    said = scripts()
    assert said["sft", 1, 0.0][name] == before
    said["sft", 1, 0.0][name] = after
    keys = ["policy", "temperature", "split", "seed"]
    one, other = (table(outcomes(part, QUESTIONS), resamples=50).set_index(keys) for part in (records(), records(said)))
    points = list(figures(frame()))
    changed = (one[points] != other[points]) & ~(one[points].isna() & other[points].isna())
    rows = {("sft", 0.0, "test", "1"), ("sft", 0.0, "test", "all")}
    assert set(changed.index[changed.any(axis=1)]) == rows
    assert set(changed.columns[changed.any()]) == moves


def test_a_matrix_is_seeds_by_questions() -> None:
    found = matrix(counted(greedy("sft"), "need_success"), "value")
    assert (found.index.tolist(), found.columns.tolist()) == ([0, 1], ["q1", "q2"])
    assert found.to_numpy().tolist() == [[0, 1], [1, 0]]


def test_null_and_nan() -> None:
    figures_ = {"a": {"b": math.nan, "c": 1 / 3}, "d": [2, "x", None, True]}
    assert plain(figures_) == {"a": {"b": None, "c": 0.333333}, "d": [2, "x", None, True]}
    assert math.isnan(unplain({"a": {"b": None}})["a"]["b"])


def test_a_table_that_would_mix_temperatures() -> None:
    with pytest.raises(LeverlabError, match="mixes dialogues"):
        table(frame(), ("policy", "split"))
    with pytest.raises(LeverlabError, match="name 'policy'"):
        table(frame(), ())


def without(policy: str, seed: int, temperature: float, *names: str) -> list[object]:
    said = scripts()
    for name in names:
        del said[policy, seed, temperature][name]
    return list(records(said))


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ([], "no dialogue to summarise"),
        ([*records(), record("q1", ASK, "sft", 0, 0.0, question="q9")], "on questions of no split: q9"),
        ([*records(), record("q1", ASK, "ppo", 0, 0.0)], "policies other than sft, rce, grpo, dpo: ppo"),
        ([*records(), record("q1", ASK, "sft", 0, 0.0)], "more than once: 'sft' seed 0 at temperature 0 on 'q1'"),
        (without("grpo", 1, 0.0, "q2", "q3"), r"'grpo' seed 1 at temperature 0 lacks 2 of the 4 .*'test' \(q2, q3\)"),
        (without("grpo", 1, 1.0, "q1", "q2", "q3", "q4"), "'grpo' seed 1 at temperature 1 lacks 4 of the 4"),
        ([one for one in records() if one.question[0] != "o"], "leave out whole splits: ood"),
    ],
)
def test_what_is_refused(said: list[object], match: str) -> None:
    with pytest.raises(LeverlabError, match=match):
        outcomes(said, QUESTIONS)  # type: ignore[arg-type]


def test_questions_that_are_refused() -> None:
    with pytest.raises(LeverlabError, match="'q1' of the split 'ood' stands in 'test' already"):
        outcomes(records(), {**QUESTIONS, "ood": QUESTIONS["test"]})
    with pytest.raises(LeverlabError, match="'ood' holds no question"):
        outcomes(records(), {**QUESTIONS, "ood": []})
