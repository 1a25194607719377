"""What a stage sees of `dvc.yaml` is what DVC sees, for every stage of every pipeline of this repository."""

from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from dvc.dependency import ParamsDependency
from dvc.repo import Repo

from leverlab.config.base import read_yaml
from leverlab.dvcfile import Declaration, read_declaration
from leverlab.errors import LeverlabError

pytestmark = pytest.mark.usefixtures("quiet_dvc")

REPOSITORY = Path(__file__).parents[2]


def absolute(folder: Path, paths: Any) -> list[Path]:
    return sorted((folder / path).resolve() for path in paths)


def as_dvc_sees(stage: Any) -> tuple[list[Path], list[Path], set[tuple[Path, str]]]:
    """The deps, outs and params of a stage of `dvc.repo.Repo`, with absolute paths."""
    plain = [dep for dep in stage.deps if not isinstance(dep, ParamsDependency)]
    params = [dep for dep in stage.deps if isinstance(dep, ParamsDependency)]
    return (
        absolute(Path(), (dep.fs_path for dep in plain)),
        absolute(Path(), (out.fs_path for out in stage.outs)),
        {(Path(dep.fs_path).resolve(), key) for dep in params for key in dep.params},
    )


def as_we_see(declaration: Declaration, folder: Path) -> tuple[list[Path], list[Path], set[tuple[Path, str]]]:
    return (
        absolute(folder, declaration.deps),
        absolute(folder, declaration.outs),
        {((folder / file).resolve(), key) for file, key in declaration.params},
    )


def compare_all(root: Path) -> set[str]:
    """Compare every stage of the repository at `root`; return their names."""
    names = set()
    with Repo(str(root)) as repo:
        for stage in repo.index.stages:
            plain, _, item = stage.name.partition("@")
            matrix = list(read_yaml(Path(stage.path))["stages"][plain].get("matrix", {}))
            assert bool(item) == bool(matrix)
            chosen = dict(zip(matrix, item.split("-"), strict=True)) if item else {}
            declaration = read_declaration(Path(stage.path), plain, chosen)
            assert declaration.name == stage.name
            assert as_we_see(declaration, Path(stage.wdir)) == as_dvc_sees(stage), stage.addressing
            names.add(stage.name)
    return names


def test_every_stage_of_this_repository() -> None:
    names = compare_all(REPOSITORY)
    assert {"prepare", "sft@0", "rce@1", "grpo@2", "select-best", "infer-800", "digits-vlm"} <= names


PIPELINE = """\
stages:
  plain:
    cmd: echo
    deps:
      - a.txt
      - folder
    params:
      - one
      - two.three
      - other.yaml:
          - four
          - five
    outs:
      - x
      - y:
          cache: false
    metrics:
      - m.json
    plots:
      - p.csv:
          x: step
          cache: false
  bare:
    cmd: echo
  grid:
    matrix:
      seed: [0, 1]
      method: [a, b]
    cmd: echo ${item.seed}
    deps:
      - a.txt
      - runs/${item.method}/${item.seed}
    outs:
      - out/${item.seed}-${item.method}
"""


def make_repository(root: Path) -> Path:
    (root / "below").mkdir()
    (root / "dvc.yaml").write_text(PIPELINE)
    (root / "below" / "dvc.yaml").write_text(
        "stages:\n  up:\n    wdir: ..\n    cmd: echo\n    deps: [a.txt]\n    outs: [below/z]\n"
        "  here:\n    cmd: echo\n    deps: [z]\n    outs: [zz]\n"
    )
    for name in ("params.yaml", "other.yaml"):
        (root / name).write_text("one: 1\ntwo:\n  three: 3\nfour: 4\nfive: 5\n")
    Repo.init(str(root), no_scm=True).close()
    return root


def test_every_form_of_an_entry(tmp_path: Path) -> None:
    names = compare_all(make_repository(tmp_path))
    assert names == {"plain", "bare", "grid@0-a", "grid@0-b", "grid@1-a", "grid@1-b", "up", "here"}


def test_a_declaration_by_hand(tmp_path: Path) -> None:
    make_repository(tmp_path)
    assert read_declaration(tmp_path / "dvc.yaml", "plain", {}) == Declaration(
        name="plain",
        deps=("a.txt", "folder"),
        params=(
            ("params.yaml", "one"),
            ("params.yaml", "two.three"),
            ("other.yaml", "four"),
            ("other.yaml", "five"),
        ),
        outs=("x", "y", "m.json", "p.csv"),
    )
    assert read_declaration(tmp_path / "dvc.yaml", "grid", {"seed": "1", "method": "b"}) == Declaration(
        name="grid@1-b", deps=("a.txt", "runs/b/1"), params=(), outs=("out/1-b",)
    )


@pytest.mark.parametrize(
    ("stage", "item", "message"),
    [
        ("plan", {}, "has no stage 'plan'"),
        ("plain", {"seed": "0"}, "needs a value for each of []"),
        ("grid", {}, "needs a value for each of ['method', 'seed']"),
        ("grid", {"seed": "0"}, "needs a value for each of ['method', 'seed'], it got {'seed': '0'}"),
    ],
)
def test_a_stage_that_is_not_there(tmp_path: Path, stage: str, item: dict[str, str], message: str) -> None:
    make_repository(tmp_path)
    with pytest.raises(LeverlabError) as caught:
        read_declaration(tmp_path / "dvc.yaml", stage, item)
    assert message in str(caught.value)


@pytest.mark.parametrize("entry", ["deps: ['${data.source}']", "outs: ['out/${item.seed}']", "outs: ['${x}': {}]"])
def test_an_interpolation_that_only_dvc_resolves_is_refused(tmp_path: Path, entry: str) -> None:
    """Taken literally it would be a path that does not exist; DVC would see another."""
    (tmp_path / "dvc.yaml").write_text(dedent(f"stages:\n  a:\n    cmd: echo\n    {entry}\n"))
    with pytest.raises(LeverlabError, match="interpolation that stages do not resolve"):
        read_declaration(tmp_path / "dvc.yaml", "a", {})


def test_files_that_are_no_pipeline(tmp_path: Path) -> None:
    with pytest.raises(LeverlabError, match="does not exist"):
        read_declaration(tmp_path / "dvc.yaml", "a", {})
    (tmp_path / "dvc.yaml").write_text("")
    with pytest.raises(LeverlabError, match="has no stage 'a'"):
        read_declaration(tmp_path / "dvc.yaml", "a", {})


def test_a_whole_file_as_params_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text("stages: {s: {cmd: x, params: [{other.yaml: null}]}}")
    with pytest.raises(LeverlabError, match="name the sections"):
        read_declaration(tmp_path / "dvc.yaml", "s", {})
