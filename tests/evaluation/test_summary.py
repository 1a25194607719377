"""Tables from an answers table small enough to work out by hand."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from leverlab.errors import LeverlabError
from leverlab.evaluation.statistics import MCNEMAR, SIGN_FLIP, holm, paired_difference
from leverlab.evaluation.summary import METHODS, check_answers, comparisons, metrics, shots_table

QUESTIONS = ["q1", "q2", "q3", "q4"]


def rows(method: str, seed: int, shots: int, scores: list[float], demos: list[list[str]] | None = None) -> pd.DataFrame:
    demos = demos or [[f"d{i}" for i in range(shots)]] * len(scores)
    return pd.DataFrame(
        {
            "method": method,
            "seed": seed,
            "shots": shots,
            "question_id": QUESTIONS[: len(scores)],
            "question_type": "t",
            "demos": demos,
            "prediction": "p",
            "vqa_accuracy": [float(s) for s in scores],
            "answer_prob": 0.5,
        }
    )


def answers() -> pd.DataFrame:
    """Two shot counts; grpo has two seeds. Rows stand in no helpful order."""
    four = [[f"d{i}", f"e{i}", "x", "y"] for i in range(4)]  # 10 distinct
    same = [["x", "y", "z", "w"]] * 4  # 4 distinct
    return pd.concat(
        [
            rows("oracle", 0, 4, [1, 1, 1, 1]),
            rows("oracle", 0, 1, [1, 1, 1, 0]),
            rows("grpo", 1, 4, [1, 0, 1, 0], same),
            rows("grpo", 0, 4, [1, 1, 1, 0], four),
            rows("grpo", 0, 1, [1, 1, 0, 0]),
            rows("grpo", 1, 1, [1, 1, 0, 0]),
            rows("sft", 0, 1, [1, 0, 0, 0]),
            rows("sft", 0, 4, [0, 1, 0, 0]),
            rows("image_sim", 0, 1, [1, 1, 1, 0]),
            rows("image_sim", 0, 4, [0, 0, 0, 0.3]),
            rows("mix", 0, 1, [0, 0, 0, 0]),
            rows("mix", 0, 4, [1, 1, 0, 0]),
            rows("zero_shot", 0, 0, [0, 0, 1, 0]),
        ],
        ignore_index=True,
    ).sample(frac=1, random_state=0)


def test_shots_table_by_hand() -> None:
    """grpo at 4 shots: seeds at 3/4 and 2/4, mean 5/8, std sqrt(2) / 8; 10 and 4 distinct demos, mean 7."""
    table = shots_table(answers(), resamples=200)
    assert table.columns.tolist() == [
        "method",
        "shots",
        "accuracy",
        "ci_low",
        "ci_high",
        "n",
        "seed_std",
        "distinct_demos",
    ]
    assert list(zip(table["method"], table["shots"], strict=True)) == [
        ("zero_shot", 0),
        ("image_sim", 1),
        ("image_sim", 4),
        ("mix", 1),
        ("mix", 4),
        ("sft", 1),
        ("sft", 4),
        ("grpo", 1),
        ("grpo", 4),
        ("oracle", 1),
        ("oracle", 4),
    ]
    by_key = table.set_index(["method", "shots"])
    grpo = by_key.loc[("grpo", 4)]
    assert grpo["accuracy"] == 0.625
    assert grpo["seed_std"] == pytest.approx(2**0.5 / 8)
    assert grpo["distinct_demos"] == 7.0
    assert grpo["ci_low"] < 0.625 < grpo["ci_high"]
    zero = by_key.loc[("zero_shot", 0)]
    assert (zero["accuracy"], zero["seed_std"], zero["distinct_demos"], zero["n"]) == (0.25, 0.0, 0.0, 4)
    assert by_key.loc[("image_sim", 4), "accuracy"] == pytest.approx(0.075)
    assert tuple(by_key.loc[("oracle", 4), ["ci_low", "ci_high"]]) == (1.0, 1.0)


def test_methods_stand_in_the_fixed_order() -> None:
    table = pd.concat([rows(m, 0, 0 if m == "zero_shot" else 2, [1, 0, 0, 1]) for m in sorted(METHODS)])
    assert shots_table(table, resamples=10)["method"].tolist() == list(METHODS)
    assert (METHODS[0], METHODS[-1]) == ("zero_shot", "oracle")


def test_comparisons_by_hand() -> None:
    table = comparisons(answers(), resamples=300)
    assert table["method_b"].drop_duplicates().tolist() == ["zero_shot", "image_sim", "mix", "sft", "oracle"]
    assert table["shots"].tolist() == [1, 4] * 5
    assert set(table["method_a"]) == {"grpo"}
    by_key = table.set_index(["method_b", "shots"])["difference"]
    # zero_shot stands at 0.25 whatever grpo's shots.
    assert by_key["zero_shot"].tolist() == pytest.approx([0.25, 0.375])
    assert by_key["sft"].tolist() == pytest.approx([0.25, 0.375])
    assert by_key["oracle"].tolist() == pytest.approx([-0.25, -0.375])
    assert by_key["image_sim"].tolist() == pytest.approx([-0.25, 0.55])
    assert set(table["test"]) == {SIGN_FLIP}
    assert table["p_holm"].tolist() == pytest.approx(holm(table["p_value"]).tolist())


def test_comparisons_pair_the_same_questions() -> None:
    """Rows in different orders: were they taken as they stand, b and c would not be those of the ids."""
    rng = np.random.default_rng(0)
    ids = [f"q{i:03d}" for i in range(120)]
    parts: list[pd.DataFrame] = []
    scores = {}
    for method in ("sft", "grpo"):
        scores[method] = (rng.random(120) < 0.5).astype(float)
        part = pd.DataFrame({"method": method, "seed": 0, "shots": 1, "question_id": ids})
        part["vqa_accuracy"] = scores[method]
        part["demos"] = [["d"]] * 120
        parts.append(part.sample(frac=1, random_state=len(parts)))
    (found,) = comparisons(pd.concat(parts), resamples=500).to_dict("records")
    expected = paired_difference(scores["grpo"], scores["sft"], resamples=500)
    assert found["p_value"] == expected.p_value
    assert found["test"] == MCNEMAR
    assert found["least_detectable_difference"] == expected.least_detectable_difference
    assert (found["ci_low"], found["ci_high"]) == (expected.ci_low, expected.ci_high)


@pytest.mark.parametrize(("seeds_of_sft", "width"), [((0, 1), 0), ((0, 2), 2)])
def test_seeds_are_paired_where_both_methods_have_the_same(seeds_of_sft: tuple[int, int], width: float) -> None:
    """One seed is right on all questions and one on none, in both methods: drawn in pairs, they never differ."""
    parts = []
    for method, seeds in {"grpo": (0, 1), "sft": seeds_of_sft}.items():
        for seed, score in zip(seeds, (1.0, 0.0), strict=True):
            part = pd.DataFrame(
                {"method": method, "seed": seed, "shots": 1, "question_id": [f"q{i}" for i in range(9)]}
            )
            parts.append(part.assign(vqa_accuracy=score, demos=[["d"]] * 9))
    (found,) = comparisons(pd.concat(parts), resamples=300).to_dict("records")
    assert found["ci_high"] - found["ci_low"] == width


def wide(lost: list[int]) -> pd.DataFrame:
    """grpo right on 100 questions; baseline i loses `lost[i]` of them."""
    names = ["random", "fixed", "image_sim", "text_sim", "mix", "type_sim"][: len(lost)]
    parts = []
    for name, wrong in zip([*names, "grpo"], [*lost, 0], strict=True):
        part = pd.DataFrame({"method": name, "seed": 0, "shots": 1, "question_id": [f"q{i:03d}" for i in range(100)]})
        part["vqa_accuracy"] = (np.arange(100) >= wrong).astype(float)
        part["demos"] = [["d"]] * 100
        parts.append(part)
    return pd.concat(parts)


def test_the_verdict_uses_the_corrected_p() -> None:
    """7 lost, none won: McNemar p = 2/2^7 = 0.0156, alone above. Beside five comparisons without a difference (p = 1),
    Holm makes it 6 x 0.0156 = 0.094. With 12 lost, 2/2^12 x 6 = 0.003."""
    assert comparisons(wide([7]), resamples=300)["verdict"].tolist() == ["A above B"]
    crowd = comparisons(wide([7, 0, 0, 0, 0, 0]), resamples=300)
    assert crowd["p_value"].iloc[0] == pytest.approx(2 / 128)
    assert crowd["p_holm"].iloc[0] == pytest.approx(12 / 128)
    assert crowd["verdict"].tolist() == ["no difference shown"] * 6
    assert comparisons(wide([12, 0, 0, 0, 0, 0]), resamples=300)["verdict"].iloc[0] == "A above B"


def test_comparisons_with_chosen_methods() -> None:
    table = comparisons(answers(), method="sft", against=["mix"], resamples=50)
    assert table["method_b"].tolist() == ["mix", "mix"]
    assert table["difference"].tolist() == pytest.approx([0.25, -0.25])
    for method, against in (("rce", None), ("grpo", ["rce"]), ("grpo", ["grpo"]), ("zero_shot", ["sft"])):
        with pytest.raises(LeverlabError, match="cannot compare"):
            comparisons(answers(), method, against)


def test_metrics_by_hand() -> None:
    """grpo at 4 shots 0.625; sft 0.25; retrieval: image_sim 0.075, mix 0.5. No sft_control, so no lift over it."""
    found = metrics(answers())
    assert found["zero_shot"] == {"shots_0": 0.25}
    assert found["grpo"] == {"shots_1": 0.5, "shots_4": 0.625}
    assert found["lift"] == {"shots": 4, "over_sft": 0.375, "over_best_retrieval": 0.125}
    thirds = pd.concat([rows("grpo", 0, 2, [1, 0, 0, 1 / 3]), rows("sft_control", 0, 2, [0, 0, 0, 0])])
    assert metrics(thirds)["lift"] == {"shots": 2, "over_sft_control": 0.333333}
    assert "over_sft" not in metrics(answers().query("method != 'grpo'"))["lift"]


def shown(table: pd.DataFrame, method: str, demos: list[str]) -> list[list[str]]:
    return [demos if row["method"] == method else row["demos"] for _, row in table.iterrows()]


def test_a_selector_may_show_fewer_demos_than_shots() -> None:
    table = answers()
    check_answers(table.assign(demos=shown(table, "grpo", ["a"])))


def damaged(change: Any) -> pd.DataFrame:
    table = answers().reset_index(drop=True)
    return table.drop(index=table.query(change).index) if isinstance(change, str) else change(table)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("method == 'sft' and shots == 4 and question_id == 'q3'", r"'sft' seed 0 at 4 shots lacks 1 of 4 \(q3\)"),
        ("method == 'grpo' and seed == 1 and shots == 4", r"'grpo' seed 1 has \[1\] shots, expected \[1, 4\]"),
        ("method == 'mix' and shots == 1", r"'mix' seed 0 has \[4\] shots"),
        (
            lambda t: pd.concat([t, t[(t["method"] == "mix") & (t["shots"] == 1)].iloc[:1]]),
            r"'mix' seed 0 at 1 shots has 1 more than once",
        ),
        (lambda t: t.assign(method=t["method"].replace("mix", "mixx")), "unknown methods mixx"),
        (lambda t: t.assign(vqa_accuracy=float("nan")), "vqa_accuracy = nan"),
        (lambda t: t.assign(vqa_accuracy=1.5), "vqa_accuracy = 1.5"),
        (lambda t: t.assign(demos=[["a"]] * len(t)), "as many demos as shots"),
        (lambda t: t.assign(demos=[["a"][:k] for k in t["shots"]]), r"has demos = \[.a.\] .*as many demos as shots"),
        (lambda t: t.assign(demos=shown(t, "grpo", [])), "grpo.*from 1 on to as many for a selector"),
        (lambda t: t.assign(demos=shown(t, "sft", ["a"] * 5)), "sft.*from 1 on to as many for a selector"),
        (lambda t: t.assign(demos=None), "demos = None"),
        (lambda t: t.drop(columns="demos"), r"lack the columns \['demos'\]"),
        (lambda t: t.iloc[:0], "0 rows"),
        (lambda t: pd.concat([t, rows("text_sim", 0, 0, [1, 1, 1, 1])]), "zero_shot has 0 only"),
    ],
)
def test_incomplete_answers_are_refused_by_name(change: Any, message: str) -> None:
    check_answers(answers())
    with pytest.raises(LeverlabError, match=message):
        check_answers(damaged(change))
