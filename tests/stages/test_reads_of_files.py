"""A stage reads no file of the repository that it does not declare.

The cold runs of the profile `tiny` are watched by an audit hook in every process of every stage. What libraries read
behind Python's back is caught by `leverlab verify`, which runs a stage where nothing else is.
"""

import re
from collections import defaultdict

import pytest

from leverlab.dvcfile import read_declaration
from tests.stages.clones import REPOSITORY, Cold

pytestmark = pytest.mark.slow

CONTRACT = ("dvc.yaml", "params.yaml")  # what stage.py itself reads
WORK = (".leverlab/",)  # state, staging, scores


@pytest.fixture(scope="session")
def reads(cold: Cold) -> dict[str, set[str]]:
    """Stage → the files of its repository that it opened, source files in the place of compiled ones."""
    found: dict[str, set[str]] = defaultdict(set)
    for line in (cold.root.parent / "reads").read_text().splitlines():
        stage, path = line.split("\t")
        source = re.sub(r"__pycache__/(\w+)\.cpython-\d+(\.opt-\d)?\.pyc(\.\d+)?$", r"\1.py", path)
        found[stage.removeprefix("stages.").replace("_", "-")].add(source)
    return found


def undeclared(reads: set[str], declared: tuple[str, ...]) -> list[str]:
    allowed = (*CONTRACT, *declared)
    return sorted(
        path
        for path in reads
        if not path.startswith(WORK) and not any(path == known or path.startswith(f"{known}/") for known in allowed)
    )


def test_every_stage_was_watched(cold: Cold, reads: dict[str, set[str]]) -> None:
    assert set(reads) == set(cold.ran)
    for stage, paths in reads.items():
        name = stage.split("@")[0].replace("-", "_")
        assert {"dvc.yaml", "params.yaml", f"stages/{name}.py", "src/leverlab/stage.py"} <= paths


def test_no_stage_reads_what_it_does_not_declare(cold: Cold, reads: dict[str, set[str]]) -> None:
    for stage, paths in reads.items():
        name, _, seed = stage.partition("@")
        declaration = read_declaration(cold.root / "dvc.yaml", name, {"seed": seed} if seed else {})
        assert undeclared(paths, (*declaration.deps, *declaration.outs)) == [], stage


def test_a_file_that_is_not_declared_is_found() -> None:
    declaration = read_declaration(REPOSITORY / "dvc.yaml", "gguf", {})
    reads = {"dvc.yaml", "stages/gguf.py", ".leverlab/state/gguf/x/text-f16.gguf", "README.md", "stages/gguf.pyx"}
    assert undeclared(reads, declaration.deps) == ["README.md", "stages/gguf.pyx"]
