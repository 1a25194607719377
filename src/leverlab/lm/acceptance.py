"""What the policies of the recipe `clarify` gain over each other: comparisons, metrics for gates, the final report."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from leverlab.errors import LeverlabError
from leverlab.evaluation.gates import Gate
from leverlab.evaluation.gates_file import gates_record
from leverlab.evaluation.statistics import NO_DIFFERENCE, holm, paired_difference, verdict
from leverlab.lm.summary import ALL_SEEDS, DIGITS, POLICIES, counted, each_leaf, figures, matrix, plain

PAIRS = (("grpo", "sft"), ("rce", "sft"), ("grpo", "rce"), ("dpo", "sft"))
COMPARED = ("need_success", "over_clarification", "success", "turns")
GREEDY, SAMPLED = 0.0, 1.0  # temperatures
TEST, OOD = "test", "ood"  # splits


@dataclass(frozen=True)
class WinRate:
    """How often the dialogue of policy A is better than that of B, over seeds x questions.

    win_rate: (wins + ties / 2) / all, in [0, 1], with its bootstrap 95 % interval. p_value, test, verdict: of wins
    against losses, as in `paired_difference`.
    """

    policy_a: str
    policy_b: str
    questions: int
    wins: int
    ties: int
    losses: int
    win_rate: float
    ci_low: float
    ci_high: float
    p_value: float
    test: str
    verdict: str


def comparisons(
    outcomes: pd.DataFrame,
    pairs: Sequence[tuple[str, str]] = PAIRS,
    temperature: float = GREEDY,
    split: str = "test",
    resamples: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the paired comparisons of the policies of `pairs` (A, B) on the same questions and seeds.

    Columns: policy_a, policy_b, measure (of `COMPARED`), seed (text, or "all"), n, difference (A - B: of shares, or in
    turns), ci_low, ci_high, p_value, p_holm, least_detectable_difference, verdict, test, as in `paired_difference`.
    There is a row over all seeds and, when there are several, one per seed. `p_holm` is Holm's correction over *all
    rows of this table*, and the verdict follows from it: compare all that is told together in one call. A sign-flip
    p-value is 2 / (resamples + 1) at the least, so keep `resamples` above 40 x rows.
    Raises `LeverlabError` for a policy that has no dialogue there, for policies with other seeds, when no question
    serves a measure, and without a pair.
    """
    if not pairs:
        raise LeverlabError("there is no pair of policies to compare; name at least one")
    rows = []
    for a, b in pairs:
        of_a, of_b = _pair(outcomes, a, b, temperature, split)
        for measure in COMPARED:
            scores_a, scores_b = matrix(counted(of_a, measure), "value"), matrix(counted(of_b, measure), "value")
            if scores_a.empty:
                raise LeverlabError(f"no question of the split '{split}' serves to compare '{measure}'; it needs some")
            seeds = scores_a.index.tolist()
            for of_seed in [[number] for number in seeds if len(seeds) > 1] + [seeds]:
                name = str(of_seed[0]) if len(of_seed) < len(seeds) else ALL_SEEDS
                found = _difference(scores_a.loc[of_seed], scores_b.loc[of_seed], resamples, seed)
                rows.append({"policy_a": a, "policy_b": b, "measure": measure, "seed": name, **found})
    result = pd.DataFrame(rows)
    result["p_holm"] = holm(result["p_value"])
    ends = zip(result["ci_low"], result["ci_high"], result["p_holm"], strict=True)
    result["verdict"] = [verdict(*row) for row in ends]
    first = ["policy_a", "policy_b", "measure", "seed", "n", "difference", "ci_low", "ci_high", "p_value", "p_holm"]
    return result[[*first, "least_detectable_difference", "verdict", "test"]]


def dpo_win_rate(
    outcomes: pd.DataFrame,
    a: str = "dpo",
    b: str = "grpo",
    temperature: float = GREEDY,
    split: str = "test",
    resamples: int = 10_000,
    seed: int = 0,
) -> WinRate:
    """Return how often A's dialogue is better than B's on the same question and seed. No reward has a say.

    Better is who succeeds; if both or none do, who asks less without need; then who takes fewer turns; else it is a
    tie. Raises `LeverlabError` as `comparisons`.
    """
    of_a, of_b = _pair(outcomes, a, b, temperature, split)
    ranked = np.array(0.0)
    for column, sign in (("success", 1), ("redundant_asks", -1), ("turns", -1)):
        gap = sign * np.sign(matrix(of_a, column).to_numpy(float) - matrix(of_b, column).to_numpy(float))
        ranked = np.where(ranked == 0, gap, ranked)
    wins_SN, losses_SN = ranked > 0, ranked < 0
    found = paired_difference(wins_SN, losses_SN, resamples=resamples, seed=seed, same_seeds=True)
    return WinRate(
        policy_a=a,
        policy_b=b,
        questions=found.n,
        wins=int(wins_SN.sum()),
        ties=int((ranked == 0).sum()),
        losses=int(losses_SN.sum()),
        win_rate=(1 + found.difference) / 2,
        ci_low=(1 + found.ci_low) / 2,
        ci_high=(1 + found.ci_high) / 2,
        p_value=found.p_value,
        test=found.test,
        verdict=found.verdict,
    )


def metrics(
    outcomes: pd.DataFrame,
    comparisons: pd.DataFrame,
    format_exploit: float,
    policy: str = "grpo",
    baseline: str = "sft",
) -> dict[str, Any]:
    """Return what metrics.json holds: nested numbers, each under a dotted key that a gate can name.

    <policy>.<split>.<figure>: the `figures` of greedy dialogues, over all seeds.
    <policy>.sampled.<figure>: those at temperature 1 on `test`.
    <policy>.<split or sampled>.family.<family>.<figure> and ….kind.<kind>.<figure>: without those that have no value.
    lift.<figure>, of `policy` against `baseline`, greedy on `test`:
        need_success: the median over families and seeds of the gain in need_success
        need_success_iqr: the interquartile range over seeds of the gain over all families (linear quantiles: of three
            seeds half their range); NaN for one seed, whose spread nobody knows
        over_clarification_reduction: 1 - over_clarification of the policy / of the baseline
        turns: mean turns, policy - baseline
        spam: share of the policy's dialogues that are ask spam
        format_exploit: as given; it needs a proxy reward
        ood_gap: need_success of the policy on `test` - on `ood`
        family.<family>.need_success (median over seeds), family.<family>.over_clarification_reduction
    comparisons.<a>.<b>.<measure>.<column>: the rows of `comparisons` over all seeds: difference, ci_low, ci_high,
        p_holm, least_detectable_difference.
    Shares are in [0, 1], not percent; all figures have 6 digits after the point, so that a threshold itself passes. A
    figure without a value is NaN, which passes no gate: `plain` makes it null for a file, `unplain` NaN again.
    Raises `LeverlabError` when `policy` and `baseline` have no dialogues to compare, or other seeds.
    """
    result: dict[str, Any] = {}
    for name in (name for name in POLICIES if name in set(outcomes["policy"])):
        of_policy = outcomes[outcomes["policy"] == name]
        greedy = of_policy[of_policy["temperature"] == GREEDY]
        result[name] = {str(split): _with_parts(rows) for split, rows in greedy.groupby("split")}
        sampled = of_policy[(of_policy["temperature"] == SAMPLED) & (of_policy["split"] == TEST)]
        if len(sampled):
            result[name]["sampled"] = _with_parts(sampled)
    result["lift"] = _lift(outcomes, policy, baseline) | {"format_exploit": format_exploit}
    columns = ("difference", "ci_low", "ci_high", "p_holm", "least_detectable_difference")
    paired: dict[str, Any] = {}
    for row in comparisons[comparisons["seed"] == ALL_SEEDS].to_dict("records"):
        of_pair = paired.setdefault(row["policy_a"], {}).setdefault(row["policy_b"], {})
        of_pair[row["measure"]] = {column: float(row[column]) for column in columns}
    return each_leaf(result | {"comparisons": paired}, lambda value: round(value, DIGITS))


def rc1_final_report(
    measured: Mapping[str, Any],
    gates: Sequence[Gate],
    comparisons: pd.DataFrame,
    wins: WinRate | None = None,
    off: Sequence[str] = (),
) -> dict[str, Any]:
    """Return what rc1_final_report.json holds, as `plain` figures.

    measured: the `metrics`. gates: the acceptance rules, evaluated on them (and on what else they name).
    off: names of the gates that are switched off.
    Keys: accepted (whether every gate passed), failed (the names of those that did not), figures (`lift` of
    `measured`), gates (as in gates.json), stages ("rce over sft" … → measure →
    difference, ci_low, ci_high, p_holm, verdict: what each stage adds by itself), sentences (the same, for a reader; a
    gain inside the noise is "no difference shown"), win_rate (`wins`, or null).
    Raises `LeverlabError` when there is no gate: then nothing was accepted.
    """
    if not gates:
        raise LeverlabError("the acceptance report needs at least one gate; name its gates in params.yaml")
    stages: dict[str, Any] = {}
    sentences = []
    for row in comparisons[comparisons["seed"] == ALL_SEEDS].to_dict("records"):
        a, b = row["policy_a"], row["policy_b"]
        said = row["verdict"].replace("A", a).replace("B", b) if row["verdict"] != NO_DIFFERENCE else NO_DIFFERENCE
        numbers = {column: float(row[column]) for column in ("difference", "ci_low", "ci_high", "p_holm")}
        stages.setdefault(f"{a} over {b}", {})[row["measure"]] = numbers | {"verdict": said}
        sentences.append(_sentence(row["measure"], a, b, said, numbers))
    return plain(
        {
            "accepted": all(gate.passed for gate in gates),
            "failed": [gate.name for gate in gates if not gate.passed],
            "figures": measured["lift"],
            "gates": gates_record(gates, off),
            "stages": stages,
            "sentences": sentences,
            "win_rate": asdict(wins) if wins else None,
        }
    )


def _pair(outcomes: pd.DataFrame, a: str, b: str, temperature: float, split: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    there = outcomes[(outcomes["temperature"] == temperature) & (outcomes["split"] == split)]
    of_a, of_b = there[there["policy"] == a], there[there["policy"] == b]
    where = f"'{a}' with '{b}' on '{split}' at temperature {temperature:g}"
    if of_a.empty or of_b.empty or a == b:
        present = ", ".join(sorted(set(there["policy"]))) or "none"
        raise LeverlabError(f"cannot compare {where}: there are dialogues of {present}; name two of them")
    seeds_a, seeds_b = sorted(set(of_a["seed"])), sorted(set(of_b["seed"]))
    if seeds_a != seeds_b:
        raise LeverlabError(f"cannot compare {where}: their seeds are {seeds_a} and {seeds_b}; they must be the same")
    return of_a, of_b


def _difference(scores_a: pd.DataFrame, scores_b: pd.DataFrame, resamples: int, seed: int) -> dict[str, Any]:
    """Return a paired difference. Scores above 1 (turns) are scaled into [0, 1] for the statistics, and back."""
    scale = max(1.0, float(scores_a.to_numpy().max()), float(scores_b.to_numpy().max()))
    ids_a, ids_b = scores_a.columns.tolist(), scores_b.columns.tolist()
    found = paired_difference(
        scores_a / scale, scores_b / scale, ids_a, ids_b, resamples=resamples, seed=seed, same_seeds=True
    )
    return {
        "n": found.n,
        "difference": scale * found.difference,
        "ci_low": scale * found.ci_low,
        "ci_high": scale * found.ci_high,
        "p_value": found.p_value,
        "least_detectable_difference": scale * found.least_detectable_difference,
        "test": found.test,
    }


def _sentence(measure: str, a: str, b: str, said: str, numbers: Mapping[str, float]) -> str:
    scale, unit = (1.0, "turns") if measure == "turns" else (100.0, "points")
    difference, low, high = (scale * numbers[column] for column in ("difference", "ci_low", "ci_high"))
    subject = f"{a} against {b}" if said == NO_DIFFERENCE else said
    shown = f": {NO_DIFFERENCE}" if said == NO_DIFFERENCE else ""
    digits = f"{difference:+.2f} {unit} (95 % interval {low:+.2f} to {high:+.2f}, Holm p = {numbers['p_holm']:.3g})"
    return f"{measure}, {subject}{shown}: {digits}"


def _with_parts(rows: pd.DataFrame) -> dict[str, Any]:
    """Return the figures of dialogues, and those of every family and kind as far as they have a value."""
    parts = {}
    for column in ("family", "kind"):
        found = {str(name): figures(part) for name, part in rows.groupby(column)}
        parts[column] = {
            name: {figure: value for figure, value in values.items() if math.isfinite(value)}
            for name, values in found.items()
        }
    return figures(rows) | parts


def _lift(outcomes: pd.DataFrame, policy: str, baseline: str) -> dict[str, Any]:
    ours, theirs = _pair(outcomes, policy, baseline, GREEDY, TEST)
    ours_all, theirs_all = figures(ours), figures(theirs)
    of_family = {str(name): (rows, theirs[theirs["family"] == name]) for name, rows in ours.groupby("family")}
    gains = {name: _gains(*rows) for name, rows in of_family.items()}
    per_seed = _gains(ours, theirs)
    greedy_ood = outcomes[
        (outcomes["policy"] == policy) & (outcomes["split"] == OOD) & (outcomes["temperature"] == GREEDY)
    ]
    return {
        "need_success": _median([gain for values in gains.values() for gain in values]),
        "need_success_iqr": float(np.subtract(*np.quantile(per_seed, [0.75, 0.25]))) if len(per_seed) > 1 else math.nan,
        "over_clarification_reduction": _reduction(ours, theirs),
        "turns": ours_all["turns"] - theirs_all["turns"],
        "spam": ours_all["spam"],
        "ood_gap": ours_all["need_success"] - figures(greedy_ood)["need_success"],
        "family": {
            name: {"need_success": _median(gains[name]), "over_clarification_reduction": _reduction(*rows)}
            for name, rows in of_family.items()
        },
    }


def _gains(ours: pd.DataFrame, theirs: pd.DataFrame) -> list[float]:
    """Return the gain in need_success of every seed; none when no question needs an ask."""
    means = [matrix(counted(rows, "need_success"), "value").mean(axis=1) for rows in (ours, theirs)]
    return (means[0] - means[1]).tolist()


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if len(values) else math.nan


def _reduction(ours: pd.DataFrame, theirs: pd.DataFrame) -> float:
    """Return by which share over-clarification is lower; NaN when there was none to lower."""
    after, before = (figures(rows)["over_clarification"] for rows in (ours, theirs))
    return 1 - after / before if before > 0 else math.nan
