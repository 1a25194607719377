"""Plans: named sets of params overrides with a hypothesis and an accept rule, kept as `plans/NAME.yaml`.

A plan stands on its parent: the parent's overrides come first, its own after them, and it is judged against the
parent's run. Without a parent it stands on `params.yaml` as it is. A base, another plan, may be put under all of that:
the same ideas at another size.
"""

import copy
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator

from leverlab.config.base import Section, parse_section, read_params, read_yaml
from leverlab.config.report import GateParams
from leverlab.errors import LeverlabError
from leverlab.nearest import did_you_mean
from leverlab.pipeline.gate_names import plan_metrics, unknown_metric
from leverlab.pipeline.params import check_params
from leverlab.worktree import git

# texts that -S takes as they are; all others are quoted
_PLAIN_TEXT = re.compile(r"(?!(?:true|false|null|nan|inf)$)[A-Za-z_/][A-Za-z0-9_/.\- ]*", re.IGNORECASE)
_DATA = {"data", "vlm", "prepare", "rl_data"}  # sections that decide what is learned from …
_LEARNING = {"selector", "reward", "sft", "rce", "grpo", "select_best"}  # … and those that decide how


class Plan(Section):
    """One plan: `overrides` of dotted params keys, and a rule by which its hypothesis is accepted.

    `accept` bounds a dotted key of reports/metrics.json, or `over_parent.shots_<k>.<column>`: the paired comparison of
    GRPO with the parent's, columns as in `leverlab plan ledger`.
    """

    title: str = Field(min_length=1)
    hypothesis: str = Field(min_length=1)
    parent: str | None = None
    overrides: dict[str, Any] = Field(min_length=1)
    accept: dict[str, Any] | None = None

    @field_validator("accept")
    @classmethod
    def _accept_is_a_rule(cls, accept: dict[str, Any] | None) -> dict[str, Any] | None:
        if accept is not None:
            parse_section(GateParams, "accept", {"accept": accept}, "the plan")
        return accept


@dataclass(frozen=True)
class Experiment:
    """A plan on its base: `name` of its DVC experiment, and `parent`, that of the one that it is judged against.

    `overrides` are all that differ from params.yaml, `changed` what differs from the parent's params: by dotted key the
    value before and after, None where there is none.
    `parent` is None for a plan that is judged against params.yaml itself.
    """

    name: str
    plan: Plan
    parent: str | None
    overrides: Mapping[str, Any]
    changed: Mapping[str, tuple[Any, Any]]

    @property
    def warning(self) -> str | None:
        """A sentence when data and learning change at once: what made the difference will not be known."""
        sections = {key.partition(".")[0] for key in self.changed}
        if not (sections & _DATA and sections & _LEARNING):
            return None
        return (
            f"plan '{self.name}' changes data ({', '.join(sorted(sections & _DATA))}) and learning "
            f"({', '.join(sorted(sections & _LEARNING))}) at once: a difference will have two possible reasons"
        )


def plan_names(root: Path) -> list[str]:
    """Return the names of all plans of the repository at `root`, sorted."""
    return sorted(path.stem for path in (root / "plans").glob("*.yaml"))


def load_plan(root: Path, name: str) -> Plan:
    """Return plan `name`. Raises `LeverlabError` when there is none or the file is not a plan."""
    path = root / "plans" / f"{name}.yaml"
    if not path.exists():
        raise LeverlabError(f"there is no plan '{name}'{did_you_mean(name, plan_names(root), '`leverlab plan list`')}")
    data = read_yaml(path)
    try:
        return Plan.model_validate(data)
    except ValidationError as error:
        problems = "; ".join(map(_problem, error.errors()))
        raise LeverlabError(f"{path} is not a plan ({problems})") from None


def _problem(error: Mapping[str, Any]) -> str:
    key = ".".join(map(str, error["loc"]))
    hint = did_you_mean(key, Plan.model_fields) if error["type"] == "extra_forbidden" else ""
    return f"{key}: {error['msg']}{hint}"


def load_experiment(
    root: Path, name: str, base: str | None = None, params: Mapping[str, Any] | None = None
) -> Experiment:
    """Return plan `name` on `base`, another plan, checked against `params`, by default those of params.yaml.

    Raises the errors of `load_plan` and `overridden`, and `LeverlabError` for parents that run in a circle, for a plan
    that changes nothing of its parent, and for an accept rule on a metric that its run does not measure.
    """
    params, plan = params or read_params(root / "params.yaml"), load_plan(root, name)
    below = _inherited(root, plan.parent, base)
    overrides = below | plan.overrides if name != base else plan.overrides
    before = params if not below or name == base else overridden(params, below)
    after = overridden(params, overrides)
    if before == after:
        raise LeverlabError(f"plan '{name}' changes nothing of its parent '{plan.parent or base}' (no-op plan)")
    if plan.accept is not None:
        problem = unknown_metric(plan.accept["metric"], plan_metrics(after["eval"]["shots"]))
        if problem is not None:
            raise LeverlabError(f"plan '{name}': its accept rule {problem}")
    own = name if base in (None, name) else f"{base}-{name}"
    return Experiment(own, plan, _parent(name, plan, base), overrides, _different(before, after))


def _parent(name: str, plan: Plan, base: str | None) -> str | None:
    if base is None or name == base:
        return plan.parent
    return base if plan.parent in (None, base) else f"{base}-{plan.parent}"


def _inherited(root: Path, parent: str | None, base: str | None) -> dict[str, Any]:
    """Return the overrides below a plan: those of the base, then those of its parents, the nearest last."""
    chain: list[str] = []
    while parent is not None and parent != base:
        if parent in chain:
            raise LeverlabError(f"the plans {', '.join(chain)} are parents of each other in a circle")
        chain.append(parent)
        parent = load_plan(root, parent).parent
    found: dict[str, Any] = {}
    for name in ([] if base is None else [base]) + chain[::-1]:
        found |= load_plan(root, name).overrides
    return found


def _different(before: Any, after: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Return the values that differ by their dotted keys."""
    if not isinstance(before, Mapping) or not isinstance(after, Mapping):
        return {} if before == after else {prefix: (before, after)}
    dot = f"{prefix}." if prefix else ""
    found: dict[str, tuple[Any, Any]] = {}
    for key in sorted(before.keys() | after.keys()):
        found |= _different(before.get(key), after.get(key), f"{dot}{key}")
    return found


def _keys(data: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return all dotted keys of nested params."""
    found = []
    for key, value in data.items():
        found.append(f"{prefix}{key}")
        if isinstance(value, Mapping):
            found += _keys(value, f"{prefix}{key}.")
    return found


def overridden(params: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of `params` with the dotted keys of `overrides` replaced.

    Raises `LeverlabError` for a key that params do not have, for a result that is not valid, and when nothing changes
    (a no-op plan would be run, believed and reported).
    """
    changed = copy.deepcopy(dict(params))
    for dotted, value in overrides.items():
        *folders, leaf = dotted.split(".")
        section: Any = changed
        for folder in folders:
            section = section.get(folder) if isinstance(section, dict) else None
        if not isinstance(section, dict) or leaf not in section:
            hint = did_you_mean(dotted, _keys(params), "params.yaml")
            raise LeverlabError(f"the override '{dotted}' names no key of params.yaml{hint}")
        if isinstance(value, Mapping) and isinstance(section[leaf], Mapping) and value.keys() != section[leaf].keys():
            raise LeverlabError(
                f"the override '{dotted}' has other keys than params.yaml, and DVC would merge both; override its keys "
                "one by one"
            )
        section[leaf] = value
    check_params(changed, "the plan's params")
    if changed == params:
        raise LeverlabError(
            "a plan that changes nothing is no experiment (no-op plan): every override equals params.yaml"
        )
    return changed


def experiment_command(experiment: Experiment, queue: bool = False) -> list[str]:
    """Return the DVC command that runs an experiment, or puts it into DVC's queue."""
    settings = [part for key, value in experiment.overrides.items() for part in ("-S", f"{key}={_literal(value)}")]
    return ["dvc", "exp", "run", *(["--queue"] if queue else []), "-n", experiment.name, *settings]


def check_identity(root: Path, queue: bool) -> None:
    """Raise `LeverlabError` when DVC needs a Git identity that is not configured.

    DVC commits what differs from HEAD before it runs an experiment there, and every experiment that it queues.
    """
    needed = queue or git("-C", str(root), "diff", "--name-only", "HEAD")
    if needed and not all(git("-C", str(root), "config", key) for key in ("user.name", "user.email")):
        raise LeverlabError(
            "DVC commits this experiment to Git, and Git has no identity; configure one: git config user.name "
            "'Your Name' && git config user.email you@example.org"
        )


def ran_on_head(root: Path, experiment: Experiment) -> bool:
    """Return whether DVC keeps an experiment of this name on HEAD; it runs no second one."""
    head = git("-C", str(root), "rev-parse", "HEAD") or ""
    return (
        git("-C", str(root), "rev-parse", "-q", "--verify", f"refs/exps/{head[:2]}/{head[2:]}/{experiment.name}")
        is not None
    )


def as_dict(experiment: Experiment) -> dict[str, Any]:
    """Return an experiment as plain data for JSON."""
    return {
        "plan": experiment.name,
        "title": experiment.plan.title,
        "hypothesis": experiment.plan.hypothesis,
        "parent": experiment.parent,
        "accept": experiment.plan.accept,
        "changes": {key: {"before": old, "after": new} for key, (old, new) in experiment.changed.items()},
        "warning": experiment.warning,
        "command": shlex.join(experiment_command(experiment)),
    }


def render(experiment: Experiment) -> str:
    """Return an experiment as text to print; the last line is the command that runs it."""
    plan = experiment.plan
    lines = [plan.title, plan.hypothesis, f"judged against: {experiment.parent or 'params.yaml as it is'}"]
    if plan.accept is not None:
        rule = GateParams.model_validate(plan.accept)
        sign, bound = ("≥", rule.at_least) if rule.at_least is not None else ("≤", rule.at_most)
        lines.append(f"accept: {rule.metric} {sign} {bound:g}")
    lines += ["changes:", *(f"  {key}: {_text(old)} -> {_text(new)}" for key, (old, new) in experiment.changed.items())]
    lines += [f"warning: {experiment.warning}"] if experiment.warning else []
    return "\n".join([*lines, shlex.join(experiment_command(experiment))])


def _text(value: Any) -> str:
    """Return a value as it is written on one line of a YAML file."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _literal(value: Any) -> str:
    """Return `value` in the grammar of DVC's -S option (Hydra's overrides)."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    if isinstance(value, list):
        return "[" + ",".join(_literal(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, str) and not _PLAIN_TEXT.fullmatch(value):
        return "'" + value.replace("'", "\\'") + "'"
    return str(value)
