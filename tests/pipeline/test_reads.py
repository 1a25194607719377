"""Every declared key of a params file is read by the stage that declares it: there are no dead knobs.

The type checker tells what is read. In a copy of the repository all fields of the params models are removed; each
complaint `"SftParams" has no attribute "lr"` is then a place that reads one, with the model it is read through. Names
alone would not do: many sections have a key `lr`, `seed` or `batch`.
"""

import ast
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from mypy import api

from leverlab.config.base import Section
from leverlab.config.digits_vlm import DigitsVlmParams
from leverlab.config.gguf import GgufKinds
from leverlab.config.prepare import PrepareEncoder
from leverlab.config.schedule import Schedule
from leverlab.config.vlm import VlmAnswers, VlmModel, VlmSource
from leverlab.pipeline.deps import closure, declared
from leverlab.pipeline.params import SECTIONS

REPOSITORY = Path(__file__).parents[2]
PIPELINES = ("dvc.yaml", "worlds/digits/dvc.yaml")
PARTS = (DigitsVlmParams, GgufKinds, PrepareEncoder, VlmAnswers, VlmModel, VlmSource)
MODELS = {model.__name__: model for model in (*SECTIONS.values(), *PARTS)}
COMPLAINT = re.compile(
    r'^(?P<file>[^:]+):\d+: error: (?:Item )?"(?P<model>\w+)".* has no attribute "(?P<key>\w+)"', re.M
)
PYDANTIC = """
from typing import Any
class BaseModel:
    @classmethod
    def model_validate(cls, data: Any) -> Any: ...
def __getattr__(name: str) -> Any: ...
"""
Reads = set[tuple[str, str, str]]  # file, model, key


def find_reads(root: Path, copy: Path) -> Reads:
    """Return every place in the code of `root` that reads a field of a params model."""
    for folder in ("src/leverlab", "stages"):
        shutil.copytree(root / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (copy / "src/leverlab/config").glob("*.py"):
        path.write_text(without_fields(path.read_text(encoding="utf-8")))
    (copy / "stubs").mkdir()
    (copy / "stubs/pydantic.pyi").write_text(PYDANTIC)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(copy)
        patch.setenv("MYPYPATH", "src:stubs")
        options = ["--config-file=", "--follow-imports=skip", "--ignore-missing-imports", "--check-untyped-defs"]
        out, error, _ = api.run(
            [*options, "--no-incremental", "--no-error-summary", "-p", "leverlab", "-p", "stages", "-m", "pydantic"]
        )
    assert not error, error
    return {(match["file"], match["model"], match["key"]) for match in COMPLAINT.finditer(out)}


def without_fields(source: str) -> str:
    """Return the module `source` without the plain fields of its classes; those that lead to a section stay."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            kept = [part for part in node.body if not isinstance(part, ast.AnnAssign) or leads_on(part)]
            node.body = kept or [ast.Pass()]
    return ast.unparse(tree)


def leads_on(field: ast.AnnAssign) -> bool:
    names = {node.id for node in ast.walk(field.annotation) if isinstance(node, ast.Name)}
    return any(kind.__name__ in names for kind in every_section() - {Schedule})


def every_section() -> set[type[Section]]:
    found, pending = set(), [Section]
    while pending:
        kind = pending.pop()
        found.add(kind)
        pending += kind.__subclasses__()
    return found


def leaves(model: type[Section], prefix: str = "") -> Iterator[tuple[str, type[Section], str]]:
    """Yield (dotted key, model that holds it, its name) for every plain key below `model`, in nested sections too."""
    for name, field in model.model_fields.items():
        # a Schedule is one value
        nested = [kind for kind in kinds_in(field.annotation) if issubclass(kind, Section) and kind is not Schedule]
        if not nested:
            yield f"{prefix}{name}", model, name
        for kind in nested:
            yield from leaves(kind, f"{prefix}{name}.")


def kinds_in(annotation: object) -> Iterator[type]:
    """Yield every type in an annotation, inside unions and mappings too."""
    if isinstance(annotation, type):
        yield annotation
    for part in get_args(annotation):
        yield from kinds_in(part)


def unread(module: Path, reads: Reads) -> list[str]:
    """Return the keys of the sections that a stage opens which nothing in its import closure reads."""
    files = {path.as_posix() for path in closure(module, REPOSITORY) if "config" not in path.parts}
    tree = ast.parse((REPOSITORY / module).read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    found = []
    for call in calls:
        if ast.unparse(call.func) == "stage.section":
            section, model = ast.literal_eval(call.args[0]), MODELS[ast.unparse(call.args[1])]
            for dotted, holder, name in leaves(model):
                through = {kind.__name__ for kind in holder.__mro__}
                if not any(file in files and kind in through and key == name for file, kind, key in reads):
                    found.append(f"{section}.{dotted}")
    return found


def modules() -> list[Path]:
    stages = [stage for file in PIPELINES for stage in declared(REPOSITORY / file, REPOSITORY)]
    return [Path(module.replace(".", "/") + ".py") for stage in stages for module in stage.modules]


@pytest.fixture(scope="session")
def reads(tmp_path_factory: pytest.TempPathFactory) -> Reads:
    return find_reads(REPOSITORY, tmp_path_factory.mktemp("reads"))


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.stem)
def test_every_declared_key_is_read(module: Path, reads: Reads) -> None:
    assert unread(module, reads) == []


def test_a_key_that_nobody_reads_is_found(reads: Reads) -> None:
    """Without the places that read `sft.lr`, and with those of other keys of that name, it is a dead knob."""
    fewer = {
        (file, model, key) for file, model, key in reads if key != "lr" or model in ("GrpoParams", "EncoderParams")
    }
    assert unread(Path("stages/sft.py"), fewer) == ["sft.lr"]
