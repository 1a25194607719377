"""Tables and words, by hand."""

import math
from pathlib import Path

import pandas as pd
import pytest

from leverlab.errors import LeverlabError
from leverlab.evaluation.gates import Gate
from leverlab.report.tables import (
    accuracy_text,
    checkpoints_text,
    comparison_metrics,
    comparisons_text,
    gates_text,
    markdown,
    question_types,
    question_types_text,
    with_seeds,
    write_csv,
)
from leverlab.report.words import number, p_value, percent, percent_interval, points, points_interval, verdict_text

SHOTS = pd.DataFrame(
    [
        ("zero_shot", 0, 0.0125, 0.0, 0.02, 80, 0.0, 0.0),
        ("grpo", 1, 0.5, 0.4, 0.6, 80, 0.02, 70.4),
        ("grpo", 4, 0.8163, 0.79, 0.841, 80, 0.0123, 1900.5),
    ],
    columns=["method", "shots", "accuracy", "ci_low", "ci_high", "n", "seed_std", "distinct_demos"],
)
ANSWERS = pd.DataFrame(
    [
        ("zero_shot", 0, 0, "q1", "a", 0.0),
        ("zero_shot", 0, 0, "q2", "b", 1.0),
        ("grpo", 0, 4, "q1", "a", 1.0),
        ("grpo", 0, 4, "q2", "b", 0.0),
        ("grpo", 1, 4, "q1", "a", 1.0),
        ("grpo", 1, 4, "q2", "b", 0.3),
        ("grpo", 1, 1, "q1", "a", 0.0),
    ],
    columns=["method", "seed", "shots", "question_id", "question_type", "vqa_accuracy"],
)
COMPARISON = {
    "method_a": "grpo",
    "method_b": "sft",
    "shots": 4,
    "difference": 0.1667,
    "ci_low": 0.139,
    "ci_high": 0.1946,
    "p_value": 0.0002,
    "p_holm": 0.0088,
    "least_detectable_difference": 0.029,
    "verdict": "A above B",
    "test": "McNemar exact",
}


def test_numbers_are_written_for_people() -> None:
    assert (percent(0.8163), percent(1.0), percent(math.nan), percent(-1e-9)) == ("81.6", "100.0", "–", "0.0")
    assert (points(0.004), points(-0.1234), points(-1e-9), points(math.nan)) == ("+0.4", "−12.3", "0.0", "–")
    assert percent_interval(0.79, 0.841) == "[79.0, 84.1]"
    assert points_interval(-0.02, 0.029) == "[−2.0, +2.9]"
    assert (p_value(0.00099), p_value(0.001), p_value(1.0)) == ("< 0.001", "0.001", "1.000")
    assert [number(x) for x in (True, False, None, math.nan, 1234567, 0.07123456, 6.1e-5, "f16", -3)] == [
        "yes",
        "no",
        "–",
        "–",
        "1,234,567",
        "0.07123",
        "6.1e−05",
        "f16",
        "−3",
    ]


def test_verdicts_name_the_methods() -> None:
    assert verdict_text("A above B", "grpo", "sft") == "GRPO above SFT"
    assert verdict_text("A below B", "grpo", "oracle") == "GRPO below Greedy oracle"
    assert verdict_text("no difference shown", "grpo", "sft") == "no difference shown"


def test_accuracy_by_hand() -> None:
    table = accuracy_text(with_seeds(SHOTS, ANSWERS))
    assert table.to_dict("records") == [
        {
            "method": "Zero-shot",
            "0 shots": "1.2 [0.0, 2.0]",
            "1 shot": "",
            "4 shots": "",
            "seeds": "1",
            "std over seeds": "–",
            "distinct demos": "0",
        },
        {
            "method": "GRPO",
            "0 shots": "",
            "1 shot": "50.0 [40.0, 60.0]",
            "4 shots": "81.6 [79.0, 84.1]",
            "seeds": "2",
            "std over seeds": "1.2",
            "distinct demos": "1,900",
        },
    ]


def test_tables_of_other_methods_than_the_answers_are_refused() -> None:
    with pytest.raises(LeverlabError, match=r"\['grpo', 'zero_shot'\], the answers \['grpo'\]"):
        with_seeds(SHOTS, ANSWERS[ANSWERS["method"] == "grpo"])


def test_comparisons_by_hand() -> None:
    table = pd.DataFrame([COMPARISON])
    (row,) = comparisons_text(table).to_dict("records")
    assert list(row.values()) == [
        "GRPO",
        "SFT",
        "4",
        "+16.7",
        "[+13.9, +19.5]",
        "< 0.001",
        "0.009",
        "2.9",
        "GRPO above SFT",
        "McNemar exact",
    ]
    assert comparisons_text(table.iloc[:0]).columns.tolist() == list(row)
    assert comparison_metrics(table) == {
        "sft": {
            "shots_4": {
                "difference": 0.1667,
                "ci_low": 0.139,
                "ci_high": 0.1946,
                "p_holm": 0.0088,
                "least_detectable_difference": 0.029,
            }
        }
    }


def test_question_types_by_hand() -> None:
    """Type b at 4 shots: grpo 0 and .3 over two seeds, mean .15. The row at 1 shot does not count."""
    types = question_types(ANSWERS, 4)
    assert types.values.tolist() == [
        ["zero_shot", "a", 0.0, 1],
        ["zero_shot", "b", 1.0, 1],
        ["grpo", "a", 1.0, 1],
        ["grpo", "b", 0.15, 1],
    ]
    assert question_types_text(types).values.tolist() == [["Zero-shot", "0.0", "100.0"], ["GRPO", "100.0", "15.0"]]
    assert question_types_text(types).columns.tolist() == ["method", "a (n = 1)", "b (n = 1)"]


def test_gates_and_checkpoints_by_hand() -> None:
    gates = [Gate("g", "a.b", 0.12, "at_least", 0.1, False), Gate("h", "c", 5, "at_most", math.nan, True)]
    assert gates_text(gates, ["i"]).values.tolist() == [
        ["g", "a.b", "≥ 0.12", "0.1", "FAIL"],
        ["h", "c", "≤ 5", "–", "pass"],
        ["i", "", "", "", "off"],
    ]
    checkpoints = pd.DataFrame({"method": ["sft"], "seed": [3], "epoch": [12], "val_accuracy": [0.635]})
    checkpoints = checkpoints.assign(val_accuracy_1=0.5, val_loss=1.36512, kl=math.nan, chosen=True)
    assert checkpoints_text(checkpoints).to_dict("records") == [
        {
            "method": "SFT",
            "seed": "3",
            "epoch": "12",
            "val accuracy": "63.5",
            "1 shot": "50.0",
            "val loss": "1.365",
            "KL": "–",
            "chosen": "chosen",
        }
    ]


def test_markdown_by_hand() -> None:
    table = pd.DataFrame({"name": ["a|b", "c\nd"], "value": ["1", "22"], "note": ["x", "y"]})
    assert markdown(table, left=["note"]) == (
        "| name | value | note |\n| :--- | ----: | :--- |\n| a\\|b |     1 | x    |\n| c d  |    22 | y    |\n"
    )
    assert markdown(table.iloc[:0]) == "| name | value | note |\n| :--- | ----: | ---: |\n"


def test_csv_has_six_digits(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", pd.DataFrame({"a": ["x"], "b": [1 / 3], "c": [2]}))
    assert (tmp_path / "t.csv").read_bytes() == b"a,b,c\nx,0.333333,2\n"
