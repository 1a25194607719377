"""The result tables of a README, taken from the report and never typed."""

import re
from pathlib import Path

from leverlab.errors import LeverlabError


def with_table(readme: str, table: str, name: str = "accuracy") -> str:
    """Return the text of the README with `table` between the markers of `name`.

    Raises `LeverlabError` without markers.
    """
    block = re.compile(rf"(<!-- {re.escape(name)}: [^\n]*-->\n)(.*?)(<!-- /{re.escape(name)} -->)", re.DOTALL)
    if not block.search(readme):
        raise LeverlabError(f"README.md has no '<!-- {name}: … -->' and '<!-- /{name} -->' markers to write between")
    return block.sub(lambda found: f"{found[1]}{table.strip()}\n{found[3]}", readme)


def is_current(folder: Path) -> bool:
    """Return whether the README of a folder holds the tables that the report stage wrote last."""
    readme = _read(folder / "README.md")
    return readme == _with_tables(readme, folder)


def write(folder: Path) -> None:
    """Put the report's tables into the README of a folder: the root's, or that of a recipe."""
    path = folder / "README.md"
    path.write_text(_with_tables(_read(path), folder), encoding="utf-8")


def _with_tables(readme: str, folder: Path) -> str:
    """Return the README with reports/tables/<name>.md between the markers of each name that it has."""
    names = re.findall(r"<!-- (\w+): [^\n]*-->", readme)
    if not names:
        raise LeverlabError(f"{folder / 'README.md'} has no markers '<!-- name: … -->' to write a table between")
    for name in names:
        readme = with_table(readme, _read(folder / "reports/tables" / f"{name}.md"), name)
    return readme


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LeverlabError(f"{path} cannot be read ({error}); restore it with git, or run dvc repro report") from None
