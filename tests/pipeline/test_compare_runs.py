"""Runs compared: numbers derived by hand on small tables, refusals, and what is printed."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from leverlab.errors import LeverlabError
from leverlab.pipeline.answers_of import Run
from leverlab.pipeline.compare_runs import Comparison, compare
from leverlab.pipeline.compare_runs_report import as_dict, sentences, tables, to_html, to_markdown

Scores = Mapping[int, Mapping[int, Any]]  # shots -> seed -> a score per question
SIX = {1: {0: [1, 1, 1, 1, 1, 1, 0]}}
NONE = {1: {0: [0, 0, 0, 0, 0, 0, 0]}}
TEN, ZERO = [1.0] * 10, [0.0] * 10


def run(
    name: str,
    scores: Scores,
    params: Mapping[str, Any] | None = None,
    demos: Mapping[int, Sequence[Sequence[str]]] | None = None,
    method: str = "grpo",
) -> Run:
    """A run; `demos` by seed, a list per question, else the same everywhere."""
    rows = [
        {
            "method": method,
            "seed": seed,
            "shots": shots,
            "question_id": f"q{place:02}",
            "question_type": "digit",
            "demos": list(demos[seed][place]) if demos else [f"d{i}" for i in range(shots)],
            "prediction": "x",
            "vqa_accuracy": float(score),
            "answer_prob": 0.5,
        }
        for shots, seeds in scores.items()
        for seed, values in seeds.items()
        for place, score in enumerate(values)
    ]
    table = pd.DataFrame(rows).sample(frac=1, random_state=0)  # the order of rows means nothing
    return Run(name, f"{name:0>40}", params or {}, table, "same questions")


def only(comparison: Comparison) -> Any:
    """The one row of the pairs."""
    (row,) = comparison.pairs.to_dict("records")
    return row


def test_accuracy_by_run_and_shots() -> None:
    """a: (3 + 2) of 8, seeds .75 and .5, whose standard deviation is .25 / sqrt(2); b: one seed has no spread."""
    a = run("a", {1: {0: [1, 1, 1, 0], 1: [1, 1, 0, 0]}, 2: {0: [1, 1, 1, 1], 1: [1, 1, 1, 1]}})
    b = run("b", {1: {0: [0, 0, 1, 0]}, 2: {0: [0, 0, 0, 0]}})
    table = compare([a, b]).accuracy.set_index(["shots", "run"])
    assert list(table.index) == [(1, "a"), (1, "b"), (2, "a"), (2, "b")]
    assert table["accuracy"].tolist() == [0.625, 0.25, 1, 0]
    assert table["seeds"].tolist() == [2, 1, 2, 1]
    assert table.loc[(1, "a"), "seed_std"] == pytest.approx(0.25 / math.sqrt(2))
    assert math.isnan(table.loc[(1, "b"), "seed_std"])
    assert tuple(table.loc[(2, "a"), ["ci_low", "ci_high"]]) == (1, 1)
    low, high = table.loc[(1, "a"), ["ci_low", "ci_high"]]
    assert 0 <= low < 0.625 < high <= 1


def test_one_seed_each_gives_mcnemar_everywhere() -> None:
    """6 to 0 discordant questions of 7: 2 / 2^6. The mean of six 1s and a 0 is 6/7."""
    row = only(compare([run("a", SIX), run("b", NONE)]))
    assert (row["run_a"], row["run_b"], row["shots"], row["b"], row["c"]) == ("a", "b", 1, 6, 0)
    assert row["difference"] == pytest.approx(6 / 7)
    assert row["test"] == "McNemar exact"
    assert row["p_value"] == row["p_holm"] == row["mcnemar_p"] == row["mcnemar_holm"] == pytest.approx(2 / 64)
    assert row["verdict"] == "A above B"
    # d = 1 six times and 0 once: variance (6/7 - 36/49) * 7/6 = 1/7; 2.8016 * sqrt(1/7 / 7) = 2.8016 / 7
    assert row["least_detectable_difference"] == pytest.approx(2.801585 / 7, abs=1e-6)


def test_mcnemar_is_made_for_each_seed_in_common() -> None:
    """Seed 0: 6 to 0, p = 1/32; seed 1: 1 to 0, p = 1; seed 2 is of a alone. Smallest of two: 2/32.

    A pooled table would have 7 to 0. The verdict's test is on the means over seeds: 3 + 3 + 1 of 3 x 7.
    """
    nothing = [0] * 7
    a = run("a", {1: {0: SIX[1][0], 1: [1, 0, 0, 0, 0, 0, 0], 2: nothing}})
    b = run("b", {1: {0: nothing, 1: nothing}})
    found = compare([a, b])
    row = only(found)
    assert found.seeds[["seed", "b", "c", "mcnemar_p"]].to_numpy().tolist() == [[0, 6, 0, 1 / 32], [1, 1, 0, 1]]
    assert (row["matched_seeds"], row["mcnemar_p"]) == (2, 2 / 32)
    assert row["test"] == "paired sign-flip permutation"
    assert row["difference"] == pytest.approx(7 / 21)
    assert row["p_value"] == pytest.approx(2 / 64)  # six questions differ, all one way


def test_mcnemar_p_is_at_most_1() -> None:
    nothing = {seed: [0, 0] for seed in range(3)}
    assert only(compare([run("a", {1: nothing}), run("b", {1: nothing})]))["mcnemar_p"] == 1


def test_scores_between_0_and_1_have_no_mcnemar() -> None:
    """Neither does Holm's family of McNemar tests count them: at 2 shots one test is left, so p stays 1/32."""
    a = run("a", {1: {0: [0.3, 0, 0, 0, 0, 0, 0]}, 2: SIX[1]})
    b = run("b", {1: NONE[1], 2: NONE[1]})
    pairs = compare([a, b]).pairs
    assert math.isnan(pairs["mcnemar_p"][0])
    assert math.isnan(pairs["mcnemar_holm"][0])
    assert pairs["mcnemar_holm"][1] == 1 / 32
    assert pairs["p_holm"].tolist() == [1, 2 / 32]


def test_holm_is_over_all_pairs_and_shots() -> None:
    """Three runs at two shot counts: six rows. a - b and a - c are 1/32 at 1 shot and 1 elsewhere.

    Sorted: 1/32 x 6, then max(that, 1/32 x 5); the others 1.
    """
    first = run("a", {**SIX, 2: NONE[1]})
    others = [run(name, {**NONE, 2: NONE[1]}) for name in "bc"]
    pairs = compare([first, *others]).pairs
    assert list(zip(pairs["run_a"], pairs["run_b"], pairs["shots"], strict=True)) == [
        (a, b, k) for a, b in ("ab", "ac", "bc") for k in (1, 2)
    ]
    for column in ("p_holm", "mcnemar_holm"):
        assert pairs[column].tolist() == pytest.approx([6 / 32, 1, 6 / 32, 1, 1, 1])
    assert set(pairs["verdict"]) == {"no difference shown"}
    assert pairs["ci_low"][0] > 0  # the interval alone would have said otherwise


def test_the_order_of_runs_changes_the_sign_alone() -> None:
    """Runs with unlike numbers of seeds, whose scores are so fine that other draws would give another interval."""
    rng = np.random.default_rng(0)
    a = run("a", {1: {seed: rng.uniform(0.2, 1, 30) for seed in range(3)}})
    b = run("b", {1: {seed: rng.uniform(0, 0.8, 30) for seed in range(2)}})
    one, other = only(compare([a, b])), only(compare([b, a]))
    assert one["ci_low"] < one["difference"] < one["ci_high"]
    assert (other["difference"], other["ci_low"], other["ci_high"]) == (
        -one["difference"],
        -one["ci_high"],
        -one["ci_low"],
    )
    assert (other["b"], other["c"]) == (one["c"], one["b"])
    assert one["b"] > one["c"]
    for column in ("p_value", "p_holm", "least_detectable_difference", "same_list", "overlap"):
        assert one[column] == other[column]
    third = compare([a, run("z", {1: {0: [0] * 30}}), b]).pairs
    row = third[(third["run_a"] == "a") & (third["run_b"] == "b")].iloc[0]
    assert (row["difference"], row["ci_low"], row["p_value"]) == (one["difference"], one["ci_low"], one["p_value"])


@pytest.mark.parametrize(("other", "interval"), [((0, 1), (0, 0)), ((0, 2), (-1, 1))])
def test_runs_with_the_same_seeds_are_compared_seed_by_seed(
    other: tuple[int, int], interval: tuple[float, float]
) -> None:
    """Both runs are right on all questions with one seed and on none with the other."""
    a = run("a", {1: {0: TEN, 1: ZERO}})
    b = run("b", {1: dict(zip(other, (TEN, ZERO), strict=True))})
    row = only(compare([a, b], resamples=300))
    assert (row["ci_low"], row["ci_high"]) == interval


def test_agreement_of_picks_in_the_seeds_in_common() -> None:
    """Seed 1 alone is in both: same; other order (overlap 1); one of three; none of four. Other seeds agree in all."""
    xy = [["x", "y"]] * 4
    zeros = [0, 0, 0, 0]
    a = run("a", {2: {0: zeros, 1: zeros}}, demos={0: xy, 1: xy})
    b = run("b", {2: {1: zeros, 2: zeros}}, demos={1: [["x", "y"], ["y", "x"], ["x", "z"], ["u", "v"]], 2: xy})
    found = compare([a, b])
    assert found.seeds["seed"].tolist() == [1]
    assert only(found)["same_list"] == 0.25
    assert only(found)["overlap"] == pytest.approx((1 + 1 + 1 / 3 + 0) / 4)
    assert "| a | b | 2 | 25.0 | 58.3 | 1 |" in " ".join(to_markdown(found).split())


def test_agreement_is_the_mean_over_seeds() -> None:
    zeros = {2: {0: [0], 1: [0]}}
    a = run("a", zeros, demos={0: [["x", "y"]], 1: [["x", "y"]]})
    b = run("b", zeros, demos={0: [["x", "y"]], 1: [["u", "y"]]})
    row = only(compare([a, b]))
    assert (row["same_list"], row["overlap"], row["matched_seeds"]) == (0.5, pytest.approx((1 + 1 / 3) / 2), 2)


def test_a_seed_with_scores_between_has_no_mcnemar_and_neither_has_the_pair() -> None:
    a = run("a", {1: {0: SIX[1][0], 1: [0.3, 0, 0, 0, 0, 0, 0]}})
    b = run("b", {1: {0: [0] * 7, 1: [0] * 7}})
    found = compare([a, b])
    assert found.seeds["mcnemar_p"].isna().tolist() == [False, True]
    assert math.isnan(only(found)["mcnemar_p"])


def test_no_seed_in_common() -> None:
    """Differences need none; McNemar and agreement do."""
    found = compare([run("a", {1: {0: TEN}}), run("b", {1: {7: ZERO}})])
    row = only(found)
    assert found.seeds.empty
    assert (row["difference"], row["matched_seeds"], row["verdict"]) == (1, 0, "A above B")
    assert all(math.isnan(row[name]) for name in ("mcnemar_p", "mcnemar_holm", "same_list", "overlap"))
    json.dumps(as_dict(found), allow_nan=False)
    assert "nan" not in to_markdown(found)
    assert 'class="zero" x1="4.00"' in to_html(found)  # the axis of the differences holds 0, though none is near it


def test_without_demos_there_are_no_picks() -> None:
    found = compare([run(name, {0: {0: TEN}}, method="zero_shot") for name in "ab"], "zero_shot")
    assert math.isnan(only(found)["same_list"])
    assert math.isnan(only(found)["overlap"])
    assert only(found)["mcnemar_p"] == 1


def test_pairs_stand_at_the_shot_counts_that_both_have() -> None:
    a = run("a", {1: {0: TEN}, 2: {0: TEN}, 3: {0: TEN}})
    b = run("b", {2: {0: ZERO}, 3: {0: ZERO}, 4: {0: ZERO}})
    found = compare([a, b])
    assert found.pairs["shots"].tolist() == [2, 3]
    assert sorted(set(found.accuracy["shots"])) == [1, 2, 3, 4]
    assert "at 3 shots" in sentences(found)[0]


def test_params_that_differ() -> None:
    """True is not 1; a key that a run lacks differs; equal lists and mappings do not."""
    a = run("a", SIX, {"grpo": {"lr": 5e-5, "clip": None, "on": True}, "seeds": [0, 1], "x": {}, "old": 1})
    b = run("b", SIX, {"grpo": {"lr": 5e-5, "clip": 0.2, "on": 1}, "seeds": [0, 1], "x": {}})
    found = compare([a, b])
    assert found.params == {"grpo.clip": {"a": None, "b": 0.2}, "grpo.on": {"a": True, "b": 1}, "old": {"a": 1}}
    assert compare([a, replace(b, params=a.params)]).params == {}


@pytest.mark.parametrize(
    ("a", "b", "sentence"),
    [
        (  # both rows 2 / 2^10, Holm x 2
            {1: {0: TEN}, 2: {0: TEN}},
            {1: {0: ZERO}, 2: {0: ZERO}},
            "a is 100.0 points above b at 2 shots (95 % interval +100.0 to +100.0, Holm p 0.004).",
        ),
        (
            {1: {0: ZERO}},
            {1: {0: TEN}},
            "a is 100.0 points below b at 1 shot (95 % interval −100.0 to −100.0, Holm p 0.002).",
        ),
        (
            {1: {0: TEN}},
            {1: {0: TEN}},
            "No difference shown between a and b at 1 shot (difference 0.0 points, 95 % interval 0.0 to 0.0, "
            "Holm p 1.000; the difference is the same on every question).",
        ),
        (  # d = 1, -1 and 98 times 0: sd = sqrt(2 / 99), 280.16 sd / 10 = 3.98 points
            {1: {0: [1, 0] + [1] * 98}},
            {1: {0: [0, 1] + [1] * 98}},
            "No difference shown between a and b at 1 shot (difference 0.0 points, 95 % interval −3.0 to +3.0, "
            "Holm p 1.000; a difference of 4.0 points would have been found with 80 % power).",
        ),
    ],
)
def test_the_verdict_sentence(a: Scores, b: Scores, sentence: str) -> None:
    """The last interval: of 100 draws each of the two questions is drawn Poisson(1) times; the 2.5 % quantile of the
    difference of two such counts is -3 (P(difference <= -4) = .008, P(<= -3) = .037)."""
    assert sentences(compare([run("a", a), run("b", b)])) == [sentence]


def test_an_interval_without_0_is_not_enough() -> None:
    """Six of six questions: the interval has no width, but p = 1/32 is 1/16 over two rows."""
    ones, zeros = {k: {0: [1] * 6} for k in (1, 2)}, {k: {0: [0] * 6} for k in (1, 2)}
    (sentence,) = sentences(compare([run("a", ones), run("b", zeros)]))
    assert sentence.startswith("No difference shown between a and b at 2 shots (difference +100.0 points")
    assert "Holm p 0.062" in sentence or "Holm p 0.063" in sentence


def test_each_pair_has_a_sentence() -> None:
    found = compare([run("c", {1: {0: TEN}}), run("a", {1: {0: ZERO}}), run("b", {1: {0: TEN}})])
    starts = [sentence.split(" at ")[0] for sentence in sentences(found)]
    assert starts == [
        "c is 100.0 points above a",
        "No difference shown between c and b",
        "a is 100.0 points below b",
    ]


def test_many_rows_draw_more_signs() -> None:
    """With 2 resamples no p-value is below 2/3; 40 a row are drawn all the same, so that p < .05 can be reached.

    Two seeds against one, so that the test is the permutation; all of 20 questions differ.
    """
    a, b = run("a", {1: {0: [1] * 20, 1: [1] * 20}}), run("b", {1: {0: [0] * 20}})
    assert only(compare([a, b], resamples=2))["verdict"] == "A above B"


@pytest.mark.parametrize(
    ("runs", "method", "message"),
    [
        ([run("a", SIX)], "grpo", "at least two runs"),
        ([run("a", SIX), run("a", SIX)], "grpo", "'a' and 'a' are the same run"),
        ([run("a", SIX), replace(run("a", SIX), revision="1")], "grpo", "'a' and 'a' are the same run"),
        ([run("a", SIX), replace(run("b", SIX), revision=f"{'a':0>40}")], "grpo", r"same run \(commit 0000000\)"),
        ([run("a", SIX), run("b", SIX)], "grop", "'a' has no answers of the method 'grop'; did you mean 'grpo'?"),
        ([run("a", SIX), run("b", {2: SIX[1]})], "grpo", r"'a' has answers at \[1\] shots and 'b' at \[2\]"),
        (
            [run("a", SIX), run("b", {1: {0: [0, 0, 0, 0, 0]}})],
            "grpo",
            r"2 of the 7 of 'a' are not in 'b', and 0 of the 5 of 'b' are not in 'a' \(q05, q06\)",
        ),
        ([run("a", SIX), replace(run("b", SIX), test_set="others")], "grpo", "other test questions behind them"),
        ([run("a", SIX), run("b", {1: {0: [0] * 7, 1: [0] * 6}})], "grpo", "run 'b': answers must cover the same"),
        ([run("a", SIX), run("b", {1: {0: [2] * 7}})], "grpo", "run 'b': .*vqa_accuracy = 2"),
    ],
)
def test_what_cannot_be_compared(runs: list[Run], method: str, message: str) -> None:
    with pytest.raises(LeverlabError, match=message):
        compare(runs, method)


def test_only_the_method_is_looked_at() -> None:
    """Answers of another method may be unsound, or at other questions."""
    a, b = run("a", {1: {0: TEN}}), run("b", {1: {0: ZERO}})
    other = run("x", {1: {0: [5]}}, method="sft").answers
    assert only(compare([replace(a, answers=pd.concat([a.answers, other])), b]))["difference"] == 1


def test_warnings_of_all_runs_and_of_unread_questions() -> None:
    a = replace(run("a", SIX), warnings=("first", "second"))
    b = replace(run("b", SIX), test_set=None, warnings=("third",))
    *told, unread = compare([a, b]).warnings
    assert told == ["first", "second", "third"]
    assert "the test questions of 'b' cannot be read" in unread


@pytest.fixture(scope="module")
def shown() -> Comparison:
    """Two runs with a name and a warning that no format may take for its own signs."""
    a = replace(run("[a]<i>", {1: {0: TEN}, 2: {0: TEN}}, {"x": [True]}), warnings=("say <b>",))
    return compare([a, run("b|b", {1: {0: ZERO}, 2: {0: TEN}}, {"x": [None]})])


def test_plain_data(shown: Comparison) -> None:
    data = json.loads(json.dumps(as_dict(shown), allow_nan=False))
    assert (data["method"], data["questions"], data["revisions"]["b|b"]) == ("grpo", 10, f"{'b|b':0>40}")
    assert data["params"] == {"x": {"[a]<i>": [True], "b|b": [None]}}
    assert [row["p_holm"] for row in data["pairs"]] == [4 / 1024, 1]
    assert [row["seed_std"] for row in data["accuracy"]] == [None] * 4
    assert data["seeds"][0] | {"same_list": 1.0, "overlap": 1.0, "b": 10, "mcnemar_p": 2 / 1024} == data["seeds"][0]
    assert (data["verdicts"], data["warnings"]) == (sentences(shown), ["say <b>"])


def test_markdown(shown: Comparison) -> None:
    lines = [" ".join(line.split()) for line in to_markdown(shown).splitlines()]
    assert lines[0] == "# GRPO: [a]\\<i> (0000000) and b\\|b (0000000)"
    for line in (
        "| 1 | b\\|b | 0.0 | [0.0, 0.0] | 1 | – |",
        "| [a]\\<i> | b\\|b | 1 | +100.0 | [+100.0, +100.0] | 0.004 | 0.004 | – | above |",
        "| [a]\\<i> | b\\|b | 2 | 0.0 | [0.0, 0.0] | 1.000 | 1.000 | – | no difference shown |",
        "| [a]\\<i> | b\\|b | 2 | 100.0 | 100.0 | 1 |",
        "| x | [true] | [null] |",
        "- **Warning:** say \\<b>",
    ):
        assert line in lines


def test_tables_on_a_terminal(shown: Comparison) -> None:
    console = Console(width=140, color_system=None)
    with console.capture() as capture:
        for table in tables(shown):
            console.print(table)
    text = capture.get()
    titles = ("Accuracy", "Paired differences", "Agreement of picks", "Params that differ")
    assert [line.strip() for line in text.splitlines() if line.startswith(titles)] == list(titles)
    assert "[a]<i>" in text
    assert "[true]" in text


def test_html_needs_nothing_else(shown: Comparison) -> None:
    page = to_html(shown)
    assert not any(outside in page for outside in ("http", "<script", "src=", "url(", "@import", "<i>", "<b> "))
    assert "[a]&lt;i&gt; is" not in page  # the largest shot count is 2, where nothing differs
    assert "No difference shown between [a]&lt;i&gt; and b|b at 2 shots" in page
    assert "<b>Warning.</b> say &lt;b&gt;" in page
    assert "prefers-color-scheme: dark" in page
    # accuracies 1, 0, 1, 1 on an axis from 0 to 1; differences 1, shown, and 0, on one that holds 0
    circles = [part.split('"')[1::2][:2] for part in page.split("<circle ")[1:]]
    assert circles == [
        ["shown", "96.00"],
        ["shown", "4.00"],
        ["shown", "96.00"],
        ["shown", "96.00"],
        ["shown", "96.00"],
        ["open", "4.00"],
    ]
    assert page.count('class="zero" x1="4.00"') == 2


def test_no_parameter_differs() -> None:
    found = compare([run("a", SIX), run("b", SIX)])
    for text in (to_markdown(found), to_html(found)):
        assert "No parameter differs" in text
        assert "Params that differ" not in text
    assert len(tables(found)) == 3


def test_every_pair_of_four_runs() -> None:
    runs = [run(name, {1: {0: TEN}}) for name in "abcd"]
    found = compare(runs)
    assert list(zip(found.pairs["run_a"], found.pairs["run_b"], strict=True)) == list(itertools.combinations("abcd", 2))
    assert "GRPO: a (0000000), b (0000000), c (0000000) and d (0000000)" in to_html(found)
