"""Answers of exported models against hand-worked figures."""

import pandas as pd
import pytest

from leverlab.errors import LeverlabError
from leverlab.evaluation.quantised import (
    TRANSFORMERS,
    accuracy_table,
    agreement,
    differences_table,
    metrics,
    to_answer,
)

QUESTIONS = ["a", "b", "c", "d"]


def rows(kind: str, method: str, shots: int, scores: list[float], texts: str = "") -> list[dict[str, object]]:
    return [
        {
            "kind": kind,
            "method": method,
            "shots": shots,
            "question_id": question,
            "prediction": texts[place] if texts else "x",
            "vqa_accuracy": score,
        }
        for place, (question, score) in enumerate(zip(QUESTIONS, scores, strict=True))
    ]


@pytest.fixture
def answers() -> pd.DataFrame:
    """One and two shots in transformers and two kinds; q4_0 loses question c at two."""
    table = []
    for kind, third in ((TRANSFORMERS, 1.0), ("f16", 1.0), ("q4_0", 0.0)):
        table += rows(kind, "zero_shot", 0, [0, 0, 0, 1])
        table += rows(kind, "random", 1, [0, 0, 1, 0]) + rows(kind, "random", 2, [0, 0, 1, 0])
        table += rows(kind, "selector", 1, [1, 0, 1, 0])
        table += rows(kind, "selector", 2, [1, 1, third, 0], "wx" + ("y" if third else "q") + "z")
    return pd.DataFrame(table)


def test_accuracy_is_the_mean_over_questions(answers: pd.DataFrame) -> None:
    table = accuracy_table(answers, resamples=200).set_index(["kind", "method", "shots"])
    assert table.loc[("f16", "selector", 2), "accuracy"] == 3 / 4
    assert table.loc[("q4_0", "selector", 2), "accuracy"] == 2 / 4
    assert table.loc[("q4_0", "zero_shot", 0), "accuracy"] == 1 / 4
    assert set(table["n"]) == {4}
    assert (table["ci_low"] <= table["accuracy"]).all()
    assert (table["accuracy"] <= table["ci_high"]).all()


def test_kinds_are_compared_by_question_and_never_transformers_with_others(answers: pd.DataFrame) -> None:
    table = differences_table(answers, resamples=200).set_index(["kind", "against", "shots"])
    assert table.loc[("q4_0", "transformers", 2), "difference"] == -1 / 4
    assert table.loc[("q4_0", "f16", 2), "difference"] == -1 / 4
    assert table.loc[("q4_0", "f16", 1), ["difference", "ci_low", "ci_high", "p_value"]].tolist() == [0, 0, 0, 1]
    assert table.loc[("q4_0", "random", 2), "difference"] == 2 / 4 - 1 / 4
    assert table.loc[("q4_0", "f16", 2), "ci_high"] == 0  # paired: no question is better than in f16
    assert {against for kind, against, _ in table.index if kind == TRANSFORMERS} == {"random"}
    assert ("f16", "f16", 2) not in table.index
    assert (table["p_holm"] >= table["p_value"]).all()


def test_agreement_counts_the_selectors_prompts_alone(answers: pd.DataFrame) -> None:
    assert agreement(answers) == {"f16": 1.0, "q4_0": 7 / 8}


def test_metrics_hold_the_largest_shot_count(answers: pd.DataFrame) -> None:
    found = metrics(accuracy_table(answers, 200), differences_table(answers, 200), agreement(answers))
    assert list(found) == [TRANSFORMERS, "f16", "q4_0"]
    assert {name: found["q4_0"][name] for name in ("shots_0", "shots_1", "shots_2", "agreement")} == {
        "shots_0": 0.25,
        "shots_1": 0.5,
        "shots_2": 0.5,
        "agreement": 0.875,
    }
    assert next(iter(found["q4_0"])) == "shots_0"
    assert found["q4_0"]["over_f16"]["difference"] == -0.25
    assert "over_f16" not in found["f16"]


def test_a_missing_kind_is_left_out(answers: pd.DataFrame) -> None:
    left = answers[answers["kind"] != "f16"]
    table = differences_table(left, resamples=200)
    assert set(table.loc[table["kind"] == "q4_0", "against"]) == {"transformers", "random"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: pd.concat([table, table.iloc[[-1]]]), "q4_0 has two answers of selector at 2 shots"),
        (lambda table: table.iloc[:-1], "q4_0 lacks answers of selector at 2 shots"),
    ],
)
def test_an_answer_too_many_or_too_few_is_told(answers: pd.DataFrame, change: object, message: str) -> None:
    with pytest.raises(LeverlabError, match=message):
        accuracy_table(change(answers))  # type: ignore[operator]


def test_the_deployed_selector_and_one_random_seed_are_answered_again() -> None:
    shown = [(method, seed, 1, "a") for method in ("grpo", "random", "sft") for seed in (3, 5)]
    table = pd.DataFrame([*shown, ("zero_shot", 0, 0, "a")], columns=["method", "seed", "shots", "question_id"])
    found = to_answer(table, "grpo", 5)
    expected = [("random", 3), ("selector", 5), ("zero_shot", 0)]
    assert list(zip(found["method"], found["seed"], strict=True)) == expected
