"""`leverlab gate`: passes when all rules pass, fails when one does not, and refuses what is no verdict."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

GATE = {"name": "lift", "metric": "lift.over_sft", "threshold": 0.12, "direction": "at_least", "value": 0.125}


@pytest.fixture(name="gates")
def write_gates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "reports").mkdir()
    monkeypatch.chdir(tmp_path)

    def write(gates: Any) -> None:
        text = gates if isinstance(gates, str) else json.dumps(gates)
        (tmp_path / "reports/gates.json").write_text(text)

    return write


def test_all_pass(gates: Callable[[Any], None], command_line: Callable[..., tuple[int, str, str]]) -> None:
    gates([GATE | {"passed": True}])
    code, out, _ = command_line("gate")
    assert code == 0
    for part in ("lift.over_sft", "at least 0.12", "0.125", "pass"):
        assert part in out


@pytest.mark.parametrize("value", [0.1, None])
def test_one_fails(gates: Callable[[Any], None], command_line: Callable[..., tuple[int, str, str]], value: Any) -> None:
    gates([GATE | {"passed": True}, GATE | {"name": "other", "value": value, "passed": False}])
    code, out, _ = command_line("gate")
    assert code == 1
    assert "FAIL" in out
    assert ("not a number" in out) == (value is None)


def test_a_gate_that_is_off_is_named_and_fails_nothing(
    gates: Callable[[Any], None], command_line: Callable[..., tuple[int, str, str]]
) -> None:
    found = [GATE | {"passed": True}, {"name": "q5_0_parity", "off": True}]
    gates(found)
    code, out, _ = command_line("gate")
    assert code == 0
    (line,) = [line for line in out.splitlines() if "q5_0_parity" in line]
    assert "off" in line
    code, out, _ = command_line("gate", "--json")
    assert (code, json.loads(out)) == (0, found)
    gates([GATE | {"passed": False}, found[1]])
    assert command_line("gate")[0] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "holds no gate"),
        ([{"name": "g", "off": True}], "holds no gate that is on"),
        ([{"name": "g", "off": False}], "is damaged"),
        ("[{", "is damaged"),
        ([GATE], "is damaged"),
        ([GATE | {"passed": "yes"}], "is damaged"),
        ({}, "is damaged"),
    ],
)
def test_what_is_no_verdict_is_refused(
    gates: Callable[[Any], None], command_line: Callable[..., tuple[int, str, str]], content: Any, message: str
) -> None:
    gates(content)
    code, _, err = command_line("gate")
    assert code == 1
    assert "gates.json" in err
    assert message in err
    assert "Traceback" not in err


def test_json(gates: Callable[[Any], None], command_line: Callable[..., tuple[int, str, str]]) -> None:
    """As the file has them, with the same code."""
    found = [GATE | {"passed": True}, GATE | {"name": "other", "value": None, "passed": False}]
    gates(found)
    code, out, _ = command_line("gate", "--json")
    assert (code, json.loads(out)) == (1, found)


def test_no_report_yet(gates: Callable[[Any], None], command_line: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = command_line("gate")
    assert code == 1
    assert "does not exist; run dvc repro report" in err


def test_the_gates_of_a_recipe(
    gates: Callable[[Any], None], command_line: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    """Those of the folder alone count, whatever the repository's say, and each way round."""
    reports = tmp_path / "recipes/mine/reports"
    reports.mkdir(parents=True)
    good, bad = GATE | {"passed": True}, GATE | {"name": "mine", "value": 0.1, "passed": False}
    for in_root, in_recipe, code in (([good], [bad], 1), ([bad], [good], 0)):
        gates(in_root)
        (reports / "gates.json").write_text(json.dumps(in_recipe))
        assert command_line("gate", "recipes/mine")[0] == code
        assert command_line("gate")[0] == 1 - code


def test_a_recipe_without_a_report(
    gates: Callable[[Any], None], command_line: Callable[..., tuple[int, str, str]]
) -> None:
    """The repository's gates do not stand in for its own, and the sentence names where to run it."""
    gates([GATE | {"passed": True}])
    Path("recipes/mine").mkdir(parents=True)
    code, _, err = command_line("gate", "recipes/mine")
    assert code == 1
    assert "recipes/mine/reports/gates.json does not exist; run dvc repro report in recipes/mine" in err
