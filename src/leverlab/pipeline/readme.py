"""The result tables of a README, taken from the report, and what DVC prints: neither is typed."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from leverlab.errors import LeverlabError

COLUMNS = 120  # of the terminal that the README shows
METRICS = "dvc metrics show reports/headline.json"
# No dates, no digests of files, no metrics that two pipelines share; of the accuracies, GRPO's at four shots.
EXPERIMENTS = "dvc exp show --only-changed --drop 'Created|acc_[123]|(sft|control|oracle)_4|.*/'"


def with_table(readme: str, table: str, name: str = "accuracy") -> str:
    """Return the text of the README with `table` between the markers of `name`.

    Raises `LeverlabError` without markers.
    """
    block = re.compile(rf"(<!-- {re.escape(name)}: [^\n]*-->\n)(.*?)(<!-- /{re.escape(name)} -->)", re.DOTALL)
    if not block.search(readme):
        raise LeverlabError(f"README.md has no '<!-- {name}: … -->' and '<!-- /{name} -->' markers to write between")
    return block.sub(lambda found: f"{found[1]}{table.strip()}\n{found[3]}", readme)


def is_current(folder: Path) -> bool:
    """Return whether the README of a folder holds what the report stage wrote last; experiments are not looked at."""
    readme = _read(folder / "README.md")
    return readme == _with_blocks(readme, folder, ())


def write(folder: Path, experiments: Sequence[str] = ()) -> None:
    """Put the report's tables into the README of a folder, and what DVC prints: the root's, or that of a recipe.

    experiments: two names, whose comparison is shown between the markers of `experiments`; without them what is there
    stays, for a clone has no experiments of its own. Raises `LeverlabError` for another number of names, for a README
    without markers, and with the words of DVC where it fails.
    """
    if len(experiments) not in {0, 2}:
        raise LeverlabError(f"The README compares two experiments, not {len(experiments)}; see dvc exp list")
    path = folder / "README.md"
    path.write_text(_with_blocks(_read(path), folder, experiments), encoding="utf-8")


def printed(commands: Sequence[str], folder: Path) -> str:
    """Return a block of Markdown with commands of DVC and what they print in `folder`, on 120 columns."""
    lines = []
    for command in commands:
        words = [sys.executable, "-m", *shlex.split(command)]
        environment = os.environ | {"COLUMNS": str(COLUMNS), "NO_COLOR": "1"}
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise LeverlabError(f"'{command}' failed in {folder}: {done.stderr.strip() or done.stdout.strip()}")
        lines += [f"$ {command}", *(line.rstrip() for line in done.stdout.splitlines()), ""]
    return "\n".join(["```text", *lines[:-1], "```"])


def _with_blocks(readme: str, folder: Path, experiments: Sequence[str]) -> str:
    """Return the README with reports/tables/<name>.md, or what DVC prints, between the markers of each name."""
    names = re.findall(r"<!-- (\w+): [^\n]*-->", readme)
    if not names:
        raise LeverlabError(f"{folder / 'README.md'} has no markers '<!-- name: … -->' to write a table between")
    for name in names:
        if name == "metrics":
            _read(folder / "reports/headline.json")  # where it is absent, DVC prints an empty table
            block = printed([METRICS], folder)
        elif name != "experiments":
            block = _read(folder / "reports/tables" / f"{name}.md")
        elif experiments:
            block = printed([EXPERIMENTS, f"dvc metrics diff {shlex.join(experiments)}"], folder)
        else:
            continue
        readme = with_table(readme, block, name)
    return readme


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LeverlabError(f"{path} cannot be read ({error}); restore it with git, or run dvc repro report") from None
