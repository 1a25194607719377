"""Comparisons, metrics and the final report from the dialogues whose outcomes head test_summary.py."""

import json
import math
from typing import Any

import pandas as pd
import pytest

from leverlab.config.report import GateParams
from leverlab.errors import LeverlabError
from leverlab.evaluation.gates import evaluate_gates
from leverlab.evaluation.statistics import MCNEMAR, NO_DIFFERENCE, SIGN_FLIP, holm, paired_difference
from leverlab.lm.acceptance import comparisons, dpo_win_rate, metrics, rc1_final_report
from leverlab.lm.summary import figures, outcomes
from tests.lm.evaluated import ASK, DIRECT, OTHER_FIRST_WRONG, QUESTIONS, record, records, scripts

PAIR = [("grpo", "sft")]


def frame(**changes: list[str]) -> pd.DataFrame:
    """The outcomes; `changes` of what sft of seed 1 says, greedy."""
    said = scripts()
    said["sft", 1, 0.0] |= changes
    return outcomes(records(said), QUESTIONS)


def of_seeds(*seeds: int) -> pd.DataFrame:
    found = frame()
    return found[found["seed"].isin(seeds)]


def many(of_a: float, questions: int = 40) -> pd.DataFrame:
    """Questions that grpo gets right up to the share `of_a`, sft never; one half needs an ask; two seeds."""
    rows = []
    for seed in (0, 1):
        for policy, share in (("grpo", of_a), ("sft", 0.0)):
            for n in range(questions):
                right = n // 2 < share * questions / 2
                needs = n % 2 == 0
                rows.append((seed, policy, f"q{n:02d}", needs, right, not right and not needs, 2))
    columns = ["seed", "policy", "question", "needs_ask", "success", "asked", "turns"]
    rest: dict[str, Any] = {"split": "test", "temperature": 0.0, "family": "f", "kind": "k", "spam": False}
    rest |= {"asked_needed": False, "asks": 0, "redundant_asks": 0, "parses": True, "thought": True}
    rest |= {"grounded_thoughts": True}
    return pd.DataFrame(rows, columns=columns).assign(**rest)


def test_comparisons_of_one_seed_by_hand() -> None:
    """Seed 0. need_success: q1 alone differs, so p = 1. over_clarification: both lower, p = 2 / 4. turns: 3, 2, 2, 2
    against 2, 2, 1, 1, three differ in one direction: p = 2 / 8."""
    found = comparisons(of_seeds(0), PAIR, resamples=500)
    assert found["measure"].tolist() == ["need_success", "over_clarification", "success", "turns"]
    assert set(found["seed"]) == {"all"}
    assert found["n"].tolist() == [2, 2, 4, 4]
    assert found["difference"].tolist() == pytest.approx([0.5, -1.0, 0.25, -0.75])
    assert found["p_value"].tolist() == pytest.approx([1.0, 0.5, 1.0, 0.25])
    assert found["test"].tolist() == [MCNEMAR, MCNEMAR, MCNEMAR, SIGN_FLIP]


def test_comparisons_over_seeds_by_hand() -> None:
    """need_success: q1 gains 1 and 0, q2 0 and 0. over_clarification: q3 -1 and -1, q4 -1 and +1. turns: q1 -1 twice,
    q2 0 twice, q3 -1 twice, q4 -1 and +1: two questions differ, p = 2 / 4."""
    found = comparisons(of_seeds(0, 1), PAIR, resamples=500)
    assert found["seed"].tolist() == ["0", "1", "all"] * 4
    by_key = found.set_index(["measure", "seed"])
    assert by_key.loc["need_success", "difference"].tolist() == pytest.approx([0.5, 0.0, 0.25])
    assert by_key.loc["over_clarification", "difference"].tolist() == pytest.approx([-1.0, 0.0, -0.5])
    assert by_key.loc["success", "difference"].tolist() == pytest.approx([0.25, 0.0, 0.125])
    assert by_key.loc["turns", "difference"].tolist() == pytest.approx([-0.75, -0.25, -0.5])
    assert by_key.loc[("turns", "all"), "p_value"] == pytest.approx(0.5)
    assert by_key.loc["success", "test"].tolist() == [MCNEMAR, MCNEMAR, SIGN_FLIP]
    assert found["p_holm"].tolist() == pytest.approx(holm(found["p_value"]).tolist())
    assert set(found["verdict"]) == {NO_DIFFERENCE}


def test_turns_are_told_in_turns() -> None:
    """At most 3 turns: a third of the turns is compared, and all of it is told in turns again."""
    row = comparisons(of_seeds(0), PAIR, resamples=500).set_index("measure").loc["turns"]
    a, b = ([turns / 3 for turns in of] for of in ([2, 2, 1, 1], [3, 2, 2, 2]))
    scaled = paired_difference(a, b, resamples=500)
    assert row[["difference", "ci_low", "ci_high", "least_detectable_difference"]].tolist() == pytest.approx(
        [3 * scaled.difference, 3 * scaled.ci_low, 3 * scaled.ci_high, 3 * scaled.least_detectable_difference]
    )


def test_verdicts_follow_the_corrected_p_values() -> None:
    found = comparisons(many(1.0), PAIR, resamples=3000).set_index(["measure", "seed"])["verdict"]
    assert found["need_success"].tolist() == ["A above B"] * 3
    assert found["over_clarification"].tolist() == ["A below B"] * 3
    assert found["turns"].tolist() == [NO_DIFFERENCE] * 3


def test_a_verdict_that_the_correction_takes_back() -> None:
    """One seed, 6 of 20 questions differ in each half: p = 2 / 2^6 = .03125, and 12 of 40 in all: 2 / 2^12. Holm over
    four rows: the smallest x 4, the next two x 3 = .09375."""
    found = comparisons(many(0.3).query("seed == 0"), PAIR, resamples=500).set_index("measure")
    assert found["p_value"].tolist() == pytest.approx([2**-5, 2**-5, 2**-11, 1.0])
    assert found["p_holm"].tolist() == pytest.approx([3 * 2**-5, 3 * 2**-5, 4 * 2**-11, 1.0])
    assert found.loc["need_success", "ci_low"] > 0
    assert found["verdict"].tolist() == [NO_DIFFERENCE, NO_DIFFERENCE, "A above B", NO_DIFFERENCE]


@pytest.mark.parametrize(
    ("pairs", "rows", "match"),
    [
        ([("grpo", "rce")], frame(), "dialogues of grpo, sft; name two"),
        ([("sft", "sft")], frame(), "name two"),
        ([], frame(), "no pair"),
        (PAIR, frame().query("policy == 'sft' or seed == 0"), r"seeds are \[0\] and \[0, 1\]"),
        (PAIR, frame().query("needs_ask"), "serves to compare 'over_clarification'"),
    ],
)
def test_what_cannot_be_compared(pairs: list[tuple[str, str]], rows: pd.DataFrame, match: str) -> None:
    with pytest.raises(LeverlabError, match=match):
        comparisons(rows, pairs, resamples=10)


def test_win_rate_by_hand() -> None:
    """Seed 0: q1 by success, q3 and q4 by needless asks, q2 alike. Seed 1: q1 and q3 by needless asks, q2 alike (both
    wrong at once), q4 lost. 5 wins, 2 ties, 1 loss: (5 + 1) / 8. By question: q1 +1, q2 0, q3 +1, q4 0, so that
    two questions differ: p = 2 / 4."""
    found = dpo_win_rate(frame(), "grpo", "sft", resamples=500)
    assert (found.wins, found.ties, found.losses, found.questions) == (5, 2, 1, 4)
    assert found.win_rate == pytest.approx(0.75)
    assert found.ci_low <= 0.75 <= found.ci_high
    assert (found.p_value, found.test, found.verdict) == (pytest.approx(0.5), SIGN_FLIP, NO_DIFFERENCE)
    back = dpo_win_rate(frame(), "sft", "grpo", resamples=500)
    assert (back.wins, back.losses, back.win_rate) == (1, 5, pytest.approx(0.25))


def test_turns_decide_last() -> None:
    """Both right and neither asks without need: a lucky guess takes one turn less."""
    split = {"test": QUESTIONS["test"][:1]}
    said = [record("q1", ASK, "grpo", 0, 0.0), record("q1", DIRECT, "dpo", 0, 0.0)]
    found = dpo_win_rate(outcomes(said, split), resamples=50)
    assert (found.wins, found.ties, found.losses, found.test) == (1, 0, 0, MCNEMAR)


def test_metrics_by_hand() -> None:
    """Gains in need_success: multihop (q1) 1 and 0, math (q2) 0 and 0: median 0. Over all families: .5 and 0, whose
    quartiles are .125 and .375. Over-clarification: .75 → .25; multihop 1 → 0, math .5 → .5. Turns: 2 → 1.5.
    need_success of grpo: test .75, ood .5."""
    outcome = frame()
    found = metrics(outcome, comparisons(outcome, PAIR, resamples=100), format_exploit=0.02)
    assert found["lift"] == {
        "need_success": 0.0,
        "need_success_iqr": 0.25,
        "over_clarification_reduction": round(2 / 3, 6),
        "turns": -0.5,
        "spam": 0.0,
        "ood_gap": 0.25,
        "format_exploit": 0.02,
        "family": {
            "multihop": {"need_success": 0.5, "over_clarification_reduction": 1.0},
            "math": {"need_success": 0.0, "over_clarification_reduction": 0.0},
        },
    }
    assert list(found) == ["sft", "grpo", "lift", "comparisons"]
    assert set(found["sft"]) == {"test", "ood", "red_team", "sampled"}
    assert found["sft"]["test"]["spam"] == 0.125
    # Sampled: of q1 and q2, grpo gets three right of four, sft one.
    assert (found["grpo"]["sampled"]["need_success"], found["sft"]["sampled"]["need_success"]) == (0.75, 0.25)
    assert found["grpo"]["red_team"]["kind"]["bait"]["over_clarification"] == 1.0
    assert "need_success" not in found["grpo"]["red_team"]["kind"]["bait"]
    assert found["grpo"]["test"]["family"]["math"]["need_success"] == 0.5
    assert found["comparisons"]["grpo"]["sft"]["turns"]["difference"] == -0.5
    assert set(figures(outcome)) < set(found["grpo"]["ood"])


def test_the_gain_is_a_median_and_not_a_mean() -> None:
    """sft of seed 1 now fails on q1: the gains are 1 and 1, 0 and 0."""
    outcome = frame(q1=OTHER_FIRST_WRONG)
    found = metrics(outcome, comparisons(outcome, PAIR, resamples=50), 0.0)["lift"]
    assert (found["need_success"], found["family"]["multihop"]["need_success"]) == (0.5, 1.0)
    assert (found["over_clarification_reduction"], found["turns"]) == (round(2 / 3, 6), -0.5)


def test_what_cannot_be_known_passes_no_gate() -> None:
    """One seed has no spread; a baseline that never asks without need leaves nothing to lower; no ood, no gap."""
    outcome = many(1.0).query("seed == 0").assign(asked=False)
    found = metrics(outcome, comparisons(outcome, PAIR, resamples=50), math.nan)
    unknown = ("need_success_iqr", "over_clarification_reduction", "ood_gap", "format_exploit")
    rules = {name: GateParams(metric=f"lift.{name}", at_most=9.0) for name in unknown}
    assert not any(gate.passed for gate in evaluate_gates(rules, found))
    assert found["lift"]["need_success"] == 1.0


def test_the_final_report() -> None:
    outcome = many(1.0)
    paired = comparisons(outcome, PAIR, resamples=3000)
    measured = metrics(outcome, paired, 0.01)
    rules = {
        "need success": GateParams(metric="lift.need_success", at_least=0.07),
        "need success, seeds": GateParams(metric="lift.need_success_iqr", at_most=0.03),
        "turns": GateParams(metric="lift.turns", at_most=0.0),
    }
    report = rc1_final_report(measured, evaluate_gates(rules, measured), paired)
    assert (report["accepted"], report["failed"], report["win_rate"]) == (True, [], None)
    assert report["gates"][0] == {
        "name": "need success",
        "metric": "lift.need_success",
        "threshold": 0.07,
        "direction": "at_least",
        "value": 1.0,
        "passed": True,
    }
    assert report["stages"]["grpo over sft"]["over_clarification"]["verdict"] == "grpo below sft"
    assert report["sentences"][0].startswith("need_success, grpo above sft: +100.00 points (95 % interval +100.00 to")
    assert report["sentences"][3].startswith("turns, grpo against sft: no difference shown: +0.00 turns (")

    rules["ood"] = GateParams(metric="lift.ood_gap", at_most=0.05)
    wins = dpo_win_rate(outcome, "grpo", "sft", resamples=50)
    report = rc1_final_report(measured, evaluate_gates(rules, measured), paired, wins)
    assert (report["accepted"], report["failed"]) == (False, ["ood"])
    assert (report["gates"][3]["value"], report["figures"]["ood_gap"]) == (None, None)
    assert report["win_rate"]["wins"] == 80
    json.dumps(report, allow_nan=False)


def test_a_threshold_itself_passes() -> None:
    """.57 - .50 is .06999… in binary: the gain of 7 points must not fail for that."""
    rows = many(0.5, questions=200)
    better = rows["needs_ask"] & (rows["policy"] == "grpo") & (rows["question"].str[1:].astype(int) < 114)
    sft = rows["needs_ask"] & (rows["policy"] == "sft") & (rows["question"].str[1:].astype(int) < 100)
    rows["success"] = better | sft
    measured = metrics(rows, comparisons(rows, PAIR, resamples=50), 0.0)
    rule = {"gain": GateParams(metric="lift.need_success", at_least=0.07)}
    assert evaluate_gates(rule, measured)[0].passed


def test_a_gate_that_is_off_is_named_in_the_report() -> None:
    outcome = frame()
    paired = comparisons(outcome, PAIR, resamples=50)
    measured = metrics(outcome, paired, 0.0)
    gates = evaluate_gates({"gain": GateParams(metric="lift.need_success", at_least=-1.0)}, measured)
    report = rc1_final_report(measured, gates, paired, off=["ask"])
    assert [gate["name"] for gate in report["gates"]] == ["gain", "ask"]
    assert report["gates"][1] == {"name": "ask", "off": True}
    assert report["accepted"]


def test_a_report_without_gates_accepts_nothing() -> None:
    outcome = frame()
    paired = comparisons(outcome, PAIR, resamples=50)
    with pytest.raises(LeverlabError, match="at least one gate"):
        rc1_final_report(metrics(outcome, paired, 0.0), [], paired)
