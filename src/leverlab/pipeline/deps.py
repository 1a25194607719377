"""The import closure of a stage: the modules of this repository that its code runs, compared with what `dvc.yaml` says.

DVC re-runs a stage when one of its declared deps changes and knows nothing of imports, so a module that a stage imports
but does not declare changes its result silently. Imports are read from the source, never run; imports by a computed
name (`importlib.import_module`) are not seen and have no place in a stage.
"""

import ast
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from leverlab.errors import LeverlabError
from leverlab.files import write_text
from leverlab.library_errors import reason_of

SOURCE_FOLDERS = (Path("."), Path("src"))
SKIPPED_FOLDERS = {".venv", ".git", ".dvc", ".leverlab"}
MODULE_IN_COMMAND = re.compile(r"(?:^|\s)-m\s+([A-Za-z_][\w.]*)")
MEND = "run `leverlab deps --write`"


@dataclass(frozen=True)
class StageCode:
    """What one stage of a `dvc.yaml` runs and declares. Paths are relative to the root of the repository.

    `modules` are the names after `python -m` in its command that lie in this repository, `deps` all declared deps in
    the order of the file, `wdir` the folder that deps and command are relative to.
    """

    name: str
    modules: tuple[str, ...]
    deps: tuple[str, ...]
    wdir: str


def closure(entry: Path, root: Path) -> list[Path]:
    """Return the files of the repository that run when `entry` is run as a module, itself included.

    The paths are relative to `root` and sorted. Followed are `import a.b`, `from a import b` (a module or an attribute)
    and relative imports, also inside functions, with the `__init__.py` of every package on the way; imports under
    `if TYPE_CHECKING:` never run and are left out. Raises `LeverlabError` when `entry` lies outside the repository, a
    file is no Python, or an import names a module that a package of this repository does not have.
    """
    root = root.resolve()
    path = (root / entry).resolve()
    if not path.is_relative_to(root) or not path.is_file():
        raise LeverlabError(f"{entry} is no file of the repository {root}; give the path of a module in it")
    found: set[Path] = set()
    pending = _files_on_the_way(_module_name(path.relative_to(root)), root)
    while pending:
        file = pending.pop()
        if file not in found:
            found.add(file)
            pending += [path for name in _imports(file, root) for path in _files_on_the_way(name, root)]
    return sorted(found)


def declared(dvc_yaml: Path, root: Path | None = None) -> list[StageCode]:
    """Return the code that each stage of `dvc_yaml` runs and the deps that it declares.

    `root` is the root of the repository, by default the folder of the file. A stage is a plain one, or the body of a
    `matrix` or `foreach`. Raises `LeverlabError` when the file is not a DVC pipeline, or a command runs a module that
    does not exist.
    """
    root = (root or dvc_yaml.parent).resolve()
    return [_stage_code(name, body, dvc_yaml, root) for name, body in _stages(dvc_yaml).items()]


def check(root: Path) -> list[str]:
    """Return a sentence for every module that a stage imports and does not declare, or declares and does not import.

    Every `dvc.yaml` of the repository counts. Raises `LeverlabError` as `closure` and `declared` do.
    """
    root = root.resolve()
    return [
        f"{dvc_yaml.relative_to(root)}: stage '{stage.name}' {problem}"
        for dvc_yaml in _pipelines(root)
        for stage in declared(dvc_yaml, root)
        for problem in _problems(stage, root)
    ]


def write(root: Path) -> list[Path]:
    """Bring the `.py` deps of every stage in line with its imports; return the `dvc.yaml` files that changed.

    Data deps keep their order and comments and come first, code deps follow, sorted; no other line is touched. Stages
    that run no module of the repository stay as they are. Raises `LeverlabError` as `closure` and `declared` do, and
    for deps that are not written one per line.
    """
    root = root.resolve()
    changed = []
    for dvc_yaml in _pipelines(root):
        before = dvc_yaml.read_text(encoding="utf-8")
        lines = before.split("\n")
        bodies = _stages(dvc_yaml)
        # From the last line up, so that the line numbers of what is still to be edited stay true.
        for stage in sorted(declared(dvc_yaml, root), key=lambda stage: -int(bodies[stage.name].lc.line)):
            if stage.modules:
                paths = [Path(os.path.relpath(path, stage.wdir)).as_posix() for path in _needed(stage, root)]
                _rewrite_deps(lines, bodies[stage.name], paths, f"{dvc_yaml.relative_to(root)}: stage '{stage.name}'")
        after = "\n".join(lines)
        if after != before:
            write_text(dvc_yaml, after)
            changed.append(dvc_yaml)
    return changed


def _problems(stage: StageCode, root: Path) -> list[str]:
    code = [dep for dep in stage.deps if dep.endswith(".py")]
    if not stage.modules:
        why = "but its imports cannot be followed: its command runs no `python -m` module of this repository"
        return [f"lists {dep}, {why}" for dep in code]
    needed = _needed(stage, root)
    folders = [dep for dep in stage.deps if any(Path(dep) in Path(path).parents for path in needed)]
    return [
        *(f"imports {path}, which its deps do not list; {MEND}" for path in needed if path not in stage.deps),
        *(f"lists {dep}, which it does not import; {MEND}" for dep in code if dep not in needed),
        *(f"lists the folder {dep}, which holds code; list only the modules that it imports" for dep in folders),
    ]


def _needed(stage: StageCode, root: Path) -> list[str]:
    entries = [path for module in stage.modules if (path := _find(module, root)) is not None]
    return sorted({path.as_posix() for entry in entries for path in closure(entry, root)})


def _pipelines(root: Path) -> list[Path]:
    found = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(set(subfolders) - SKIPPED_FOLDERS)
        if "dvc.yaml" in files:
            found.append(Path(folder) / "dvc.yaml")
    return found


def _stages(dvc_yaml: Path) -> dict[str, CommentedMap]:
    try:
        document = YAML().load(dvc_yaml.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises TypeError, RecursionError and more beside its own errors
        raise LeverlabError(f"{dvc_yaml} cannot be read as YAML: {reason_of(error)}") from None
    stages = document.get("stages", {}) if isinstance(document, CommentedMap) else None
    if not isinstance(stages, dict):
        raise LeverlabError(f"{dvc_yaml} is no DVC pipeline: it must be a mapping, and 'stages' in it a mapping too")
    bodies = {}
    for name, stage in stages.items():
        body = stage.get("do", stage) if isinstance(stage, CommentedMap) else None
        if not isinstance(body, CommentedMap) or "cmd" not in body:
            raise LeverlabError(f"{dvc_yaml}: stage '{name}' must be a mapping with a 'cmd'")
        cmd, deps = body["cmd"], body.get("deps") or []
        if not all(
            isinstance(line, str) for line in [body.get("wdir", "."), *(cmd if isinstance(cmd, list) else [cmd])]
        ):
            raise LeverlabError(f"{dvc_yaml}: stage '{name}': 'cmd' must be a text or a list of texts, 'wdir' a text")
        if not isinstance(deps, list) or not all(isinstance(dep, str) and dep for dep in deps):
            raise LeverlabError(f"{dvc_yaml}: stage '{name}': 'deps' must be a list of paths")
        bodies[str(name)] = body
    return bodies


def _stage_code(name: str, body: CommentedMap, dvc_yaml: Path, root: Path) -> StageCode:
    wdir = os.path.relpath(dvc_yaml.parent.resolve() / str(body.get("wdir", ".")), root)
    commands: Any = body["cmd"]
    text = "\n".join(map(str, commands)) if isinstance(commands, list) else str(commands)
    modules = []
    for module in MODULE_IN_COMMAND.findall(text.replace("\\\n", " ")):
        if _find(module, root):
            modules.append(module)
        elif _is_ours(module, root):
            raise LeverlabError(f"{dvc_yaml}: stage '{name}' runs {module}, which is not in this repository")
    deps = tuple(os.path.normpath(os.path.join(wdir, str(dep))) for dep in body.get("deps") or ())
    return StageCode(name, tuple(modules), deps, wdir)


def _rewrite_deps(lines: list[str], body: CommentedMap, paths: list[str], where: str) -> None:
    """Replace the code deps of one stage in the lines of its file; the lines of all other deps stay as they are."""
    if "deps" not in body:
        row, column = body.lc.key("cmd")
        margin = " " * column
        lines[row:row] = [f"{margin}deps:", *(f"{margin}  - {path}" for path in paths)]
        return
    deps = body["deps"]
    if not isinstance(deps, CommentedSeq) or not deps or deps.fa.flow_style():
        raise LeverlabError(f"{where}: its deps must stand one per line, each behind a dash, to be rewritten")
    rows = [deps.lc.item(index)[0] for index in range(len(deps))]
    margin = lines[rows[0]][: lines[rows[0]].index("-")]
    data: list[str] = []
    code = {path: [f"{margin}- {path}"] for path in paths}
    start = rows[0]
    for row, dep in zip(rows, deps, strict=True):
        block = lines[start : row + 1]  # comment lines above an entry go where the entry goes
        start = row + 1
        normal = os.path.normpath(str(dep))
        if normal in code:
            code[normal] = block
        elif not normal.endswith(".py"):
            data += block
    lines[rows[0] : rows[-1] + 1] = data + [line for path in sorted(code) for line in code[path]]


def _imports(file: Path, root: Path) -> Iterator[str]:
    """Yield the dotted names that `file` imports when it runs, as absolute names; outside ones included."""
    try:
        tree = ast.parse((root / file).read_bytes(), filename=str(file))
    except (SyntaxError, ValueError) as error:
        raise LeverlabError(f"{file} is no Python that can be read: {error}") from None
    package = _module_name(file).split(".")
    if file.name != "__init__.py":
        package.pop()
    for node in _executed(tree):
        if isinstance(node, ast.Import):
            names, children = [alias.name for alias in node.names], []
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            parent = ".".join([*base, *filter(None, [node.module])])
            names, children = [parent], [f"{parent}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if _is_ours(name, root) and not _exists(name, root):
                raise LeverlabError(f"{file}, line {node.lineno}, imports {name}, which is not in this repository")
        yield from names
        yield from (child for child in children if _find(child, root))


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes below `node` but those that only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            for statement in child.orelse:
                yield statement
                yield from _executed(statement)
        else:
            yield child
            yield from _executed(child)


def _module_name(file: Path) -> str:
    parts = file.with_suffix("").parts
    parts = parts[1:] if parts[0] == "src" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _files_on_the_way(name: str, root: Path) -> list[Path]:
    """Return the files that an import of `name` runs: the `__init__.py` of its packages, and its own."""
    parts = name.split(".")
    prefixes = [".".join(parts[: count + 1]) for count in range(len(parts))]
    return [file for prefix in prefixes if (file := _find(prefix, root)) is not None]


def _find(name: str, root: Path) -> Path | None:
    """Return the file of module `name`, relative to `root`, or None where the repository has no such module."""
    parts = name.split(".")
    for folder in SOURCE_FOLDERS:
        for file in (folder.joinpath(*parts, "__init__.py"), folder.joinpath(*parts[:-1], f"{parts[-1]}.py")):
            if (root / file).is_file():
                return file
    return None


def _is_ours(name: str, root: Path) -> bool:
    return _find(name.split(".")[0], root) is not None


def _exists(name: str, root: Path) -> bool:
    folders = (root.joinpath(folder, *name.split(".")) for folder in SOURCE_FOLDERS)
    return _find(name, root) is not None or any(folder.is_dir() for folder in folders)
