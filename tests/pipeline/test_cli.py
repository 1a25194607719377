"""The command `leverlab`: what it prints, and that an error is one line and code 1."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import Field

from leverlab.config.base import Section
from leverlab.pipeline import recipe_params

REPOSITORY = Path(__file__).parents[2]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone with params and plans alone; the working directory is a folder below it."""
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "below" / "here").mkdir(parents=True)
    shutil.copy(REPOSITORY / "params.yaml", tmp_path / "params.yaml")
    shutil.copytree(REPOSITORY / "plans", tmp_path / "plans")
    monkeypatch.chdir(tmp_path / "below" / "here")
    return tmp_path


@pytest.fixture
def run(root: Path, command_line: Run) -> Run:
    return command_line


def edit(path: Path, pattern: str, replacement: str) -> None:
    text, count = re.subn(pattern, replacement, path.read_text(), count=1, flags=re.MULTILINE)
    assert count == 1
    path.write_text(text)


def test_params_are_valid(run: Run) -> None:
    assert run("params") == (0, "params.yaml is valid\n", "")
    code, out, _ = run("params", "--json")
    assert (code, json.loads(out)) == (0, {"file": "params.yaml", "valid": True})


def test_bad_params_are_one_line_and_code_1(root: Path, run: Run) -> None:
    edit(root / "params.yaml", r"^  sampler: \w+", "  sampler: nearest")
    code, out, err = run("params")
    assert (code, out) == (1, "")
    assert err.startswith("leverlab: params.yaml: 'prepare.sampler' = 'nearest' is not allowed")
    assert err.count("\n") == 1


def test_missing_params_are_one_line_and_code_1(root: Path, run: Run) -> None:
    (root / "params.yaml").unlink()
    code, out, err = run("params")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "params.yaml does not exist" in err


class Loop(Section):
    lr: float = Field(gt=0)


@pytest.fixture
def recipe(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The params file of a recipe with one section, seen from the working directory."""
    monkeypatch.setattr(recipe_params, "SECTIONS", {"sft": Loop})
    monkeypatch.setattr(recipe_params, "_cross_checks", lambda parsed, where: [])
    folder = root / "below" / "here" / "mine"
    folder.mkdir()
    (folder / "params.yaml").write_text("seeds: [0]\nsft:\n  lr: 0.1\n")
    return folder / "params.yaml"


def test_params_of_a_recipe_are_valid(recipe: Path, root: Path, run: Run) -> None:
    """Whatever the main pipeline's are."""
    (root / "params.yaml").unlink()
    assert run("params", "mine") == (0, "mine/params.yaml is valid\n", "")


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("seeds: [0]\nsft:\n  lr: 0\n", ["'sft.lr' = 0 is not allowed"]),
        ("seeds: [0, 0]\nsft:\n  lr: 1\n  lrr: 1\n", ["unknown key 'sft.lrr'", "names a seed twice"]),
        ("seeds: [0]\n", ["has no section 'sft'"]),
        ("seeds: [0]\nsft:\n  lr: 1\nprepare:\n  size: 2\n", ["unknown section 'prepare'", "named 'size'"]),
    ],
)
def test_bad_params_of_a_recipe(recipe: Path, run: Run, text: str, problems: list[str]) -> None:
    """A line for each problem, which names the file of the recipe."""
    recipe.write_text(text)
    code, out, err = run("params", "mine")
    assert (code, out) == (1, "")
    lines = err.removeprefix("leverlab: ").splitlines()
    assert len(lines) == len(problems)
    for line, problem in zip(lines, problems, strict=True):
        assert line.startswith("mine/params.yaml")
        assert problem in line


def test_params_of_the_recipe_clarify(run: Run) -> None:
    """As they are committed; and with more groups of dialogues than there are questions."""
    assert run("params", str(REPOSITORY / "recipes/clarify"))[0] == 0


def test_sections_of_a_recipe_fit_together(root: Path, run: Run) -> None:
    folder = root / "below" / "here" / "mine"
    shutil.copytree(REPOSITORY / "recipes/clarify", folder)
    edit(folder / "params.yaml", r"\n  train: \d+", "\n  train: 10")
    edit(folder / "params.yaml", r"\n  val: \d+", "\n  val: 10")
    code, _, err = run("params", "mine")
    assert code == 1
    assert ["rl_data.questions" in err, "grpo.questions" in err, "grpo.evaluate_on" in err] == [True] * 3


def test_a_recipe_without_params(run: Run) -> None:
    for command in ("params", "gate"):
        code, out, err = run(command, "nowhere")
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert "there is no recipe 'nowhere'" in err


def test_a_recipe_with_a_typo(root: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "recipes/clarify").mkdir(parents=True)
    (root / "recipes/clarify/dvc.yaml").touch()
    monkeypatch.chdir(root)
    assert "did you mean 'recipes/clarify'?" in run("gate", "recipes/clarfy")[2]


def test_plans_are_listed_with_their_titles(root: Path, run: Run) -> None:
    """In groups of the section that they change; nothing ran."""
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    code, out, _ = run("plan", "list", "--json")
    assert code == 0
    listed = json.loads(out)
    assert sorted(plan["plan"] for plan in listed) == sorted(path.stem for path in (root / "plans").glob("*.yaml"))
    groups = [plan["group"] for plan in listed]
    assert [group for place, group in enumerate(groups) if group not in groups[:place]] == [
        *sorted({*groups} - {"several sections"}),
        "several sections",
    ]
    assert {plan["state"] for plan in listed} == {"never"}
    (plan,) = [plan for plan in listed if plan["plan"] == "plan-6"]
    assert (plan["title"], plan["group"]) == ("A lower learning rate for GRPO", "grpo")
    code, out, _ = run("plan", "list")
    assert code == 0
    assert re.search(r"│ plan-6 +│ A lower learning rate for GRPO +│ never", out)
    (root / "docs").mkdir()
    shutil.copy(REPOSITORY / "docs/plans.md", root / "docs/plans.md")
    (plan,) = [plan for plan in json.loads(run("plan", "list", "--json")[1]) if plan["plan"] == "plan-6"]
    assert (plan["state"], plan["verdict"], plan["accepted"][:3]) == ("ran", "below", "yes")


def test_a_plan_is_shown_with_the_command_that_runs_it(run: Run) -> None:
    code, out, err = run("plan", "show", "plan-6")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "dvc exp run -n plan-6 -S grpo.lr=5e-05"
    lines = out.splitlines()
    assert "judged against: params.yaml as it is" in lines
    assert "accept: over_parent.shots_4.ci_high ≤ 0" in lines
    assert lines[lines.index("changes:") + 1] == "  grpo.lr: 0.001 -> 5e-05"


def test_a_plan_is_shown_without_python(root: Path, run: Run) -> None:
    """Every plan: no dict, None, True or quotes of Python's repr; the command aside."""
    for path in (root / "plans").glob("*.yaml"):
        code, out, err = run("plan", "show", path.stem)
        assert (code, err) == (0, "")
        assert not re.search(r"{'|\bNone\b|\bTrue\b|\bFalse\b", "\n".join(out.splitlines()[2:-1])), out


def test_a_plan_as_json(run: Run) -> None:
    code, out, _ = run("plan", "show", "plan-6", "--json")
    found = json.loads(out)
    assert (code, found["plan"], found["changes"]) == (0, "plan-6", {"grpo.lr": {"before": 0.001, "after": 5e-05}})
    assert found["command"] == "dvc exp run -n plan-6 -S grpo.lr=5e-05"


def test_the_command_can_be_pasted_into_a_shell(run: Run) -> None:
    """`-S 'seeds=[0,1]'`: without quotes a shell would take the brackets for a pattern."""
    command = run("plan", "show", "tiny")[1].splitlines()[-1]
    parts = subprocess.run(
        ["bash", "-c", f'shopt -s failglob; printf "%s\\n" {command}'], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert "seeds=[0,1]" in parts


@pytest.mark.parametrize("command", ["show", "run"])
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("grpo.lrr: 1", "'grpo.lrr' names no key of params.yaml"),
        ("grpo.lr: 11", "'grpo.lr' = 11 is not allowed"),
        ("data.world: digits", "no-op plan"),
    ],
)
def test_a_bad_plan_is_one_line_and_code_1(root: Path, run: Run, command: str, overrides: str, message: str) -> None:
    """Nothing is run: there is no dvc that could be, and nothing but the error is printed."""
    (root / "plans" / "mine.yaml").write_text(f"title: A\nhypothesis: B\noverrides:\n  {overrides}\n")
    code, out, err = run("plan", command, "mine")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert message in err


def test_a_plan_that_needs_a_git_identity_says_so_before_it_runs(
    root: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run in a clean workspace needs none, which `make tiny` counts on; the queue always does."""
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, os.devnull)
    ran = root / "ran"
    (root / "bin").mkdir()
    (root / "bin/dvc").write_text(f"#!/bin/sh\necho x >> '{ran}'\n")
    (root / "bin/dvc").chmod(0o755)
    monkeypatch.setenv("PATH", f"{root / 'bin'}:{os.environ['PATH']}")
    git = ["git", "-C", str(root)]
    author = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    for command in (["init", "-q"], ["add", "params.yaml", "plans"], [*author, "commit", "-qm", "x"]):
        subprocess.run([*git, *command], check=True)
    assert run("plan", "run", "tiny")[0] == 0
    assert ran.read_text() == "x\n"
    refused = (1, "")
    code, out, err = run("plan", "queue", "tiny")
    assert (code, out) == refused
    assert "git config user.name 'Your Name' && git config user.email you@example.org" in err
    edit(root / "params.yaml", r"^  sampler: \w+", "  sampler: mix")
    assert run("plan", "run", "tiny")[:2] == refused
    assert ran.read_text() == "x\n"
    for key in ("name", "email"):
        subprocess.run([*git, "config", f"user.{key}", "x"], check=True)
    assert run("plan", "run", "tiny")[0] == 0
    assert run("plan", "queue", "tiny")[0] == 0
    assert ran.read_text() == "x\nx\nx\n"


def test_a_plan_that_ran_on_this_commit_is_run_again_when_asked(
    root: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC refuses a second experiment of one name on a commit."""
    called = root / "called"
    (root / "bin").mkdir()
    (root / "bin/dvc").write_text(f"#!/bin/sh\necho $2 >> '{called}'\n")
    (root / "bin/dvc").chmod(0o755)
    monkeypatch.setenv("PATH", f"{root / 'bin'}:{os.environ['PATH']}")
    git = ["git", "-C", str(root), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for command in (["init", "-q"], ["add", "params.yaml", "plans"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], check=True)
    assert run("plan", "run", "tiny", "--again")[0] == 0
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    subprocess.run([*git, "update-ref", f"refs/exps/{head[:2]}/{head[2:]}/tiny", head], check=True)
    code, _, err = run("plan", "run", "tiny")
    assert (code, called.read_text()) == (1, "run\n")
    assert "`dvc exp apply tiny`, or run it anew with `leverlab plan run --again`" in err
    assert run("plan", "run", "tiny", "--again")[0] == 0
    assert called.read_text() == "run\nremove\nrun\n"


def test_a_plan_that_is_not_there(run: Run) -> None:
    code, _, err = run("plan", "show", "plan-66")
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith("leverlab: there is no plan 'plan-66'; did you mean 'plan-6' or ")
    assert err.endswith("? `leverlab plan list` shows all\n")
    assert err.count("'") == 2 + 3 * 2  # three names at most
    assert run("plan", "show", "zzz")[2] == "leverlab: there is no plan 'zzz'; `leverlab plan list` shows all\n"


def test_the_version(run: Run) -> None:
    code, out, err = run("--version")
    assert (code, err) == (0, "")
    assert re.fullmatch(r"leverlab (\d+\.\d+\.\d+|\(not installed as a package\))\n", out)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_of_a_shell(run: Run, shell: str) -> None:
    code, out, _ = run("--show-completion", shell)
    assert code == 0
    assert "_LEVERLAB_COMPLETE" in out


def test_completion_of_plans(root: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As bash asks for it: by environment variables."""
    monkeypatch.setenv("_LEVERLAB_COMPLETE", "complete_bash")
    for words, expected in (
        ("leverlab plan show plan-7", ["plan-7", "plan-7.1", "plan-7.2"]),
        ("leverlab ver", ["verify"]),
    ):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
        assert run()[1].split() == expected


def test_a_plan_is_run_in_the_root_and_its_code_is_passed_on(
    root: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dvc of this test writes down where and with what it was called, and fails with code 7."""
    fake = root / "bin" / "dvc"
    fake.parent.mkdir()
    fake.write_text('#!/bin/bash\npwd > called\nprintf "%s\\n" "$@" >> called\nexit 7\n')
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    code, out, _ = run("plan", "run", "plan-6")
    assert code == 7
    assert out == "dvc exp run -n plan-6 -S grpo.lr=5e-05\n"
    assert (root / "called").read_text().splitlines() == [
        str(root.resolve()),
        "exp",
        "run",
        "-n",
        "plan-6",
        "-S",
        "grpo.lr=5e-05",
    ]


@pytest.mark.parametrize("arguments", [("params",), ("plan", "list"), ("deps",)])
def test_outside_of_a_repository(
    run: Run, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    code, out, err = run(*arguments)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "lies in no DVC repository" in err


@pytest.mark.parametrize("arguments", [("parms",), ("chat",), ("plan", "shw"), ("plan", "show"), ("params", "--fast")])
def test_a_command_that_is_none_is_told_and_fails(run: Run, arguments: tuple[str, ...]) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert "Usage" in err
    assert "Traceback" not in err


def test_help_needs_no_library(tmp_path: Path) -> None:
    """`leverlab --help` in a process of its own: no torch, no pandas, no params models."""
    script = (
        "import sys; from leverlab.cli import app\n"
        "try: app(['--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'pandas', 'pydantic', 'dvc', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={"PYTHONPATH": str(REPOSITORY / "src"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Tools on the leverlab pipeline" in done.stdout


def test_make_help_names_every_target_that_is_described() -> None:
    text = (REPOSITORY / "Makefile").read_text()
    done = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    listed = [line.split()[1] for line in done.stdout.splitlines()]
    assert listed == re.findall(r"^([a-z-]+):.*## ", text, re.MULTILINE)
    assert {"repro", "clarify", "gate", "gate-clarify"} <= set(listed)


def test_make_runs_a_recipe_in_its_folder() -> None:
    """Its params are checked first. The set-up is taken as done: nothing is run."""
    command = [
        "make",
        "--no-print-directory",
        "-n",
        "-o",
        str(REPOSITORY / ".venv/.installed"),
        "clarify",
        "gate-clarify",
    ]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-3:] == [
        "leverlab params recipes/clarify",
        "cd recipes/clarify && dvc repro",
        "leverlab gate recipes/clarify",
    ]
