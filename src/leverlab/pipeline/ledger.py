"""The ledger of plans: each that ran is judged against its parent's run, and its accept rule is read.

Plans are compared with their parents paired by test question, at every shot count, with Holm's correction over all rows
of the ledger. They are ranked by the validation accuracy of their chosen GRPO checkpoints.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from leverlab.config.report import GateParams
from leverlab.errors import LeverlabError
from leverlab.evaluation.gates import Gate, evaluate_gates
from leverlab.evaluation.statistics import holm, verdict
from leverlab.evaluation.summary import comparisons
from leverlab.pipeline.answers_of import flat
from leverlab.pipeline.compare_runs import RESAMPLES, as_text, compare, differing
from leverlab.pipeline.gate_names import OVER_PARENT, OVER_PARENT_COLUMNS
from leverlab.pipeline.ledger_inputs import HEAD, METHOD, Outcome, PlanRuns
from leverlab.pipeline.plans import Experiment
from leverlab.report.headline import subject_of
from leverlab.report.tables import comparison_metrics


@dataclass(frozen=True)
class PlanRow:
    """One plan that ran.

    changes: by dotted key the values in its parent's run (None: not there, or not known) and in its own, as JSON.
    validation: mean over seeds. test: accuracy by shot count. Both in [0, 1].
    against: name of the run that it is judged against, None for the base of the ledger.
    paired: one row a shot count: shots, difference (plan - parent), ci_low, ci_high, p_value, p_holm (over the whole
        ledger), least_detectable_difference, verdict. Empty when it is not judged; `unjudged` then says why.
    gate: the accept rule and what was measured; None without a rule, and for one on the parent that is not judged.
    """

    name: str
    experiment: Experiment
    changes: Mapping[str, tuple[str | None, str | None]]
    validation: float
    test: Mapping[int, float]
    against: str | None
    paired: pd.DataFrame
    unjudged: str
    gate: Gate | None
    seconds: float | None


@dataclass(frozen=True)
class PlanLedger:
    """Plans that ran, the highest validation accuracy first; those that did not; those that cannot run; warnings."""

    base: str | None
    rows: Sequence[PlanRow]
    family: int
    not_run: Mapping[str, Experiment]
    unfit: Mapping[str, str]
    warnings: Sequence[str]


def plan_ledger(found: PlanRuns, resamples: int = RESAMPLES) -> PlanLedger:
    """Return the ledger of all plans.

    A plan whose parent has not run, or answered other questions, is listed and not judged.
    Raises `LeverlabError` for an accept rule on a metric that was not measured.
    """
    ran = {name: plan for name, plan in found.plans.items() if plan.name in found.outcomes}
    shots = max(len(_test(found.outcomes[plan.name])) for plan in ran.values())
    frames, unjudged = {}, {}
    warnings = [warning for outcome in found.outcomes.values() for warning in outcome.run.warnings]
    for name, plan in ran.items():
        try:
            pairs, said = _against_parent(name, plan, found, max(resamples, 40 * shots * len(ran)))
            frames[name] = pairs
            warnings += said
        except LeverlabError as error:
            unjudged[name] = str(error)
        warnings += _told_otherwise(name, plan, found)
    warnings += _validated_otherwise(found)
    frames = _corrected(frames)
    rows = [_row(name, plan, found, frames.get(name), unjudged.get(name, "")) for name, plan in ran.items()]
    return PlanLedger(
        base=found.base,
        rows=sorted(rows, key=lambda row: (-row.validation, row.name)),
        family=sum(map(len, frames.values())),
        not_run={name: plan for name, plan in found.plans.items() if name not in ran},
        unfit=found.unfit,
        warnings=list(dict.fromkeys(warnings)),
    )


def _parent(name: str, plan: Experiment, base: str | None) -> str | None:
    """Return the name of the run that a plan is judged against."""
    return plan.parent or (None if name == base else HEAD)


def _against_parent(name: str, plan: Experiment, found: PlanRuns, resamples: int) -> tuple[pd.DataFrame, Sequence[str]]:
    """Return the rows of a plan against its parent, and warnings. Raises `LeverlabError` when it cannot be judged."""
    parent = _parent(name, plan, found.base)
    if parent is None:
        raise LeverlabError("the base of this ledger")
    if parent not in found.outcomes:
        on_base = "" if found.base is None else f" --base {found.base}"
        raise LeverlabError(
            f"its parent '{parent}' has not run: run it with `leverlab plan run {plan.plan.parent}{on_base}`"
        )
    comparison = compare([found.outcomes[plan.name].run, found.outcomes[parent].run], METHOD, resamples)
    return comparison.pairs, comparison.warnings


def _corrected(frames: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Return the frames with Holm's correction over all of their rows, and the verdicts that follow."""
    p_holm = iter(holm([p for frame in frames.values() for p in frame["p_value"]]))
    corrected = {}
    for name, frame in frames.items():
        frame = frame.assign(p_holm=[float(next(p_holm)) for _ in range(len(frame))])
        verdicts = map(verdict, frame["ci_low"], frame["ci_high"], frame["p_holm"])
        corrected[name] = frame.assign(verdict=list(verdicts))
    return corrected


def _row(name: str, plan: Experiment, found: PlanRuns, paired: pd.DataFrame | None, unjudged: str) -> PlanRow:
    outcome = found.outcomes[plan.name]
    parent = _parent(name, plan, found.base)
    return PlanRow(
        name=name,
        experiment=plan,
        changes=_changes(plan, outcome, found.outcomes.get(parent or "")),
        validation=outcome.accuracy,
        test=_test(outcome),
        against=parent,
        paired=pd.DataFrame() if paired is None else paired,
        unjudged=unjudged,
        gate=_gate(name, plan, outcome, paired),
        seconds=outcome.seconds,
    )


def _changes(plan: Experiment, own: Outcome, parent: Outcome | None) -> dict[str, tuple[str | None, str | None]]:
    now = flat(own.run.params)
    if parent is None:
        keys = [key for key in now if any(_below(key, changed) for changed in plan.changed)]
        return {key: (None, as_text(now[key])) for key in keys}
    both = differing({"old": flat(parent.run.params), "new": now})
    return {
        key: (
            as_text(said["old"]) if "old" in said else None,
            as_text(said["new"]) if "new" in said else None,
        )
        for key, said in both.items()
    }


def _below(key: str, other: str) -> bool:
    return key == other or key.startswith(f"{other}.") or other.startswith(f"{key}.")


def _told_otherwise(name: str, plan: Experiment, found: PlanRuns) -> list[str]:
    """Return warnings where a run is not what its plan says."""
    own, on_base = found.outcomes[plan.name], "" if found.base is None else f" --base {found.base}"
    now = flat(own.run.params)
    stale = [key for key, value in flat(plan.overrides).items() if key not in now or now[key] != value]
    told = []
    if stale:
        told.append(
            f"'{plan.name}' ran with another {', '.join(stale)} than plan '{name}' says now: run it again with "
            f"`leverlab plan run {name}{on_base}`"
        )
    parent = found.outcomes.get(_parent(name, plan, found.base) or "")
    more = [
        key
        for key in (_changes(plan, own, parent) if parent else ())
        if not any(_below(key, changed) for changed in plan.changed)
    ]
    if more:
        told.append(f"'{plan.name}' and its parent's run differ in {', '.join(more)}, too: the plan does not say so")
    return told


def _validated_otherwise(found: PlanRuns) -> list[str]:
    """Return a warning for runs with other validation questions than the base or HEAD."""
    reference = found.outcomes.get(found.base or HEAD)
    if reference is None:
        return []
    others = [name for name, it in found.outcomes.items() if it.validation_set != reference.validation_set]
    if not others:
        return []
    return [f"{', '.join(others)} have other validation questions than '{found.base or HEAD}': their rank says nothing"]


def _gate(name: str, plan: Experiment, outcome: Outcome, paired: pd.DataFrame | None) -> Gate | None:
    """Return the accept rule and what was measured. Raises `LeverlabError` when its metric was not."""
    if plan.plan.accept is None:
        return None
    rule = GateParams.model_validate(plan.plan.accept)
    section = rule.metric.partition(".")[0]
    if section == OVER_PARENT and paired is None:
        return None
    measured = dict(outcome.measured)
    if paired is not None:
        measured[OVER_PARENT] = {
            f"shots_{row['shots']}": {c: row[c] for c in OVER_PARENT_COLUMNS} for _, row in paired.iterrows()
        }
    try:
        if section == "comparisons":  # seconds of work, so only for those that ask
            answers = outcome.run.answers
            measured["comparisons"] = comparison_metrics(comparisons(answers, subject_of(set(answers["method"]))))
        return evaluate_gates({"accept": rule}, measured)[0]
    except LeverlabError as error:
        raise LeverlabError(f"plan '{name}': {error}") from None


def _test(outcome: Outcome) -> dict[int, float]:
    answers = outcome.run.answers[outcome.run.answers["method"] == METHOD]
    return {int(str(shots)): float(scores.mean()) for shots, scores in answers.groupby("shots")["vqa_accuracy"]}
