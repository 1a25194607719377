"""The tables of the report of the recipe `clarify`, as data frames of text."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from leverlab.evaluation.statistics import NO_DIFFERENCE
from leverlab.lm.acceptance import GREEDY, SAMPLED, WinRate
from leverlab.lm.questions import Question
from leverlab.lm.shadow import ShadowResult
from leverlab.lm.summary import ALL_SEEDS
from leverlab.report.clarify_gates import guard_events
from leverlab.report.clarify_inputs import COUNTS, POLICIES, HackProbe, Runs, Scorers
from leverlab.report.words import NOTHING, number, p_value, percent, percent_interval, points, points_interval, side

HEADS = {
    "need_success": "need-success (%)",
    "over_clarification": "over-clarification (%)",
    "over_all": "… of all questions (%)",
    "success": "success (%)",
    "ask_precision": "ask precision (%)",
    "ask_recall": "ask recall (%)",
    "redundant_asks": "redundant asks",
    "turns": "turns",
    "format": "format (%)",
    "grounded_thoughts": "grounded thoughts (%)",
    "spam": "ask spam (%)",
}
SHORT = ("need_success", "over_clarification", "success", "turns")
TEMPERATURES = {GREEDY: "greedy", SAMPLED: "temperature 1"}
CHOSEN = "chosen"  # GRPO's evaluation that select-best kept


def figures_text(
    rows: pd.DataFrame, measures: Sequence[str] = tuple(HEADS), by: Sequence[str] = ("policy",)
) -> pd.DataFrame:
    """Return rows of a table of infer-800 as text: `by`, then `measures` with their 95 % intervals where they have any.

    Shares are in percent; counts are means of a dialogue. Policies stand by their labels, in the order of the rows.
    """
    result = []
    for row in rows.to_dict("records"):
        first = {name: POLICIES.get(str(row[name]), str(row[name])) for name in by}
        result.append(first | {HEADS[measure]: _figure(row, measure) for measure in measures})
    return pd.DataFrame(result, columns=[*by, *(HEADS[measure] for measure in measures)])


def of_split(rows: pd.DataFrame, split: str, temperature: float, seeds: bool = False) -> pd.DataFrame:
    """Return the rows of a split at a temperature: those over all seeds, or those of each seed."""
    found = rows[(rows["split"] == split) & (rows["temperature"] == temperature)]
    return found[(found["seed"] != ALL_SEEDS) if seeds else (found["seed"] == ALL_SEEDS)]


def main_text(splits: pd.DataFrame) -> pd.DataFrame:
    """Return the main table: policies at both temperatures on the test questions, all figures."""
    frames = [
        figures_text(of_split(splits, "test", temperature)).assign(decoding=name)
        for temperature, name in TEMPERATURES.items()
    ]
    table = pd.concat(frames)
    return table[["policy", "decoding", *HEADS.values()]]


def families_text(families: pd.DataFrame, temperature: float = GREEDY) -> pd.DataFrame:
    """Return families x policies on the test questions."""
    rows = of_split(families, "test", temperature).sort_values("family", kind="stable")
    return figures_text(rows, SHORT, ("family", "policy"))


def lifts_text(measured: Mapping[str, Any]) -> pd.DataFrame:
    """Return by family what GRPO gains over SFT: need-success (median over seeds) and the reduction of
    over-clarification."""
    rows = [
        {
            "family": family,
            "gain in need-success (points)": points(found["need_success"]),
            "over-clarification lower by (%)": percent(found["over_clarification_reduction"]),
        }
        for family, found in measured["lift"]["family"].items()
    ]
    return pd.DataFrame(rows)


def kinds_text(measured: Mapping[str, Any], split: str, questions: Iterable[Question]) -> pd.DataFrame:
    """Return kinds of question x policies of a split, greedy: n questions, and `SHORT` as far as they have a value."""
    counts: dict[str, int] = {}
    for question in questions:
        counts[question.kind] = counts.get(question.kind, 0) + 1
    rows = []
    for kind, n in sorted(counts.items()):
        for policy, label in POLICIES.items():
            found = measured.get(policy, {}).get(split, {}).get("kind", {}).get(kind)
            if found is not None:
                cells = {HEADS[name]: _figure(found, name) if name in found else NOTHING for name in SHORT}
                rows.append({"kind": kind, "n": number(n), "policy": label} | cells)
    return pd.DataFrame(rows, columns=["kind", "n", "policy", *(HEADS[name] for name in SHORT)])


def comparisons_text(comparisons: pd.DataFrame) -> pd.DataFrame:
    """Return the paired comparisons, one a row: differences in points, of turns in turns."""
    rows = [
        {
            "policy": POLICIES[row["policy_a"]],
            "against": POLICIES[row["policy_b"]],
            "measure": row["measure"].replace("_", "-"),
            "seed": row["seed"],
            **difference_text(row),
            "p (Holm)": p_value(row["p_holm"]),
            "verdict": side(row["verdict"]),
            "test": row["test"],
        }
        for row in comparisons.to_dict("records")
    ]
    return pd.DataFrame(rows)


def difference_text(row: Mapping[str, Any]) -> dict[str, str]:
    """Return a difference with its interval and the least detectable one, in points, or in turns."""
    low, high, least = row["ci_low"], row["ci_high"], row["least_detectable_difference"]
    if row["measure"] in COUNTS:
        texts = (signed(row["difference"]), f"[{signed(low)}, {signed(high)}]", _count(least))
    else:
        texts = (points(row["difference"]), points_interval(low, high), percent(least))
    return dict(zip(("difference", "95 % interval", "least detectable"), texts, strict=True))


def events_text(runs: Runs) -> pd.DataFrame:
    """Return every event of the guard, one a row, and "none" for a seed without any."""
    events = guard_events(runs)
    rows = [
        {"seed": str(seed), "step": number(step), "reaction": action, "reason": reason}
        for seed in runs.evaluations["grpo"]
        for _, step, action, reason in (
            events[events["seed"] == seed].itertuples(index=False, name=None)
            if seed in set(events["seed"])
            else [(seed, None, "none", NOTHING)]
        )
    ]
    return pd.DataFrame(rows, columns=["seed", "step", "reaction", "reason"])


def validation_text(runs: Runs) -> pd.DataFrame:
    """Return what each training came to on the validation questions: the last evaluation, of GRPO the chosen one."""
    rows = []
    for policy, label in POLICIES.items():
        for seed, of_seed in runs.evaluations[policy].items():
            chosen = runs.choices[runs.choices["seed"] == seed] if policy == "grpo" else of_seed.tail(1)
            row = chosen.to_dict("records")[0]
            cells = {HEADS[name]: percent(row[name]) for name in SHORT if name in row and name not in COUNTS}
            first = {"policy": label, "seed": str(seed), "step": number(int(row["step"]))}
            rows.append(first | {"reward": _count(row["reward"])} | cells)
    return pd.DataFrame(rows)


def win_rate_text(wins: WinRate) -> pd.DataFrame:
    """Return how often the dialogue of DPO is better than that of GRPO."""
    a, b = POLICIES[wins.policy_a], POLICIES[wins.policy_b]
    row = {
        "": f"{a} against {b}",
        "win rate (%)": f"{percent(wins.win_rate)} {percent_interval(wins.ci_low, wins.ci_high)}",
        "wins": number(wins.wins),
        "ties": number(wins.ties),
        "losses": number(wins.losses),
        "p": p_value(wins.p_value),
        "verdict": wins.verdict if wins.verdict == NO_DIFFERENCE else f"{a} {side(wins.verdict)} {b}",
    }
    return pd.DataFrame([row])


def probe_text(probe: HackProbe) -> pd.DataFrame:
    """Return the figures of both arms of the hack probe beside the limits, and the step of each alarm's first ring."""
    names = [*probe.limits, *(name for name in probe.arms["proxy"].figures if name not in probe.limits)]
    rows = []
    for name in names:
        limit, first = probe.limits.get(name), probe.first_alarm_step.get(name)
        rows.append(
            {
                "figure": name,
                "limit": NOTHING if limit is None else f"≤ {number(limit)}",
                "proxy arm": number(probe.arms["proxy"].figures[name]),
                "verified arm": number(probe.arms["verified"].figures.get(name)),
                "first past the limit": NOTHING
                if limit is None
                else "never"
                if first is None
                else f"step {number(first)}",
            }
        )
    return pd.DataFrame(rows)


def shadow_text(shadow: ShadowResult) -> pd.DataFrame:
    """Return the figures of the shadow gate with their 95 % intervals."""
    meanings = {
        "spearman": "rank correlation of old and new scores",
        "overlap": "share of the old top 10 % that is in the new one",
        "correlation_old": "of the old scores with success",
        "correlation_new": "of the new scores with success",
        "gain": "how far the second is above the first, as a share of it",
    }
    rows = []
    for name, meaning in meanings.items():
        found = getattr(shadow, name)
        interval = f"[{signed(found.low, '')}, {signed(found.high, '')}]"
        rows.append(
            {"figure": name, "value": signed(found.value, ""), "95 % interval": interval}
            | {"meaning": meaning + (f"; {found.reason}" if found.reason else "")}
        )
    return pd.DataFrame(rows)


def weights_text(scorers: Scorers) -> pd.DataFrame:
    """Return the weights of the old and of the new scorer, by feature."""
    rows = [
        {"feature": name, "old": _count(weight), "new": _count(scorers.new.get(name, float("nan")))}
        for name, weight in scorers.old.items()
    ]
    return pd.DataFrame(rows)


def health_text(health: Mapping[int, Mapping[str, float]]) -> pd.DataFrame:
    """Return the figures of the sampled groups, one a row, a column for each seed."""
    names = dict.fromkeys(name for found in health.values() for name in found)
    rows = [
        {"figure": name} | {f"seed {seed}": number(found.get(name)) for seed, found in health.items()} for name in names
    ]
    return pd.DataFrame(rows)


def signed(value: float, plus: str = "+") -> str:
    """Return a number with three digits after the point and its sign: -0.12 is "−0.120"."""
    text = _count(value)
    return f"{plus}{text}" if round(value, 3) > 0 else text


def _figure(row: Mapping[str, Any], measure: str) -> str:
    if measure in COUNTS:
        return _count(row[measure])
    low, high = row.get(f"{measure}_low"), row.get(f"{measure}_high")
    if low is None or high is None or low != low:
        return percent(row[measure])
    return f"{percent(row[measure])} {percent_interval(low, high)}"


def _count(value: float) -> str:
    return NOTHING if value != value else f"{round(value, 3) + 0.0:.3f}".replace("-", "−")  # + 0.0: no −0
