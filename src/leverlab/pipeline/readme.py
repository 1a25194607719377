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
    readme = _read(root / "README.md")
    return readme == with_table(readme, _read(root / "reports/tables/accuracy.md"))


def write(root: Path) -> None:
    """Put the report's accuracy table into README.md."""
    path = root / "README.md"
    path.write_text(with_table(_read(path), _read(root / "reports/tables/accuracy.md")), encoding="utf-8")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LeverlabError(f"{path} cannot be read ({error}); restore it with git, or run dvc repro report") from None
