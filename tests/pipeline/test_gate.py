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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "holds no gate"),
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


def test_no_report_yet(gates: Callable[[Any], None], command_line: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = command_line("gate")
    assert code == 1
    assert "does not exist; run dvc repro report" in err
