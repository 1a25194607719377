"""The README's result table, taken from the report and never typed."""

import re
from pathlib import Path

from leverlab.errors import LeverlabError

_BLOCK = re.compile(r"(<!-- accuracy: [^\n]*-->\n)(.*?)(<!-- /accuracy -->)", re.DOTALL)


def with_table(readme: str, table: str) -> str:
    """Return the text of the README with `table` between its markers. Raises `LeverlabError` without markers."""
    if not _BLOCK.search(readme):
        raise LeverlabError("README.md has no '<!-- accuracy: … -->' and '<!-- /accuracy -->' markers to write between")
    return _BLOCK.sub(lambda found: f"{found[1]}{table.strip()}\n{found[3]}", readme)


def is_current(root: Path) -> bool:
    """Return whether README.md holds the table that the report stage wrote last."""
    readme = (root / "README.md").read_text(encoding="utf-8")
    return readme == with_table(readme, (root / "reports/tables/accuracy.md").read_text(encoding="utf-8"))


def write(root: Path) -> None:
    """Put the report's accuracy table into README.md."""
    path = root / "README.md"
    table = (root / "reports/tables/accuracy.md").read_text(encoding="utf-8")
    path.write_text(with_table(path.read_text(encoding="utf-8"), table), encoding="utf-8")
