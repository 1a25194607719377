"""The package outside of a clone: what pip installs with it, and the commands of a bundle and of runs there."""

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCKED = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("requirements.txt", "requirements-demo.txt"))
PINS = {canonicalize_name(name): pin for name, pin in re.findall(r"^([\w.-]+)==(\S+)$", LOCKED, re.MULTILINE)}
ELSEWHERE = {"leverlab", "vllm"}  # this package in its own extra, and what needs a GPU
WITHOUT_EXTRAS = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ImportError(f"{{name}} belongs to an extra")

sys.meta_path.insert(0, Refuse())
from leverlab.cli import main
sys.argv = ["leverlab", *sys.argv[1:]]
main()
"""


def requirements(*extras: str) -> dict[str, Requirement]:
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, lines)}


def modules_of(name: str) -> set[str]:
    """The modules that a distribution brings to the top."""
    return {
        module for module, names in metadata.packages_distributions().items() if name in map(canonicalize_name, names)
    }


def imports() -> Iterator[str]:
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                yield str(node.module).partition(".")[0]


def test_the_pins_are_what_the_package_asks_for() -> None:
    asked = requirements("train", "demo", "gpu")
    assert len(asked) > 30
    problems = [
        str(requirement)
        for name, requirement in asked.items()
        if name not in ELSEWHERE and not requirement.specifier.contains(PINS[name])
    ]
    assert problems == []


def test_every_import_is_of_a_declared_package() -> None:
    """Those that neither Python nor the package itself brings; `dvc_data` comes with dvc, `markupsafe` with jinja2."""
    known = {"leverlab", "dvc_data", "markupsafe", *sys.stdlib_module_names}
    demo = {"fastapi", "gradio", "gradio_client", "uvicorn", "starlette"}  # not installed with requirements.txt
    for name in requirements("train"):
        known |= modules_of(name)
    trackers = {"dvclive", "tensorboard", "wandb"}  # nor are these
    assert {"fastapi", "gradio", "uvicorn"} <= set(requirements("demo"))
    assert trackers <= set(requirements("live"))
    assert sorted(set(imports()) - known - demo - trackers) == []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the tracked files, unpacked as pip would."""
    folder = tmp_path_factory.mktemp("wheel")
    archive = subprocess.run(
        ["git", "ls-files", "-z", "pyproject.toml", "LICENSE", "src"], cwd=ROOT, capture_output=True, check=True
    ).stdout.decode()
    for name in filter(None, archive.split("\0")):
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "source" / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), "."]
    subprocess.run(build, cwd=folder / "source", check=True, capture_output=True)
    (found,) = folder.glob("*.whl")
    with zipfile.ZipFile(found) as files:
        files.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_has_its_templates_and_its_requirements(wheel: Path) -> None:
    for name in ("report/page.html.jinja", "report/clarify_page.html.jinja", "pipeline/compare_runs.html.jinja"):
        assert (wheel / "leverlab" / name).is_file(), name
    (declared,) = wheel.glob("*.dist-info/METADATA")
    text = declared.read_text(encoding="utf-8")
    assert "Requires-Dist: typer" in text
    assert "Provides-Extra: train" in text


@pytest.mark.parametrize(
    "command", [["--version"], ["select", "--help"], ["predict", "--help"], ["compare", "--help"], ["demo", "--help"]]
)
def test_commands_run_outside_of_a_clone_without_the_extras(wheel: Path, tmp_path: Path, command: list[str]) -> None:
    extras = set(requirements("train", "demo", "gpu")) - set(requirements())
    names = sorted({module for name in extras for module in modules_of(name)} - {"leverlab"})
    assert {"torch", "transformers", "matplotlib"} <= set(names)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRAS.format(names=set(names)), *command],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(wheel)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_make_works_in_a_folder_with_a_space_and_an_umlaut(tmp_path: Path) -> None:
    """With a Python that makes an environment out of itself and only says what it is called with."""
    place = tmp_path / "my lab ü"
    place.mkdir()
    for name in ("Makefile", "requirements.txt", "pyproject.toml"):
        (place / name).write_bytes((ROOT / name).read_bytes())
    python = tmp_path / "a python"
    lines = (
        "#!/bin/bash",
        'if [ "$1 $2" = "-m venv" ]; then',
        'mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && cp "$0" "$3/bin/leverlab"; fi',
        'echo "$(basename "$0") $*" >> "$CALLS"',
    )
    python.write_text("\n".join(lines) + "\n")
    python.chmod(0o755)
    calls = tmp_path / "calls"
    environment = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "VIRTUAL_ENV")}
    done = subprocess.run(
        ["make", "gate", f"PYTHON={python}"],
        cwd=place,
        env=environment | {"CALLS": str(calls)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = calls.read_text(encoding="utf-8").splitlines()
    assert said[-1] == "leverlab gate"
    assert sum("pip" in line for line in said) == 3
    assert (place / ".venv/.installed").is_file()
