"""What the ledger reads of runs: answers, the validation accuracy of the chosen checkpoints, other figures, seconds."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from leverlab.config.base import read_yaml
from leverlab.errors import LeverlabError
from leverlab.evaluation.summary import check_answers, metrics
from leverlab.pipeline.answers_of import Run, commit_of, experiments, params_of, questions_digest, read_run
from leverlab.pipeline.plans import Experiment, load_experiment, load_plan, plan_names
from leverlab.report.inputs import CURVE_COLUMNS, read_checkpoints, read_csv, read_findings
from leverlab.report.training import training_metrics

METHOD = "grpo"
HEAD = "HEAD"  # the run of params.yaml as it is
CHECKPOINTS = "models/best/checkpoints.csv"
HEALTH = "reports/health.json"
VALIDATION_SET = "data/prepared/val.parquet"
LOCK = "dvc.lock"
STAGE = "grpo@{seed}"
PROVENANCE = f"provenance/{STAGE}.json"
CURVES = {
    "sft": "models/sft/{seed}/metrics.csv",
    "rce": "models/rce/{seed}/metrics.csv",
    "sft_control": "models/grpo/{seed}/sft_control/metrics.csv",
    "grpo": "models/grpo/{seed}/grpo/metrics.csv",
}


@dataclass(frozen=True)
class Outcome:
    """A run and what it measured.

    validation: by seed, the validation accuracy of the chosen GRPO checkpoint, in [0, 1].
    validation_set: a digest of the validation questions, None when they cannot be read.
    measured: what accept rules may ask for, as nested mappings: reports/metrics.json, made again from the answers,
        `chosen`, and, where their files can be read, `training` and `health`.
    seconds: of the stage grpo over all seeds, None unless each seed has a record with the params of its run.
    """

    run: Run
    validation: Mapping[int, float]
    validation_set: str | None = None
    measured: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None

    @property
    def accuracy(self) -> float:
        """The validation accuracy, as the mean over seeds."""
        return fmean(self.validation.values())


@dataclass(frozen=True)
class PlanRuns:
    """All plans by name, on their base; `outcomes` by name of the experiment; `unfit`: why a plan has no experiment."""

    base: str | None
    plans: Mapping[str, Experiment]
    outcomes: Mapping[str, Outcome]
    unfit: Mapping[str, str]


def read_plans(root: Path, base: str | None = None) -> PlanRuns:
    """Return all plans on `base`, and the outcomes of those that ran.

    Plans stand on params.yaml of HEAD: an experiment in the workspace leaves its own params there.
    `HEAD` is among the outcomes when a plan that ran is judged against params.yaml as it is.
    Raises `LeverlabError` when none ran, when the base did not, and as `read_outcome`.
    """
    if base is not None:
        load_plan(root, base)
    plans, unfit, params = {}, {}, params_of(root, HEAD)
    for name in plan_names(root):
        try:
            plans[name] = load_experiment(root, name, base, params)
        except LeverlabError as error:
            unfit[name] = str(error)
    known = experiments(root)
    ran = [plan for plan in plans.values() if plan.name in known]
    on_base = "" if base is None else f" --base {base}"
    if not ran:
        raise LeverlabError(f"no plan has run yet: run one with `leverlab plan run NAME{on_base}`")
    if base is not None and base not in known:
        raise LeverlabError(
            f"the base '{base}' has not run, and plans on it are judged against it: run it with "
            f"`leverlab plan run {base}`"
        )
    outcomes = {plan.name: read_outcome(root, plan.name, known) for plan in ran}
    if base is None and any(plan.parent is None for plan in ran):
        outcomes[HEAD] = read_outcome(root, HEAD, {})
    return PlanRuns(base, plans, outcomes, unfit)


def read_outcomes(root: Path, names: Sequence[str]) -> list[Outcome]:
    """Return the outcomes of experiments or Git revisions; an experiment goes before a revision of the same name.

    Raises `LeverlabError` as `read_outcome`.
    """
    known = experiments(root)
    return [read_outcome(root, name, known) for name in names]


def read_outcome(root: Path, name: str, known: Mapping[str, Sequence[str]]) -> Outcome:
    """Return the outcome of a run. known: the commits of the experiments, by name.

    Raises `LeverlabError` for the name of several experiments, as `read_run`, for unsound answers, and when the table
    of checkpoints cannot be read.
    """
    paths = (CHECKPOINTS, HEALTH, VALIDATION_SET, LOCK, PROVENANCE, *CURVES.values())
    run = read_run(root, name, commit_of(name, known), paths)
    if CHECKPOINTS not in run.files:
        raise LeverlabError(
            f"{CHECKPOINTS} of '{name}' is not in DVC's cache, and no remote has it: get it with `dvc pull` or "
            f"`dvc exp pull`, or run '{name}' again"
        )
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for path, content in run.files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        try:
            return _outcome(run, folder)
        except LeverlabError as error:
            raise LeverlabError(f"run '{name}': {str(error).replace(f'{folder}/', '')}") from None


def _outcome(run: Run, folder: Path) -> Outcome:
    """Return the outcome of a run whose files lie in `folder`."""
    check_answers(run.answers)
    checkpoints = read_checkpoints(folder / CHECKPOINTS)
    chosen = checkpoints[checkpoints["chosen"] & (checkpoints["method"] == METHOD)]
    if chosen.empty:
        raise LeverlabError(f"{CHECKPOINTS} has no checkpoint of {METHOD}")
    findings = read_findings(folder / HEALTH) if HEALTH in run.files else []
    return Outcome(
        run=run,
        validation=dict(zip(chosen["seed"].tolist(), chosen["val_accuracy"].tolist(), strict=True)),
        validation_set=questions_digest(run.files.get(VALIDATION_SET, b"")),
        measured=metrics(run.answers) | training_metrics(checkpoints, _curves(run, folder), findings),
        seconds=_seconds(run, folder),
    )


def _curves(run: Run, folder: Path) -> dict[str, dict[int, pd.DataFrame]]:
    """Return the curves of the methods that have one for every seed."""
    seeds = run.params.get("seeds", [])
    return {
        method: {seed: read_csv(folder / path.format(seed=seed), CURVE_COLUMNS) for seed in seeds}
        for method, path in CURVES.items()
        if all(path.format(seed=seed) in run.files for seed in seeds)
    }


def _seconds(run: Run, folder: Path) -> float | None:
    """Return the seconds of the grpo stage over all seeds.

    A stage that DVC took from its cache leaves the record of an earlier run behind, maybe with other params: no figure.
    """
    stages = read_yaml(folder / LOCK).get("stages", {}) if LOCK in run.files else {}
    total = 0.0
    for seed in run.params.get("seeds", []):
        path = PROVENANCE.format(seed=seed)
        try:
            record = json.loads(run.files[path])
            recorded, seconds = record["params"], float(record["seconds"])
            sections = stages[STAGE.format(seed=seed)]["params"]
        except (KeyError, TypeError, ValueError):
            return None
        if recorded != {f"{file}:{key}": value for file, keys in sections.items() for key, value in keys.items()}:
            return None
        total += seconds
    return total or None
