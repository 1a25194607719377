"""No message advises to delete a user's file."""

import ast
import re
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "leverlab"

# modules whose messages speak of files that leverlab itself wrote: outs, resume states, caches
OF_OWN_FILES = {
    "csvfile.py",
    "lm/loop.py",
    "lm/runs.py",
    "report/clarify_export.py",
    "report/clarify_inputs.py",
    "report/exported.py",
    "report/inputs.py",
    "selector/encoders.py",
    "training/resume.py",
    "vlm/cache.py",
}
ADVICE = re.compile(r"\b(delete|remove) (it|them|its|the (file|folder))\b|; delete\b", re.IGNORECASE)


def advising(text: str) -> list[str]:
    """Return the advice to delete in the strings of a module, docstrings aside."""
    tree = ast.parse(text)
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    strings = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in documentation]
    return [node.value for node in strings if isinstance(node.value, str) and ADVICE.search(node.value)]


def test_no_advice_to_delete_a_users_file() -> None:
    found = {path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py") if advising(path.read_text())}
    assert found <= OF_OWN_FILES


def test_the_scan_finds_advice() -> None:
    assert advising('"""delete it"""\nraise E(f"{path} is damaged; delete it and run again")') == [
        " is damaged; delete it and run again"
    ]
    assert advising('"""Doc."""\nx = "replace or remove the row"') == []
