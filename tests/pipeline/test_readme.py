"""What the README tells a reader to type resolves, what it links to exists, and its numbers are the report's."""

import io
import re
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from leverlab.errors import LeverlabError
from leverlab.pipeline import readme
from leverlab.pipeline.readme import is_current, with_table

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TABLES = {".": "accuracy.md", "recipes/clarify": "main.md"}
BIN = Path(sys.executable).parent


def commands(tool: str) -> list[list[str]]:
    """Return the commands of `tool` in the README's code blocks, as words, comments left out."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith(f"{tool} ")]
    return [shlex.split(line, comments=True) for line in lines]


def test_the_readme_names_commands_of_every_tool() -> None:
    """Guards the tests below: a changed layout must not leave them with nothing to check."""
    assert {tool for tool in ("make", "dvc", "leverlab") if commands(tool)} == {"make", "dvc", "leverlab"}


@pytest.mark.parametrize("command", commands("make"), ids=shlex.join)
def test_make_targets_exist(command: list[str]) -> None:
    """`make -n` of an unknown target fails."""
    done = subprocess.run([*command, "-n"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", commands("leverlab"), ids=shlex.join)
def test_leverlab_commands_resolve(command: list[str]) -> None:
    """Every command is really run, but for those that start training or read what a run leaves."""
    only_help = {"run", "queue", "health", "compare", "ledger", "verify", "select", "predict"} & set(command)
    arguments = [*command[1:], "--help"] if only_help else command[1:]
    done = subprocess.run(
        [sys.executable, "-m", "leverlab.cli", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", commands("dvc"), ids=shlex.join)
def test_dvc_commands_resolve(command: list[str]) -> None:
    """The sub-command and every option of it exist."""
    words = [word for word in command[1:3] if not word.startswith("-")]
    done = subprocess.run([str(BIN / "dvc"), *words, "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:  # the second word was an argument, not a sub-command
        done = subprocess.run(
            [str(BIN / "dvc"), words[0], "--help"], cwd=ROOT, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    for option in (word for word in command if word.startswith("-")):
        assert re.search(rf"(^|[ ,]){option}\b", done.stdout, re.MULTILINE), option


def test_experiments_override_keys_that_exist() -> None:
    """`-S section.key=value` of an unknown key would be refused by DVC only after a while."""
    params = (ROOT / "params.yaml").read_text(encoding="utf-8")
    for command in commands("dvc"):
        for setting in (word for word in command if "=" in word):
            section, key = setting.split("=")[0].split(".")[:2]
            assert re.search(rf"^{section}:.*?\n(?:[ #].*\n|\n)*?  {key}:", params, re.MULTILINE), setting


def test_links_lead_somewhere() -> None:
    """Every relative link and picture of the README is a file of the repository."""
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("folder", [".", "recipes/clarify"])
def test_the_result_tables_are_those_of_the_committed_report(folder: str, tmp_path: Path) -> None:
    """`leverlab readme` ran before the report was committed. The workspace may have the report of another run, with
    other params or on another CPU."""
    for name in ("README.md", "reports/tables", *(["reports/headline.json"] if folder == "." else [])):
        archive = subprocess.run(
            ["git", "archive", "HEAD", f"{folder}/{name}"], cwd=ROOT, capture_output=True, check=True
        ).stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(tmp_path, filter="data")
    assert is_current(tmp_path / folder)
    table = tmp_path / folder / "reports/tables" / TABLES[folder]
    table.write_text(table.read_text(encoding="utf-8").replace("1", "2"), encoding="utf-8")
    assert not is_current(tmp_path / folder)


def test_the_table_goes_between_its_markers() -> None:
    """All else of the text stays; a README without markers is refused."""
    text = "a\n<!-- accuracy: x -->\nold\n<!-- /accuracy -->\nb\n"
    assert with_table(text, "| new |\n") == "a\n<!-- accuracy: x -->\n| new |\n<!-- /accuracy -->\nb\n"
    with pytest.raises(LeverlabError, match="markers"):
        with_table("no markers", "| new |")


def test_experiments_are_written_when_they_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The headline metrics are printed each time; the comparison stays where no experiments are named."""
    monkeypatch.setattr(readme, "printed", lambda commands, folder: f"{folder.name}: {' and '.join(commands)}")
    path = tmp_path / "README.md"
    blocks = "<!-- metrics: x -->\n{}<!-- /metrics -->\n<!-- experiments: x -->\n{}<!-- /experiments -->\n"
    path.write_text(blocks.format("old\n", "old\n"), encoding="utf-8")
    metrics = f"{tmp_path.name}: {readme.METRICS}\n"
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports/headline.json").write_text("{}", encoding="utf-8")
    readme.write(tmp_path)
    assert path.read_text(encoding="utf-8") == blocks.format(metrics, "old\n")
    assert is_current(tmp_path)
    readme.write(tmp_path, ("a b", "c"))
    compared = f"{tmp_path.name}: {readme.EXPERIMENTS} and dvc metrics diff 'a b' c\n"
    assert path.read_text(encoding="utf-8") == blocks.format(metrics, compared)
    with pytest.raises(LeverlabError, match="two experiments, not 1"):
        readme.write(tmp_path, ["a"])


def test_nothing_is_shown_of_a_run_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("<!-- metrics: x -->\n<!-- /metrics -->\n", encoding="utf-8")
    with pytest.raises(LeverlabError, match=r"reports/headline\.json cannot be read .* run dvc repro report"):
        readme.write(tmp_path)
    with pytest.raises(LeverlabError, match=r"'dvc metrics diff a b' failed in .*"):
        readme.printed(["dvc metrics diff a b"], tmp_path)
