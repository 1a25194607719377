"""Where a file comes from: the stages that led to it, back to the raw rows, as their provenance records tell it.

DVC says which stage makes what; the record of a stage's last run says from which bytes, with which params and at which
revision. Each input is compared with its record, so that the tree shows where a chain no longer holds.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import networkx
from dvc.dependency.param import ParamsDependency
from rich.text import Text
from rich.tree import Tree

from leverlab.config.base import read_param
from leverlab.errors import LeverlabError
from leverlab.files import digest, files_below
from leverlab.nearest import nearest
from leverlab.pipeline.resolved import open_pipeline, record_path

SAME, CHANGED, ABSENT = "✓", "changed since", "absent"
RAW_SECTION = "data"  # the params that say which raw rows are loaded
OTHER_RUN = " · its record is of another run than the one that was used"
COLOURS = {SAME: "green", CHANGED: "red", ABSENT: "yellow"}


@dataclass(frozen=True)
class Step:
    """One stage on the way to a file. What stands beside `stage` is empty where the stage was `seen` before.

    `record` is the path of its provenance record, None where there is none: then `params` and inputs are what
    `dvc.yaml` declares now. `other_run` says that the record is of a run that made other bytes than were used.
    `code` maps the modules of this repository to their marks, `raw` holds the params that choose the raw rows.
    """

    stage: str
    seen: bool = False
    record: str | None = None
    other_run: bool = False
    revision: str | None = None
    dirty: bool = False
    seconds: float | None = None
    params: dict[str, Any] = field(default_factory=dict)
    code: dict[str, str | None] = field(default_factory=dict)
    inputs: tuple["Origin", ...] = ()
    raw: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Origin:
    """One file or folder, and the stages that made it or parts of it; none made a raw file.

    `mark` compares it with the record of its use: '✓', 'changed since' or 'absent', None where no record names it.
    """

    path: str
    mark: str | None
    made_by: tuple[Step, ...]


def lineage(root: Path, file: str) -> Origin:
    """Return where `file` (a path relative to `root`: an out, a file below one, or a folder of outs) comes from.

    Raises `LeverlabError`, with near matches, when no stage makes it.
    """
    with open_pipeline(root) as stages:
        return _Walk(root, stages).start(file)


class _Walk:
    """One walk from a file to its origins; digests are computed once, a stage is told once."""

    def __init__(self, root: Path, stages: Mapping[str, Any]):
        self.root = root
        self.stages = stages
        self.outs = {name: [self._path(out) for out in stage.outs] for name, stage in stages.items()}
        self.graph = networkx.DiGraph()
        self.graph.add_nodes_from(stages)
        for name, stage in stages.items():
            self.graph.add_edges_from((maker, name) for dep in stage.deps for maker in self._makers(self._path(dep)))
        self.records = {name: self._record(name) for name in stages}
        self._digests: dict[str, str | None] = {}
        self._told: set[str] = set()

    def start(self, file: str) -> Origin:
        makers = self._makers(file)
        if not makers:
            raise LeverlabError(f"no stage makes '{file}'{self._hint(file)}")
        holders = [(name, out) for name in makers for out in self.outs[name] if file.startswith(f"{out}/")]
        for name, out in holders:
            if (self.root / out).exists() and not (self.root / file).exists():
                raise LeverlabError(f"'{out}', which stage '{name}' makes, holds no '{file}'{self._hint(file)}")
        recorded = {
            out: used
            for name in makers
            for out, used in (self.records[name] or {"outs": {}})["outs"].items()
            if _related(out, file)
        }
        marks = [self._mark(out, used) for out, used in recorded.items()] or [self._mark(file, None)]
        mark = next((mark for mark in (ABSENT, CHANGED, SAME) if mark in marks), None)
        return Origin(file, mark, tuple(self._step(name, file, None) for name in makers))

    def _step(self, name: str, path: str, read: str | None) -> Step:
        """Return the stage `name`, which made `path`; `read` is the digest with which `path` was used."""
        record = self.records[name]
        made = (record or {}).get("outs", {}).get(path)
        other_run = None not in (read, made) and read != made
        if name in self._told:
            return Step(name, seen=True, other_run=other_run)
        self._told.add(name)
        inputs = record["inputs"] if record else {self._path(dep): None for dep in self._files(name)}
        params = record["params"] if record else self._declared_params(name)
        return Step(
            stage=name,
            record=self._record_path(name) if record else None,
            other_run=other_run,
            revision=record["revision"] if record else None,
            dirty=bool(record and record["dirty"]),
            seconds=record["seconds"] if record else None,
            params=params,
            code={path: self._mark(path, used) for path, used in inputs.items() if _is_code(path)},
            inputs=tuple(self._origin(path, used) for path, used in inputs.items() if not _is_code(path)),
            raw=self._raw(name, params),
        )

    def _origin(self, path: str, used: str | None) -> Origin:
        return Origin(path, self._mark(path, used), tuple(self._step(name, path, used) for name in self._makers(path)))

    def _makers(self, path: str) -> list[str]:
        return [name for name, outs in self.outs.items() if any(_related(out, path) for out in outs)]

    def _raw(self, name: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the params `data…` where they choose the raw rows: in a stage with no stage before it that reads
        them."""
        earlier = networkx.ancestors(self.graph, name)
        if any(_is_raw(key) for other in earlier for key in self._declared_params(other)):
            return {}
        chosen = {_dotted(key): value for key, value in params.items() if _is_raw(key)}
        whole = chosen.pop(RAW_SECTION, {})
        return chosen | {f"{RAW_SECTION}.{key}": value for key, value in whole.items()}

    def _declared_params(self, name: str) -> dict[str, Any]:
        """Return the params that `dvc.yaml` declares, keyed 'file:key' as in a record, as they are now."""
        declared = [dep for dep in self.stages[name].deps if isinstance(dep, ParamsDependency)]
        return {f"{dep.def_path}:{key}": read_param(Path(dep.fs_path), key) for dep in declared for key in dep.params}

    def _files(self, name: str) -> list[Any]:
        return [dep for dep in self.stages[name].deps if not isinstance(dep, ParamsDependency)]

    def _record(self, name: str) -> dict[str, Any] | None:
        path = self.root / self._record_path(name)
        if not path.exists():
            return None
        try:
            record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise LeverlabError(
                f"{path} is no provenance record ({error}); restore it with git, or run the stage again"
            ) from None
        missing = {"revision", "dirty", "seconds", "params", "inputs", "outs"} - set(record)
        if missing:
            raise LeverlabError(f"{path} lacks {sorted(missing)}; restore it with git, or run the stage again")
        for part in ("inputs", "outs"):
            record[part] = {self._from_root(name, given): digest for given, digest in record[part].items()}
        return record

    def _record_path(self, name: str) -> str:
        return Path(os.path.relpath(record_path(self.stages[name]), self.root)).as_posix()

    def _mark(self, path: str, used: str | None) -> str | None:
        if path not in self._digests:
            whole = self.root / path
            self._digests[path] = digest(whole) if whole.exists() else None
        now = self._digests[path]
        if now is None:
            return ABSENT
        return None if used is None else SAME if now == used else CHANGED

    def _path(self, item: Any) -> str:
        return Path(os.path.relpath(item.fs_path, self.root)).as_posix()

    def _from_root(self, name: str, given: str) -> str:
        return Path(os.path.relpath(os.path.join(self.stages[name].wdir, given), self.root)).as_posix()

    def _hint(self, file: str) -> str:
        known = {out for outs in self.outs.values() for out in outs}
        folders = [self.root / out for out in known if (self.root / out).exists()]
        known |= {below.relative_to(self.root).as_posix() for folder in folders for below in files_below(folder)}
        alike = sorted(path for path in known if Path(path).name == Path(file).name)
        near = alike or nearest(file, known)
        return f"; did you mean {' or '.join(near[:3])}?" if near else "; `dvc stage list` shows what stages make"


def _related(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}/") or other.startswith(f"{one}/")


def _is_code(path: str) -> bool:
    return path.endswith(".py")


def _dotted(key: str) -> str:
    """Return the dotted key of a 'file:key'."""
    return key.rpartition(":")[2]


def _is_raw(key: str) -> bool:
    return _dotted(key).split(".")[0] == RAW_SECTION


def render(origin: Origin, code: bool = False) -> Tree:
    """Return `origin` as a tree to print; with `code`, the modules of each stage one by one."""
    tree = Tree("", hide_root=True)
    _add_origin(tree, origin, code, set())
    return tree


def _add_origin(tree: Tree, origin: Origin, code: bool, shown: set[str]) -> None:
    line = _marked(origin.path, origin.mark)
    seen = [step for step in origin.made_by if step.seen]
    if seen:
        line.append(f" ← {', '.join(step.stage for step in seen)} (see above)", "dim")
        line.append(OTHER_RUN if any(step.other_run for step in seen) else "", "red")
    branch = tree.add(line)
    for step in origin.made_by:
        if not step.seen:
            _add_step(branch.add(_headline(step)), step, code, shown)


def _add_step(branch: Tree, step: Step, code: bool, shown: set[str]) -> None:
    """Add a stage; params that are in `shown`, with the same value, are only named."""
    lines = {key: f"{key}: {_compact(value)}" for key, value in step.params.items()}
    for key, line in lines.items():
        if line not in shown:
            branch.add(Text(line.replace(key, _dotted(key), 1), style="dim", no_wrap=True, overflow="ellipsis"))
    above = [_dotted(key) for key, line in lines.items() if line in shown]
    if above:
        branch.add(Text(f"as above: {', '.join(above)}", style="dim", no_wrap=True, overflow="ellipsis"))
    shown.update(lines.values())
    if step.code:
        modules = branch.add(_code_line(step.code))
        for path, mark in step.code.items() if code else ():
            modules.add(_marked(path, mark))
    for origin in step.inputs:
        _add_origin(branch, origin, code, shown)
    if step.raw:
        branch.add(Text(f"raw rows: {', '.join(f'{key} = {_compact(value)}' for key, value in step.raw.items())}"))


def _headline(step: Step) -> Text:
    text = Text.assemble("← ", (step.stage, "bold"))
    if step.record is None:
        return text.append(" · no provenance record: this is what dvc.yaml declares now", "yellow")
    revision = (step.revision or "unknown")[:7]
    text.append(f" · revision {revision}{' with uncommitted edits' if step.dirty else ''} · {step.seconds} s")
    return text.append(OTHER_RUN if step.other_run else "", "red")


def _code_line(code: Mapping[str, str | None]) -> Text:
    marks = list(code.values())
    text = Text(f"{len(code)} module{'s' if len(code) > 1 else ''} of this repository")
    if set(marks) == {SAME}:
        text.append(f" {SAME}", COLOURS[SAME])
    for mark in (CHANGED, ABSENT):
        if mark in marks:
            text.append(f", {marks.count(mark)} {mark}", COLOURS[mark])
    return text


def _marked(path: str, mark: str | None) -> Text:
    return Text.assemble(path, " ", (mark, COLOURS[mark])) if mark else Text(path)


def _compact(value: Any) -> str:
    """Return a value of params on one line."""
    if isinstance(value, Mapping):
        return "{" + " ".join(f"{key}={_compact(inner)}" for key, inner in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)
