"""All plans with their state and verdict."""

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc.repo import Repo
from rich.table import Table
from rich.text import Text
from ruamel.yaml import YAML

from leverlab.pipeline.answers_of import experiments, flat
from leverlab.pipeline.plans import load_plan, plan_names
from leverlab.pipeline.resolved import dvc_errors

LEDGER = Path("docs/plans.md")
RAN, QUEUED, NEVER, STALE = "ran", "queued", "never", "stale"
LEGEND = (
    "ran: its experiment is here, or docs/plans.md has its verdict; stale: its experiment has other params than the "
    "plan says now; verdicts: docs/plans.md, by `leverlab plan ledger --write`"
)
SEVERAL = "several sections"


@dataclass(frozen=True)
class Listed:
    """A plan. `group`: the section of params that it changes, or `SEVERAL`. `state`: ran, queued, never or stale.

    `verdict` and `accepted` are those of docs/plans.md, empty where it has none.
    """

    plan: str
    title: str
    group: str
    state: str
    verdict: str
    accepted: str


def list_plans(root: Path, base: str | None = None) -> list[Listed]:
    """Return all plans of the repository at `root`, on the plan `base`, by group and name.

    Raises `LeverlabError` for a file that is not a plan, and when DVC cannot read its experiments.
    """
    ran, queued, verdicts = experiments(root), _queued(root), _verdicts(root / LEDGER)
    found = []
    for name in plan_names(root):
        plan = load_plan(root, name)
        experiment = name if base in (None, name) else f"{base}-{name}"
        verdict, accepted = verdicts.get(name, ("", ""))
        if experiment in queued:
            state = QUEUED
        elif experiment in ran:
            params = [_params_at(root, commit) for commit in ran[experiment]]
            state = RAN if any(_has(one, plan.overrides) for one in params) else STALE
        else:
            state = RAN if verdict else NEVER
        sections = {key.partition(".")[0] for key in plan.overrides}
        group = next(iter(sections)) if len(sections) == 1 else SEVERAL
        found.append(Listed(name, plan.title, group, state, verdict, accepted))
    return sorted(found, key=lambda listed: (listed.group == SEVERAL, listed.group, listed.plan))


def table(plans: list[Listed]) -> Table:
    """Return the plans as a table to print, a line between groups."""
    shown = Table("changes", "plan", "title", "state", "verdict", "accepted", caption=LEGEND, caption_justify="left")
    for place, listed in enumerate(plans):
        first = place == 0 or plans[place - 1].group != listed.group
        last = place + 1 == len(plans) or plans[place + 1].group != listed.group
        cells = (listed.group if first else "", listed.plan, listed.title, listed.state)
        shown.add_row(*map(Text, (*cells, listed.verdict, listed.accepted)), end_section=last)
    return shown


def _queued(root: Path) -> set[str]:
    """Return the names of the experiments in DVC's queue."""
    with dvc_errors("DVC cannot read its queue"), Repo(str(root)) as repo:
        return {entry.name for entry in repo.experiments.celery_queue.stash.stash_revs.values() if entry.name}


def _params_at(root: Path, commit: str) -> Mapping[str, Any]:
    """Return the leaves of params.yaml at a commit by dotted key; none where it has no such file."""
    command = ["git", "show", f"{commit}:./params.yaml"]
    done = subprocess.run(command, cwd=root, capture_output=True, check=False)
    data = YAML(typ="safe").load(done.stdout.decode()) if done.returncode == 0 else {}
    return flat(data or {})


def _has(params: Mapping[str, Any], overrides: Mapping[str, Any]) -> bool:
    """Return whether a run with `params` (leaves) had all `overrides`."""
    return all(params.get(key) == value and key in params for key, value in flat(overrides).items())


def _verdicts(ledger: Path) -> dict[str, tuple[str, str]]:
    """Return verdict and acceptance by plan of the first table of docs/plans.md; empty where there is no such file."""
    if not ledger.exists():
        return {}
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in ledger.read_text(encoding="utf-8").partition("## Figures")[0].splitlines()
        if line.startswith("|")
    ]
    if not rows or not {"plan", "verdict", "accepted"} <= set(rows[0]):
        return {}
    places = [rows[0].index(column) for column in ("plan", "verdict", "accepted")]
    cells = [[row[place] for place in places] for row in rows[2:] if len(row) == len(rows[0])]
    return {plan: (verdict, accepted) for plan, verdict, accepted in cells}
