"""The ledger of plans as tables and as docs/plans.md."""

import json
import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich.table import Table

from leverlab.evaluation.statistics import NO_DIFFERENCE
from leverlab.pipeline.compare_runs_report import rich_table
from leverlab.pipeline.ledger import PlanLedger, PlanRow
from leverlab.pipeline.ledger_inputs import HEAD
from leverlab.report import words
from leverlab.report.tables import markdown

VERDICTS, FIGURES, NOT_RUN = "Verdicts", "Figures", "Not run"
LEFT = ("hypothesis", "changes", "accept rule", "accepted", "verdict", "command", "against")


def tables(ledger: PlanLedger) -> list[Table]:
    """Return the tables to print on a terminal."""
    return [rich_table(title, frame, LEFT) for title, frame in _frames(ledger).items()]


def as_dict(ledger: PlanLedger) -> dict[str, Any]:
    """Return the ledger as plain data for JSON; a number that is not defined (NaN) is None."""
    return {
        "base": ledger.base,
        "plans": [_row_as_dict(row) for row in ledger.rows],
        "not_run": list(ledger.not_run),
        "unfit": dict(ledger.unfit),
        "warnings": list(ledger.warnings),
    }


def _row_as_dict(row: PlanRow) -> dict[str, Any]:
    return {
        "plan": row.name,
        "experiment": row.experiment.name,
        "hypothesis": row.experiment.plan.hypothesis,
        "changes": {key: {"before": before, "after": after} for key, (before, after) in row.changes.items()},
        "validation": row.validation,
        "test": {str(shots): accuracy for shots, accuracy in row.test.items()},
        "against": row.against,
        "verdict": _verdict(row),
        "accepted": None if row.gate is None else row.gate.passed,
        "pairs": json.loads(row.paired.to_json(orient="records", double_precision=15)),
        "seconds": row.seconds,
    }


def to_markdown(ledger: PlanLedger) -> str:
    """Return docs/plans.md."""
    frames = _frames(ledger)
    command = f"leverlab plan ledger{'' if ledger.base is None else f' --base {ledger.base}'} --write"
    parts = [
        "# Plans and their verdicts",
        f"Written by `{command}` from the runs themselves; edit plans/*.yaml, not this file.",
        "\n\n".join(notes(ledger)),
        f"## {VERDICTS}\n\n{markdown(frames[VERDICTS], LEFT)}".rstrip(),
        f"## {FIGURES}\n\n{markdown(frames[FIGURES], LEFT)}".rstrip(),
        "\n".join(f"- {line}" for line in remarks(ledger)),
    ]
    if NOT_RUN in frames:
        parts.append(f"## {NOT_RUN}\n\n{markdown(frames[NOT_RUN], LEFT)}".rstrip())
    return "\n\n".join(part for part in parts if part) + "\n"


def notes(ledger: PlanLedger) -> list[str]:
    """Return what a reader of the numbers must know."""
    otherwise = "the base's" if ledger.base is not None else f"that of {HEAD}, params.yaml as it is"
    rows = words.count(ledger.family, "row")
    return [
        "Plans stand by validation accuracy of their chosen GRPO checkpoints, a mean of seeds, never by test accuracy.",
        "Accuracies are in percent, differences in points, with 95 % bootstrap intervals over questions and seeds.",
        f"Each plan is compared with its parent's run, and one without parent with {otherwise}: GRPO against GRPO, "
        f"paired by test question. p is Holm-corrected over all {rows} of the ledger: every plan at every shot count. "
        "Verdict and difference are those of the largest shot count. “No difference shown” stands where the interval "
        "holds 0 or p is not below 0.05; the least detectable difference (80 % power, before correction) says how "
        "large it would have had to be.",
        "Accept rules were written down before the run, and say when the hypothesis is accepted; `over_parent` is that "
        "comparison. Seconds: the stage grpo over all seeds, on the machine that ran it, with the scores its cache "
        "held.",
    ]


def remarks(ledger: PlanLedger) -> list[str]:
    """Return why plans were not judged or cannot run, and warnings."""
    unjudged = [f"`{row.name}` is not judged: {row.unjudged}." for row in ledger.rows if row.unjudged and row.against]
    unfit = [f"`{name}` cannot run here: {reason}." for name, reason in ledger.unfit.items()]
    return [*unjudged, *unfit, *(f"**Warning:** {warning}." for warning in ledger.warnings)]


def _frames(ledger: PlanLedger) -> dict[str, pd.DataFrame]:
    frames = {
        VERDICTS: pd.DataFrame([_verdict_row(row) for row in ledger.rows]),
        FIGURES: pd.DataFrame([_figures_row(row, _shots(ledger)) for row in ledger.rows]),
    }
    if ledger.not_run:
        on_base = "" if ledger.base is None else f" --base {ledger.base}"
        rows = [
            {
                "plan": name,
                "hypothesis": experiment.plan.hypothesis,
                "command": f"leverlab plan run {name}{on_base}",
            }
            for name, experiment in ledger.not_run.items()
        ]
        frames[NOT_RUN] = pd.DataFrame(rows)
    return frames


def _verdict_row(row: PlanRow) -> dict[str, str]:
    rule = row.experiment.plan.accept
    bound = "" if rule is None else f"{'≥' if 'at_least' in rule else '≤'} {words.number(_bound(rule))}"
    return {
        "plan": row.name,
        "hypothesis": row.experiment.plan.hypothesis,
        "changes": _changes(row),
        "verdict": _verdict(row),
        "accept rule": words.NOTHING if rule is None else f"{rule['metric']} {bound}",
        "accepted": _accepted(row),
    }


def _bound(rule: dict[str, object]) -> float:
    return float(str(rule["at_least"] if "at_least" in rule else rule["at_most"]))


def _accepted(row: PlanRow) -> str:
    if row.gate is None:
        return words.NOTHING if row.experiment.plan.accept is None else "not judged"
    return f"{'yes' if row.gate.passed else 'no'} ({words.number(row.gate.value)})"


def _changes(row: PlanRow) -> str:
    if row.against is None or row.unjudged:
        return "; ".join(f"{key} = {new}" for key, (_, new) in row.changes.items())
    return "; ".join(
        f"{key} {old or words.NOTHING} → {new or words.NOTHING}" for key, (old, new) in row.changes.items()
    )


def _verdict(row: PlanRow) -> str:
    """Return the verdict at the largest shot count in words."""
    if row.against is None:
        return "the base"
    if row.unjudged:
        return "not judged"
    last = row.paired.loc[row.paired["shots"].idxmax()]
    if last["verdict"] != NO_DIFFERENCE:
        return words.side(last["verdict"])
    return f"{NO_DIFFERENCE} (least detectable {words.percent(last['least_detectable_difference'])})"


def _shots(ledger: PlanLedger) -> list[int]:
    return sorted({shots for row in ledger.rows for shots in row.test})


def _figures_row(row: PlanRow, shots: Sequence[int]) -> dict[str, str]:
    cells = {
        "plan": row.name,
        "validation": words.percent(row.validation),
        **{words.count(k, "shot"): words.percent(row.test.get(k, math.nan)) for k in shots},
        "against": row.against or words.NOTHING,
        **dict.fromkeys(("difference", "95 % interval", "p (Holm)", "least detectable"), words.NOTHING),
    }
    if not row.paired.empty:
        last = row.paired.loc[row.paired["shots"].idxmax()]
        cells |= {
            "difference": words.points(last["difference"]),
            "95 % interval": words.points_interval(last["ci_low"], last["ci_high"]),
            "p (Holm)": words.p_value(last["p_holm"]),
            "least detectable": words.percent(last["least_detectable_difference"]),
        }
    return cells | {"seconds": words.NOTHING if row.seconds is None else f"{row.seconds:,.0f}"}
