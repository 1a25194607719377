"""The import closure on small repositories whose imports are known by construction."""

import sys
from pathlib import Path
from textwrap import dedent

import pytest

from leverlab import cli
from leverlab.errors import LeverlabError
from leverlab.pipeline.deps import check, closure, declared, write

PACKAGE = {"src/leverlab/__init__.py": "", "stages/__init__.py": ""}


def make_repository(root: Path, files: dict[str, str]) -> Path:
    for name, text in {**PACKAGE, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text))
    return root


def closure_of(root: Path, files: dict[str, str]) -> list[str]:
    """The closure of stages/sft.py without the two package files that every stage runs."""
    found = [path.as_posix() for path in closure(Path("stages/sft.py"), make_repository(root, files))]
    assert found == sorted(found)
    assert set(PACKAGE) <= set(found)
    return [name for name in found if name not in PACKAGE]


def test_closure_is_transitive_and_includes_package_files(tmp_path: Path) -> None:
    """sft -> rl.losses -> rl.kl, and `leverlab.rl` itself; rl.rewards is imported by nobody."""
    found = closure_of(
        tmp_path,
        {
            "stages/sft.py": "import json\nimport numpy\nimport leverlab.rl.losses\n",
            "src/leverlab/rl/__init__.py": "",
            "src/leverlab/rl/losses.py": "from leverlab.rl.kl import k3\n",
            "src/leverlab/rl/kl.py": "k3 = 1\n",
            "src/leverlab/rl/rewards.py": "import leverlab.rl.kl\n",
        },
    )
    assert found == [
        "src/leverlab/rl/__init__.py",
        "src/leverlab/rl/kl.py",
        "src/leverlab/rl/losses.py",
        "stages/sft.py",
    ]


def test_from_import_of_a_module_and_of_an_attribute(tmp_path: Path) -> None:
    """`from leverlab.rl import kl, WINDOW`: kl is a file, WINDOW lives in the package file."""
    found = closure_of(
        tmp_path,
        {
            "stages/sft.py": "from leverlab.rl import kl, WINDOW\n",
            "src/leverlab/rl/__init__.py": "WINDOW = 1\n",
            "src/leverlab/rl/kl.py": "",
        },
    )
    assert found == ["src/leverlab/rl/__init__.py", "src/leverlab/rl/kl.py", "stages/sft.py"]


def test_package_file_imports_count(tmp_path: Path) -> None:
    """Importing leverlab.rl.kl runs leverlab/rl/__init__.py, which imports leverlab.rl.losses."""
    found = closure_of(
        tmp_path,
        {
            "stages/sft.py": "import leverlab.rl.kl\n",
            "src/leverlab/rl/__init__.py": "from .losses import loss\n",
            "src/leverlab/rl/losses.py": "loss = 1\n",
            "src/leverlab/rl/kl.py": "",
        },
    )
    assert "src/leverlab/rl/losses.py" in found


def test_import_inside_a_function_counts(tmp_path: Path) -> None:
    found = closure_of(
        tmp_path,
        {
            "stages/sft.py": "def main():\n    if True:\n        from leverlab import stage\n",
            "src/leverlab/stage.py": "",
        },
    )
    assert found == ["src/leverlab/stage.py", "stages/sft.py"]


@pytest.mark.parametrize("guard", ["TYPE_CHECKING", "typing.TYPE_CHECKING"])
def test_type_checking_imports_do_not_run(tmp_path: Path, guard: str) -> None:
    """Only the else branch of the guard runs."""
    found = closure_of(
        tmp_path,
        {
            "stages/sft.py": f"""
                import typing
                from typing import TYPE_CHECKING
                if {guard}:
                    import leverlab.stage
                else:
                    import leverlab.records
            """,
            "src/leverlab/stage.py": "",
            "src/leverlab/records.py": "",
        },
    )
    assert found == ["src/leverlab/records.py", "stages/sft.py"]


def test_relative_imports(tmp_path: Path) -> None:
    """`.` is leverlab.rl both in leverlab/rl/losses.py and in leverlab/rl/__init__.py; `..` is leverlab."""
    found = closure_of(
        tmp_path,
        {
            "stages/sft.py": "from leverlab.rl import losses\n",
            "src/leverlab/records.py": "",
            "src/leverlab/rl/__init__.py": "from . import kl\n",
            "src/leverlab/rl/losses.py": "from .rewards import x\nfrom .. import records\n",
            "src/leverlab/rl/kl.py": "",
            "src/leverlab/rl/rewards.py": "x = 1\n",
        },
    )
    assert found == [
        "src/leverlab/records.py",
        "src/leverlab/rl/__init__.py",
        "src/leverlab/rl/kl.py",
        "src/leverlab/rl/losses.py",
        "src/leverlab/rl/rewards.py",
        "stages/sft.py",
    ]


def test_import_cycle_ends(tmp_path: Path) -> None:
    files = {"stages/sft.py": "import leverlab.a\n", "src/leverlab/a.py": "import leverlab.b\n"}
    found = closure_of(tmp_path, {**files, "src/leverlab/b.py": "import leverlab.a\n"})
    assert found == ["src/leverlab/a.py", "src/leverlab/b.py", "stages/sft.py"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\nimport leverlab.lossses\n", "stages/sft.py, line 2, imports leverlab.lossses"),
        ("def (:\n", "stages/sft.py is no Python"),
    ],
)
def test_broken_module_is_named(tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(LeverlabError, match=message):
        closure_of(tmp_path, {"stages/sft.py": source})


def test_entry_outside_the_repository(tmp_path: Path) -> None:
    make_repository(tmp_path / "clone", {})
    (tmp_path / "other.py").write_text("")
    with pytest.raises(LeverlabError, match="no file of the repository"):
        closure(Path("../other.py"), tmp_path / "clone")


PIPELINE = """\
# The main pipeline.
stages:
  prepare:
    desc: Draw the questions
    cmd: echo prepare
    deps:
      - data/raw
    outs:
      - data/prepared

  sft:
    matrix:
      seed: ${seeds}
    desc: Train on the best beams
    cmd: >-
      python -m
      stages.sft --seed ${item.seed}
    deps:
      # drawn once
      - data/prepared  # questions
      - src/leverlab/gone.py
      - stages/sft.py  # the entry
      - data/rl/beams.parquet
    params:
      - sft
    outs:
      - models/sft/${item.seed}  # one per seed

# What follows reads both.
  report:
    foreach: [a, b]
    do:
      wdir: .
      cmd:
        - python -m stages.report
      deps:
        - reports/shots.csv
"""

FILES = {
    "dvc.yaml": PIPELINE,
    "stages/sft.py": "from leverlab import stage\n",
    "stages/report.py": "",
    "src/leverlab/stage.py": "",
    "src/leverlab/gone.py": "",
}


def test_declared_reads_folded_commands_matrix_and_foreach(tmp_path: Path) -> None:
    root = make_repository(tmp_path, FILES)
    prepare, sft, report = declared(root / "dvc.yaml")
    assert (prepare.name, prepare.modules, prepare.deps) == ("prepare", (), ("data/raw",))
    assert (sft.name, sft.modules) == ("sft", ("stages.sft",))
    assert sft.deps == ("data/prepared", "src/leverlab/gone.py", "stages/sft.py", "data/rl/beams.parquet")
    assert (report.name, report.modules, report.deps) == ("report", ("stages.report",), ("reports/shots.csv",))


@pytest.mark.parametrize(
    "command",
    [
        "python -m stages.sft",
        "|\n      set -e\n      python3 -X dev \\\n        -m \\\n        stages.sft --lr 1",
        "[echo 1, torchrun --nproc_per_node 2 -m stages.sft]",
    ],
)
def test_module_is_found_in_every_form_of_command(tmp_path: Path, command: str) -> None:
    """On one line, in a literal block with continued lines, in a list behind another launcher."""
    root = make_repository(tmp_path, {**FILES, "dvc.yaml": f"stages:\n  sft:\n    cmd: {command}\n"})
    assert declared(root / "dvc.yaml")[0].modules == ("stages.sft",)


def test_check_names_what_is_missing_and_what_is_superfluous(tmp_path: Path) -> None:
    root = make_repository(tmp_path, FILES)
    run = "run `leverlab deps --write`"
    missing = "which its deps do not list"
    assert check(root) == [
        f"dvc.yaml: stage 'sft' imports src/leverlab/__init__.py, {missing}; {run}",
        f"dvc.yaml: stage 'sft' imports src/leverlab/stage.py, {missing}; {run}",
        f"dvc.yaml: stage 'sft' imports stages/__init__.py, {missing}; {run}",
        f"dvc.yaml: stage 'sft' lists src/leverlab/gone.py, which it does not import; {run}",
        f"dvc.yaml: stage 'report' imports stages/__init__.py, {missing}; {run}",
        f"dvc.yaml: stage 'report' imports stages/report.py, {missing}; {run}",
    ]


def test_write_mends_what_check_finds_and_touches_nothing_else(tmp_path: Path) -> None:
    """Data deps first, in their order, then the code, sorted; every other line and comment stays as it is."""
    root = make_repository(tmp_path, FILES)
    assert write(root) == [root / "dvc.yaml"]
    expected = PIPELINE.replace(
        "      - src/leverlab/gone.py\n      - stages/sft.py  # the entry\n      - data/rl/beams.parquet\n",
        "      - data/rl/beams.parquet\n      - src/leverlab/__init__.py\n      - src/leverlab/stage.py\n"
        "      - stages/__init__.py\n      - stages/sft.py  # the entry\n",
    ).replace(
        "        - reports/shots.csv\n",
        "        - reports/shots.csv\n        - stages/__init__.py\n        - stages/report.py\n",
    )
    assert (root / "dvc.yaml").read_text() == expected
    assert check(root) == []
    assert write(root) == []
    assert (root / "dvc.yaml").read_text() == expected


def test_stage_without_deps_gets_some(tmp_path: Path) -> None:
    pipeline = "stages:\n  sft:\n    desc: Train\n    cmd: python -m stages.sft\n    outs:\n      - models/sft\n"
    root = make_repository(tmp_path, {**FILES, "dvc.yaml": pipeline})
    write(root)
    assert check(root) == []
    assert declared(root / "dvc.yaml")[0].deps[-1] == "stages/sft.py"


def test_deps_are_relative_to_the_working_folder(tmp_path: Path) -> None:
    """A recipe with `wdir: ../..` writes deps from the root; one without it writes them from its own folder."""
    recipe = "stages:\n  sft:\n    {wdir}cmd: python -m stages.sft\n    deps:\n      - {data}\n"
    root = make_repository(
        tmp_path,
        {
            "stages/sft.py": "",
            "recipes/clarify/dvc.yaml": recipe.format(wdir="wdir: ../..\n    ", data="recipes/clarify/data"),
            "recipes/medical/dvc.yaml": recipe.format(wdir="", data="data"),
        },
    )
    assert len(check(root)) == 4
    write(root)
    assert check(root) == []
    assert (
        "      - recipes/clarify/data\n      - stages/__init__.py\n" in (root / "recipes/clarify/dvc.yaml").read_text()
    )
    assert "      - data\n      - ../../stages/__init__.py\n" in (root / "recipes/medical/dvc.yaml").read_text()


def test_pipelines_of_tools_are_not_ours(tmp_path: Path) -> None:
    copies = {f"{folder}/tmp/dvc.yaml": PIPELINE for folder in (".venv", ".git", ".dvc", ".leverlab")}
    assert check(make_repository(tmp_path, copies)) == []


def test_folder_of_code_and_unfollowable_command_are_reported(tmp_path: Path) -> None:
    pipeline = """\
        stages:
          sft:
            cmd: python -m stages.sft
            deps:
              - src/leverlab
              - src/leverlab/__init__.py
              - src/leverlab/stage.py
              - stages/__init__.py
              - stages/sft.py
          report:
            cmd: python stages/report.py
            deps:
              - stages/report.py
    """
    folder, command = check(make_repository(tmp_path, {**FILES, "dvc.yaml": pipeline}))
    assert "stage 'sft' lists the folder src/leverlab, which holds code" in folder
    assert "stage 'report' lists stages/report.py, but its imports cannot be followed" in command


@pytest.mark.parametrize(
    ("pipeline", "message"),
    [
        ("stages:\n  sft:\n    cmd: python -m stages.nosuch\n", "stage 'sft' runs stages.nosuch, which is not in this"),
        (
            "stages:\n  sft:\n    cmd: python -m stages.sft\n    deps: [data]\n",
            "stage 'sft': its deps must stand one per",
        ),
        ("stages:\n  sft: [\n", "cannot be read as YAML"),
        ("stages:\n  sft: 3\n", "stage 'sft' must be a mapping with a 'cmd'"),
        ("- sft\n", "is no DVC pipeline"),
    ],
)
def test_bad_pipeline_is_a_sentence(tmp_path: Path, pipeline: str, message: str) -> None:
    root = make_repository(tmp_path, {**FILES, "dvc.yaml": pipeline})
    with pytest.raises(LeverlabError, match=message):
        write(root)


def test_command_reports_mends_and_agrees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--check` prints one line per problem and no traceback, `--write` mends; both work from any folder below."""
    root = make_repository(tmp_path, FILES)
    (root / ".dvc").mkdir()
    monkeypatch.chdir(root / "stages")

    def run(*arguments: str) -> int | str | None:
        monkeypatch.setattr(sys, "argv", ["leverlab", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return stopped.value.code

    assert run("deps", "--check") == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 6
    assert errors[0].startswith("leverlab: dvc.yaml: stage 'sft' imports src/leverlab/__init__.py")
    assert run("deps", "--write") == 0
    assert "dvc.yaml: deps rewritten" in capsys.readouterr().out
    assert run("deps") == 0


def test_command_outside_a_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["leverlab", "deps"])
    with pytest.raises(SystemExit, match="1"):
        cli.main()
    assert capsys.readouterr().err.count("\n") == 1
