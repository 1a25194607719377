"""What every `dvc.yaml` of this repository declares, and what the code of its stages really uses."""

import ast
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from leverlab.config.base import Section, read_params, read_yaml
from leverlab.config.gguf import GgufKinds
from leverlab.config.prepare import PrepareEncoder
from leverlab.config.vlm import VlmAnswers, VlmModel, VlmSource
from leverlab.pipeline.deps import check
from leverlab.pipeline.params import SECTIONS

REPOSITORY = Path(__file__).parents[2]
PIPELINES = ("dvc.yaml", "worlds/digits/dvc.yaml")
MATRIX_STAGES = {"sft", "rce", "grpo"}
PARTS = {model.__name__: model for model in (GgufKinds, PrepareEncoder, VlmAnswers, VlmModel, VlmSource)}


@dataclass(frozen=True)
class Entry:
    """One stage of a `dvc.yaml`, and the syntax tree of the module that its command runs."""

    file: str
    name: str
    body: dict[str, Any]
    module: str
    tree: ast.Module

    @property
    def declared(self) -> set[str]:
        """The sections that the stage declares, of any params file."""
        found: set[str] = set()
        for entry in self.body.get("params", []):
            found |= {key for keys in entry.values() for key in keys} if isinstance(entry, dict) else {entry}
        return found


def entries() -> list[Entry]:
    found = []
    for file in PIPELINES:
        for name, body in read_yaml(REPOSITORY / file)["stages"].items():
            (module,) = re.findall(r"python -m (stages\.\w+)", body["cmd"])
            source = (REPOSITORY / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8")
            found.append(Entry(file, name, body, module, ast.parse(source)))
    return found


ENTRIES = entries()
each_stage = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)


def stage_calls(tree: ast.Module, *methods: str) -> list[ast.Call]:
    """The calls `stage.<method>(…)` in a module."""
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in methods
        and ast.unparse(node.func.value) == "stage"
    ]


def test_every_module_belongs_to_exactly_one_stage() -> None:
    modules = {f"stages.{path.stem}" for path in (REPOSITORY / "stages").glob("*.py") if path.stem != "__init__"}
    called = Counter(entry.module for entry in ENTRIES)
    waiting = modules - set(called)
    assert not waiting, f"no dvc.yaml calls {sorted(waiting)}"
    assert set(called) == modules
    assert set(called.values()) == {1}


@each_stage
def test_a_module_carries_the_name_of_its_stage(entry: Entry) -> None:
    """A reader finds the code by the stage's name, and the module runs under the name that dvc.yaml gives it."""
    assert entry.module == "stages." + entry.name.replace("-", "_")
    (call,) = [
        node
        for node in ast.walk(entry.tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "run_stage"
    ]
    assert ast.literal_eval(call.args[0]) == entry.name
    home = {keyword.arg: keyword.value for keyword in call.keywords}.get("home")
    assert (ast.literal_eval(home) if home else ".") == str(Path(entry.file).parent)
    assert len(call.args) == (3 if "matrix" in entry.body else 2)


@each_stage
def test_declared_sections_are_those_that_are_read(entry: Entry) -> None:
    """Neither fewer (the stage would fail) nor more (a change of a section that nobody reads would re-run it).

    A stage that needs some keys of a section declares them one by one and reads them as a smaller model. The report
    prints the params that it declares, so it reads all of them.
    """
    read = {ast.literal_eval(call.args[0]) for call in stage_calls(entry.tree, "value")}
    for call in stage_calls(entry.tree, "section"):
        name, model = ast.literal_eval(call.args[0]), ast.unparse(call.args[1])
        if name in SECTIONS and model != SECTIONS[name].__name__:
            read |= {f"{name}.{key}" for key in PARTS[model].model_fields}
        else:
            read.add(name)
    if stage_calls(entry.tree, "declared_params"):
        assert entry.name in ("bundle", "report")
        read |= entry.declared & set(read_params(REPOSITORY / "params.yaml"))
    assert read == entry.declared


@each_stage
def test_a_section_is_read_as_what_leverlab_params_checks(entry: Entry) -> None:
    for call in stage_calls(entry.tree, "section"):
        name, model = ast.literal_eval(call.args[0]), ast.unparse(call.args[1])
        if name in SECTIONS:
            assert model in {kind.__name__ for kind in SECTIONS[name].__mro__ if issubclass(kind, Section)}
        else:
            assert (entry.name, model) == ("digits-vlm", "DigitsVlmParams")


@each_stage
def test_literal_paths_are_declared(entry: Entry) -> None:
    """Paths that are written out in `stage.dep` and `stage.out`, `{seed}` standing for the item of the matrix."""
    outs = [*entry.body.get("outs", []), *entry.body.get("metrics", []), *entry.body.get("plots", [])]
    for method, paths in (("dep", entry.body.get("deps", [])), ("out", outs)):
        names = [next(iter(path)) if isinstance(path, dict) else path for path in paths]
        declared = [re.sub(r"\$\{item\.(\w+)\}", r"{\1}", name) for name in names]
        for call in stage_calls(entry.tree, method):
            path = ast.unparse(call.args[0])
            if re.fullmatch(r"f?'[^']*'", path):
                path = path.removeprefix("f").strip("'")
                parts = path if "{" not in path or "{seed}" in path else path[: path.index("{")].rstrip("/")
                below = any(parts == name or parts.startswith(f"{name}/") for name in declared)
                above = parts != path and any(name.startswith(f"{parts}/") for name in declared)  # the rest is computed
                assert below or above, path


def test_every_section_is_declared_by_a_stage() -> None:
    used = set().union(*(entry.declared for entry in ENTRIES))
    for file in ("params.yaml", "worlds/digits/params.yaml"):
        unused = set(read_params(REPOSITORY / file)) - {key.split(".")[0] for key in used}
        assert not unused, f"{file}: no stage reads {sorted(unused)}"


@each_stage
def test_only_training_fans_out_and_only_over_seeds(entry: Entry) -> None:
    assert ("matrix" in entry.body) == (entry.name in MATRIX_STAGES)
    assert "foreach" not in entry.body
    if "matrix" in entry.body:
        assert entry.body["matrix"] == {"seed": "${seeds}"}
        assert entry.body["cmd"].endswith(" ${item.seed}")


@each_stage
def test_every_stage_is_described(entry: Entry) -> None:
    description = entry.body.get("desc", "")
    assert len(description) > 20
    assert not description.endswith(".")


@each_stage
def test_options_that_break_promises_are_not_used(entry: Entry) -> None:
    """`persist` leaks old state into new params, `always_changed` runs for nothing, `frozen` hides a change."""
    text = repr(entry.body)
    for option in ("persist", "always_changed", "frozen", "checkpoint"):
        assert f"'{option}': True" not in text


def test_a_fan_in_declares_the_folder_and_the_seeds() -> None:
    """A stage that reads the runs of all seeds declares their parent and `seeds`: else a seed more would not re-run
    it."""
    for entry in ENTRIES:
        folders = {dep for dep in entry.body.get("deps", []) if dep in {f"models/{name}" for name in MATRIX_STAGES}}
        if folders:
            assert "seeds" in entry.declared, entry.name


def test_code_deps_are_the_import_closure() -> None:
    assert check(REPOSITORY) == []
