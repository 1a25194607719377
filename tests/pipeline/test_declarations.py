"""What every `dvc.yaml` of this repository declares, and what the code of its stages really uses."""

import ast
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from leverlab.config.base import Section, read_params, read_yaml
from leverlab.config.clarify_gguf import PolicyGgufKinds
from leverlab.config.gguf import GgufKinds
from leverlab.config.prepare import PrepareEncoder
from leverlab.config.vlm import VlmAnswers, VlmModel, VlmSource
from leverlab.pipeline.deps import check
from leverlab.pipeline.params import SECTIONS
from leverlab.pipeline.recipe_params import SECTIONS as RECIPE_SECTIONS

REPOSITORY = Path(__file__).parents[2]
PIPELINES = ("dvc.yaml", "worlds/digits/dvc.yaml", "worlds/clarify/dvc.yaml", "recipes/clarify/dvc.yaml")
PARAMS = tuple(str(Path(file).with_name("params.yaml")) for file in PIPELINES)
MATRIX_STAGES = {"sft", "rl-data", "rce", "grpo", "dpo"}
WORLDS = {"digits-vlm": "DigitsVlmParams", "clarify-base": "ClarifyBaseParams"}  # stages with a section of their own
PARTS = {
    model.__name__: model for model in (GgufKinds, PolicyGgufKinds, PrepareEncoder, VlmAnswers, VlmModel, VlmSource)
}


@dataclass(frozen=True)
class Entry:
    """One stage of a `dvc.yaml`, and the syntax tree of the module that its command runs."""

    file: str
    name: str
    body: dict[str, Any]
    module: str
    tree: ast.Module

    @property
    def recipe(self) -> str:
        """The name of the recipe that the stage belongs to, or nothing."""
        return Path(self.file).parent.name if self.file.startswith("recipes/") else ""

    @property
    def sections(self) -> dict[str, type[Section]]:
        """The sections that `leverlab params` checks for this pipeline."""
        return RECIPE_SECTIONS if self.recipe else SECTIONS

    @property
    def fans_out(self) -> bool:
        """Whether it is a matrix over seeds: in the main pipeline groups and preferences are not."""
        return self.name in MATRIX_STAGES - ({"rl-data"} if not self.recipe else set())

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
            (module,) = re.findall(r"python -m (stages(?:\.\w+)+)", body["cmd"])
            source = (REPOSITORY / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8")
            found.append(Entry(file, name, body, module, ast.parse(source)))
    return found


ENTRIES = entries()
each_stage = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.module.removeprefix("stages."))


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
    files = [path.relative_to(REPOSITORY) for path in (REPOSITORY / "stages").rglob("*.py")]
    modules = {".".join(path.with_suffix("").parts) for path in files if path.stem != "__init__"}
    called = Counter(entry.module for entry in ENTRIES)
    waiting = modules - set(called)
    assert not waiting, f"no dvc.yaml calls {sorted(waiting)}"
    assert set(called) == modules
    assert set(called.values()) == {1}


@each_stage
def test_a_module_carries_the_name_of_its_stage(entry: Entry) -> None:
    """A reader finds the code by the stage's name, and the module runs under the name that dvc.yaml gives it."""
    assert entry.module.split(".")[1:-1] == ([entry.recipe] if entry.recipe else [])
    assert entry.module.split(".")[-1] == entry.name.replace("-", "_")
    (call,) = [
        node
        for node in ast.walk(entry.tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("run_stage", "run_seed")
    ]
    assert ast.literal_eval(call.args[0]) == entry.name
    of_seed = ast.unparse(call.func).split(".")[-1] == "run_seed"
    home = call.args[2] if of_seed else {keyword.arg: keyword.value for keyword in call.keywords}.get("home")
    assert (ast.literal_eval(home) if home else ".") == str(Path(entry.file).parent)
    assert of_seed or len(call.args) == (3 if "matrix" in entry.body else 2)
    assert not of_seed or "matrix" in entry.body


@each_stage
def test_declared_sections_are_those_that_are_read(entry: Entry) -> None:
    """Neither fewer (the stage would fail) nor more (a change of a section that nobody reads would re-run it).

    A stage that needs some keys of a section declares them one by one and reads them as a smaller model. The report
    prints the params that it declares, so it reads all of them.
    """
    read = {ast.literal_eval(call.args[0]) for call in stage_calls(entry.tree, "value")}
    for call in stage_calls(entry.tree, "section"):
        name, model = ast.literal_eval(call.args[0]), ast.unparse(call.args[1])
        if name in entry.sections and model != entry.sections[name].__name__:
            read |= {f"{name}.{key}" for key in PARTS[model].model_fields}
        else:
            read.add(name)
    if stage_calls(entry.tree, "declared_params"):
        assert entry.name in ("bundle", "report")
        read |= entry.declared & set(read_params(REPOSITORY / Path(entry.file).with_name("params.yaml")))
    assert read == entry.declared


@each_stage
def test_a_section_is_read_as_what_leverlab_params_checks(entry: Entry) -> None:
    for call in stage_calls(entry.tree, "section"):
        name, model = ast.literal_eval(call.args[0]), ast.unparse(call.args[1])
        if entry.name in WORLDS:
            assert model == WORLDS[entry.name]
        else:
            assert model in {kind.__name__ for kind in entry.sections[name].__mro__ if issubclass(kind, Section)}


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
    for file in PARAMS:
        folder = str(Path(file).parent)
        used = set().union(*(entry.declared for entry in ENTRIES if str(Path(entry.file).parent) == folder))
        unused = set(read_params(REPOSITORY / file)) - {key.split(".")[0] for key in used}
        assert not unused, f"{file}: no stage reads {sorted(unused)}"


@each_stage
def test_only_training_fans_out_and_only_over_seeds(entry: Entry) -> None:
    assert ("matrix" in entry.body) == entry.fans_out
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
        home = f"recipes/{entry.recipe}/" if entry.recipe else ""
        runs = {f"{home}models/{name}" for name in MATRIX_STAGES}
        folders = {dep for dep in entry.body.get("deps", []) if dep in runs}
        if folders:
            assert "seeds" in entry.declared, entry.name


def test_code_deps_are_the_import_closure() -> None:
    assert check(REPOSITORY) == []
