"""Health checks on tables small enough to count by hand, one failure at a time."""

import math
from typing import Any

import pandas as pd
import pytest

from leverlab.config.rl_data import HealthLimits
from leverlab.errors import LeverlabError
from leverlab.evaluation.health import (
    FLAT_TOLERANCE,
    Finding,
    failures,
    flat_groups,
    health_report,
    pool_digest,
    pool_identity,
    raise_on_failures,
)
from leverlab.rl import advantages

POOL = ["a", "b", "c", "d"]
LIMITS = {
    "max_flat_groups": 0.5,
    "max_winner_groups": 0.4,
    "min_positives": 0.2,
    "min_oracle_accuracy": 0.6,
    "max_random_accuracy": 0.9,
    "min_headroom": 0.2,
    "min_answer_prob_median": 0.01,
    "max_answer_prob_tiny": 0.3,
    "min_distinct_candidates": 0.5,
}


def row(query: str, source: str, demos: list[str], correct: list[float], probability: list[float]) -> dict[str, Any]:
    return {
        "query_id": query,
        "source": source,
        "demos": demos,
        "correct": correct,
        "vqa_accuracy": correct,
        "answer_prob": probability,
    }


def groups() -> pd.DataFrame:
    """Three groups of two trajectories over two prefixes: q1 mixed, q2 all losers, q3 all winners at full length."""
    return pd.DataFrame(
        [
            row("q1", "beam", ["a", "b"], [1, 1], [0.5, 0.9]),
            row("q1", "random", ["b", "a"], [0, 0], [0.1, 0.2]),
            row("q2", "beam", ["c", "d"], [0, 0], [0.1, 0.1]),
            row("q2", "random", ["d", "c"], [0, 0], [0.1, 0.1]),
            row("q3", "beam", ["a", "c"], [1, 1], [0.8, 0.9]),
            row("q3", "random", ["c", "a"], [0, 1], [0.3, 0.00001]),
        ]
    )


def candidates() -> pd.DataFrame:
    return pd.DataFrame({"query_id": ["q1", "q2", "q3"], "set": 0, "candidates": [["a", "b"], ["c", "d"], ["a", "c"]]})


def report(
    table: pd.DataFrame | None = None, offered: pd.DataFrame | None = None, **changes: Any
) -> dict[str, Finding]:
    pools, rewards = changes.pop("pools", {"pool.parquet": POOL}), changes.pop("rewards", None)
    findings = health_report(
        groups() if table is None else table,
        candidates() if offered is None else offered,
        pools,
        HealthLimits.model_validate(LIMITS | changes),
        rewards,
    )
    return {finding.name: finding for finding in findings}


def test_every_value_by_hand() -> None:
    """Flat: q2 alone (q3's mean rewards are 1 and 1/2). Winners: q3 at full length. Beam: 4 of 6 answers right, random
    1 of 6. Oracle: q1 and q3 of 3. Random at full length: q3 of 3. The probabilities in order: .00001, five times .1,
    .2, ... so their median is .15, and one of twelve is tiny."""
    values = {name: finding.value for name, finding in report().items()}
    assert values == pytest.approx(
        {
            "pool_identity": 1,
            "candidates_outside_pool": 0,
            "demos_outside_pool": 0,
            "demos_outside_candidates": 0,
            "distinct_candidates": 4 / 4,
            "flat_groups": 1 / 3,
            "winner_groups": 1 / 3,
            "positives_beam": 4 / 6,
            "positives_random": 1 / 6,
            "oracle_accuracy": 2 / 3,
            "random_accuracy": 1 / 3,
            "headroom": 1 / 3,
            "answer_prob_median": 0.15,
            "answer_prob_tiny": 1 / 12,
        }
    )
    assert [finding.name for finding in failures(list(report().values()))] == ["positives_random"]
    assert not failures(list(report(min_positives=0.1).values()))


@pytest.mark.parametrize(
    ("limit", "value", "name"),
    [
        ("max_flat_groups", 0.3, "flat_groups"),
        ("max_winner_groups", 0.3, "winner_groups"),
        ("min_oracle_accuracy", 0.7, "oracle_accuracy"),
        ("max_random_accuracy", 0.3, "random_accuracy"),
        ("min_headroom", 0.34, "headroom"),
        ("min_answer_prob_median", 0.2, "answer_prob_median"),
        ("max_answer_prob_tiny", 0.05, "answer_prob_tiny"),
        ("min_positives", 0.7, "positives_beam"),
    ],
)
def test_each_limit_can_fail(limit: str, value: float, name: str) -> None:
    assert not report(**{limit: value})[name].ok
    assert report()[name].ok


def test_few_distinct_candidates_fail() -> None:
    """Three of the four demos of the pool are offered."""
    offered = candidates().assign(candidates=[["a", "b"], ["a", "b"], ["a", "c"]])
    assert report(offered=offered, min_distinct_candidates=0.75)["distinct_candidates"].ok
    assert not report(offered=offered, min_distinct_candidates=0.76)["distinct_candidates"].ok


def test_rewards_decide_what_is_flat() -> None:
    assert report(rewards=[1, 1, 2, 3, 4, 4])["flat_groups"].value == pytest.approx(2 / 3)
    assert flat_groups(["x", "y", "x"], [0.3, 0.1, 0.1 + 0.2], 1.0).value == 1.0
    for bad in ([1.0, 2.0], [1.0, 2.0, math.nan]):
        with pytest.raises(LeverlabError, match="one finite number per trajectory"):
            flat_groups(["x", "y", "x"], bad, 1.0)


def test_flat_groups_are_counted_and_left_out_of_the_deviation() -> None:
    """x is flat; y has 0 and 1, deviation 1/2; z has 0 and 4e-9, which training drops as well. Median: 1/2."""
    meaning = flat_groups(list("xxyyzz"), [3, 3, 0, 1, 0, 4e-9], 1.0).meaning
    assert "the same reward (2 of 3);" in meaning
    assert meaning.endswith("; median deviation of the rewards in the others 0.5")
    assert "others" not in flat_groups(list("xx"), [3, 3], 1.0).meaning
    assert FLAT_TOLERANCE == advantages.FLAT_TOLERANCE


def test_the_order_of_rows_does_not_matter() -> None:
    shuffled = report(groups().sample(frac=1, random_state=1), candidates().iloc[::-1])
    assert {k: f.value for k, f in shuffled.items()} == pytest.approx({k: f.value for k, f in report().items()})


def test_unknown_ids_are_counted() -> None:
    """Lesson 2: labels that index something else. 'x' is in no pool; 'd' is in the pool, but not offered to q1."""
    table = groups()
    table.at[0, "demos"] = ["a", "x"]
    table.at[1, "demos"] = ["d", "a"]
    found = report(table, candidates().assign(candidates=[["a", "b", "y"], ["c", "d", "z"], ["a", "c"]]))
    assert found["candidates_outside_pool"].value == 2
    assert found["demos_outside_pool"].value == 1
    assert "such as x" in found["demos_outside_pool"].meaning
    assert found["demos_outside_candidates"].value == 2
    assert not any(found[name].ok for name in found if "outside" in name)
    two_sets = pd.concat([candidates(), candidates().assign(set=1, candidates=[["d", "b"]] * 3)])
    table = groups()
    table.at[0, "demos"] = ["a", "d"]
    assert report(table, two_sets)["demos_outside_candidates"].ok


def test_the_same_two_demos_for_every_query_fail() -> None:
    """Lesson 1: 40 queries offered the same 2 demos of a pool of 50: 2 of 50 possible."""
    pool = [f"p{i}" for i in range(50)]
    table = groups().assign(demos=[["p0", "p1"]] * 6)
    offered = pd.DataFrame(
        {"query_id": ["q1", "q2", "q3"] + [f"r{i}" for i in range(37)], "candidates": [["p0", "p1"]] * 40}
    )
    found = report(table, offered, pools={"pool": pool})["distinct_candidates"]
    assert found.value == pytest.approx(2 / 50)
    assert not found.ok
    assert "2 demos of a pool of 50, in 80 places" in found.meaning


def test_inert_probabilities_fail() -> None:
    """Lesson 7: about 1e-6 for every answer."""
    found = report(groups().assign(answer_prob=[[1e-6, 2e-6]] * 6))
    assert found["answer_prob_tiny"].value == 1.0
    assert not found["answer_prob_tiny"].ok
    assert not found["answer_prob_median"].ok


def test_pools_are_compared_by_content() -> None:
    assert pool_digest(["b", "a"]) == pool_digest(["a", "b"]) != pool_digest(["a", "c"])
    assert pool_digest(["a", "bc"]) != pool_digest(["ab", "c"])
    assert pool_identity({"x": ["a", "b"], "y": ["b", "a"]}).ok
    other = pool_identity({"x": ["a", "b"], "y": ["a"]})
    assert (other.value, other.ok) == (2.0, False)
    for bad in ([], ["a", "a"]):
        with pytest.raises(LeverlabError, match="unique"):
            pool_digest(bad)


def test_failures_are_listed_with_value_limit_and_reason() -> None:
    good = Finding("fine", 0.1, 0.5, "at_most", True, "never shown")
    bad = [
        Finding("flat", 0.99, 0.5, "at_most", False, "no signal"),
        Finding("room", math.nan, 0.1, "at_least", False, "nothing to gain"),
    ]
    raise_on_failures([good])
    with pytest.raises(LeverlabError) as error:
        raise_on_failures([good, *bad])
    assert str(error.value).splitlines()[1:] == [
        "- flat is 0.99, must be at most 0.5: no signal",
        "- room is nan, must be at least 0.1: nothing to gain",
    ]
    assert "2 of 3" in str(error.value)


def test_tables_that_cannot_be_judged_are_refused() -> None:
    with pytest.raises(LeverlabError, match=r"lacks the columns \['correct'\]"):
        report(groups().drop(columns="correct"))
    with pytest.raises(LeverlabError, match="groups has 0 rows"):
        report(groups().iloc[:0])
    with pytest.raises(LeverlabError, match="candidates has 3 rows and lacks"):
        report(offered=candidates().drop(columns="query_id"))
    with pytest.raises(LeverlabError, match="source 'random'"):
        report(groups().query("source == 'beam'"))
    with pytest.raises(LeverlabError, match="pool's ids"):
        report(pools={})
    uneven, unknown = groups(), groups()
    uneven.at[0, "correct"] = [1]
    unknown.at[0, "answer_prob"] = [math.nan, 0.1]
    with pytest.raises(LeverlabError, match="equally many"):
        report(uneven)
    with pytest.raises(LeverlabError, match="1 values that are not finite"):
        report(unknown)
