"""Plans: named sets of params overrides with a hypothesis and an accept rule, kept as `plans/NAME.yaml`."""

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator

from leverlab.config.base import Section, parse_section, read_yaml
from leverlab.config.report import GateParams
from leverlab.errors import LeverlabError
from leverlab.pipeline.params import check_params

# texts that -S takes as they are; all others are quoted
_PLAIN_TEXT = re.compile(r"(?!(?:true|false|null|nan|inf)$)[A-Za-z_/][A-Za-z0-9_/.\- ]*", re.IGNORECASE)


class Plan(Section):
    """One plan: `overrides` of dotted params keys, `accept` a bound on a dotted key of reports/metrics.json."""

    title: str = Field(min_length=1)
    hypothesis: str = Field(min_length=1)
    overrides: dict[str, Any] = Field(min_length=1)
    accept: dict[str, Any] | None = None

    @field_validator("accept")
    @classmethod
    def _accept_is_a_rule(cls, accept: dict[str, Any] | None) -> dict[str, Any] | None:
        if accept is not None:
            parse_section(GateParams, "accept", {"accept": accept}, "the plan")
        return accept


def plan_names(root: Path) -> list[str]:
    """Return the names of all plans of the repository at `root`, sorted."""
    return sorted(path.stem for path in (root / "plans").glob("*.yaml"))


def load_plan(root: Path, name: str) -> Plan:
    """Return plan `name`. Raises `LeverlabError` when there is none or the file is not a plan."""
    path = root / "plans" / f"{name}.yaml"
    if not path.exists():
        raise LeverlabError(f"there is no plan '{name}'; there are {', '.join(plan_names(root))}")
    data = read_yaml(path)
    try:
        return Plan.model_validate(data)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise LeverlabError(f"{path} is not a plan ({problems})") from None


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
            raise LeverlabError(f"the override '{dotted}' names no key of params.yaml")
        section[leaf] = value
    check_params(changed, "the plan's params")
    if changed == params:
        raise LeverlabError(
            "a plan that changes nothing is no experiment (no-op plan): every override equals params.yaml"
        )
    return changed


def experiment_command(name: str, plan: Plan) -> list[str]:
    """Return the DVC command that runs `plan` as experiment `name`."""
    settings = [part for key, value in plan.overrides.items() for part in ("-S", f"{key}={_literal(value)}")]
    return ["dvc", "exp", "run", "-n", name, *settings]


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
