"""The verdict of the acceptance rules, for a command that fails when one of them does."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from rich.table import Table

from leverlab.errors import LeverlabError
from leverlab.library_errors import reason_of

GATES = Path("reports/gates.json")


class Result(BaseModel):
    """One gate of reports/gates.json; `value` is None for a metric that is not finite."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: str
    metric: str
    threshold: float
    direction: Literal["at_least", "at_most"]
    value: float | None
    passed: bool


class Off(BaseModel):
    """One gate of reports/gates.json that is null in params.yaml: it has no rule, and no verdict."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: str
    off: Literal[True]


def read_gates(root: Path) -> list[Result | Off]:
    """Return the gates in the report of the pipeline at `root`, the repository or a recipe.

    Raises `LeverlabError` when the file is missing or damaged, and when no gate in it is on: nothing would be accepted
    by nobody's rule.
    """
    path = root / GATES
    try:
        gates = TypeAdapter(list[Result | Off]).validate_json(path.read_bytes())
    except FileNotFoundError:
        raise LeverlabError(f"{path} does not exist; run dvc repro report in {root}") from None
    except (OSError, ValidationError) as error:
        problem = reason_of(error)
        raise LeverlabError(f"{path} is damaged ({problem}); run dvc repro report in {root}") from None
    if not any(isinstance(gate, Result) for gate in gates):
        raise LeverlabError(f"{path} holds no gate that is on; add rules to report.gates of {root / 'params.yaml'}")
    return gates


def all_passed(gates: Sequence[Result | Off]) -> bool:
    """Return whether every gate that is on passed."""
    return all(gate.passed for gate in gates if isinstance(gate, Result))


def as_list(gates: Sequence[Result | Off]) -> list[dict[str, object]]:
    """Return the gates as plain data for JSON, as reports/gates.json has them."""
    return [gate.model_dump() for gate in gates]


def table(gates: Sequence[Result | Off]) -> Table:
    """Return the gates as a table to print."""
    shown = Table("gate", "metric", "must be", "is", "result")
    for gate in gates:
        if isinstance(gate, Off):
            shown.add_row(gate.name, "", "", "", "off")
            continue
        value = "not a number" if gate.value is None else f"{gate.value:.4g}"
        rule = f"{gate.direction.replace('_', ' ')} {gate.threshold:g}"
        result = "pass" if gate.passed else "FAIL"
        shown.add_row(gate.name, gate.metric, rule, value, result, style=None if gate.passed else "red")
    return shown
