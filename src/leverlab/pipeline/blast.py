"""What a change of a parameter re-runs: the stages that read it, and all that need their outs.

`dvc repro --dry` stops at the first stage that would run, so the answer is taken from DVC's own graph. It is an upper
bound: where a stage writes the same bytes as before, DVC runs nothing below it.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import networkx as nx
from dvc.dependency import ParamsDependency
from dvc.repo import Repo
from rich.table import Table

from leverlab.config.base import read_params
from leverlab.errors import LeverlabError
from leverlab.files import write_text
from leverlab.nearest import did_you_mean
from leverlab.pipeline.resolved import address, dvc_errors, record_path

PAGE = Path("docs/blast_radius.md")
ROOT_PARAMS = "params.yaml"
NEW = "<new>"  # stands for a value that is added to a list over which dvc.yaml fans a stage out
HEAD = """\
# What a change of each parameter re-runs

Written by `leverlab blast --all`, from DVC's own graph; do not edit it. `leverlab blast KEY` gives for one key the
seconds and the peak memory of each stage's last run, and why it runs again.

A stage reads a key when `dvc.yaml` declares the key, or a section above it. What re-runs is those stages and all that
need their outs, in the order in which they run; where a stage writes the same bytes as before, DVC runs nothing below
it. A key that no stage reads re-runs 0 stages. A list that fans a stage out gets one value more here: `@<new>` is the
item of that value. The pipelines have {stages} stages, every item of a matrix counted.
"""


@dataclass(frozen=True)
class Rerun:
    """A stage that a change re-runs, with the cost of its last run (None where it has no provenance).

    `why` is the shortest path from the key to the stage. A new item of a matrix stands in it as 'matrix of STAGE'.
    """

    stage: str
    seconds: float | None
    peak_mib: int | None
    why: tuple[str, ...]


@dataclass(frozen=True)
class Pipeline:
    """What DVC knows of all stages of a repository; stages carry the names that `dvc repro` takes in its root.

    An edge of `graph` leads from a stage to one that needs its outs, and its nodes stand in the order of dvc.yaml. A
    param is (file, dotted key), the key of a whole file is empty. `fans` are the lists that a matrix goes over.
    Files are relative to the root.
    """

    root: Path
    graph: Any
    files: tuple[str, ...]
    params: Mapping[str, Mapping[str, Any]]
    reads: Mapping[str, frozenset[tuple[str, str]]]
    fans: frozenset[tuple[str, str]]
    provenance: Mapping[str, Path]


def blast(root: Path, key: str) -> list[Rerun]:
    """Return what a change of `key` re-runs, in the order in which it runs.

    `key` is dotted and may be a section; `FILE:key` names the params file, by default the root's. Raises
    `LeverlabError` when no params file that a stage reads has the key, or the root's has not and several others have.
    """
    pipeline = read_pipeline(root)
    file, dotted = _find(pipeline, key)
    return [Rerun(stage, *_cost(pipeline, stage), why) for stage, why in _radius(pipeline, file, dotted).items()]


def table(key: str, reruns: Iterable[Rerun]) -> Table:
    """Return the table of `reruns` for a terminal, with the sum of the seconds that are known."""
    reruns = list(reruns)
    seconds = [rerun.seconds for rerun in reruns if rerun.seconds is not None]
    unknown = len(reruns) - len(seconds)
    note = f"{unknown} without a recorded run are not in the total" if unknown else ""
    grid = Table(title=f"A change of {key} re-runs", show_footer=True)
    grid.add_column("stage", "total", no_wrap=True)
    grid.add_column("seconds", f"{sum(seconds):.1f}", justify="right")
    grid.add_column("peak MiB", justify="right")
    grid.add_column("why", note, overflow="fold")
    for rerun in reruns:
        cells = (_cell(rerun.seconds, ".1f"), _cell(rerun.peak_mib, "d"))
        grid.add_row(rerun.stage, *cells, " → ".join(rerun.why))
    return grid


def page(root: Path) -> str:
    """Return the text of docs/blast_radius.md: for every leaf of every params file what its change re-runs."""
    pipeline = read_pipeline(root)
    parts = [HEAD.format(stages=len(pipeline.graph))]
    for file, data in pipeline.params.items():
        lines = [f"## {file}", "", "| key | stages | read by | re-runs |", "|---|---|---|---|"]
        for key in _leaves(data):
            found = _radius(pipeline, file, key)
            first = [stage for stage, why in found.items() if len(why) == 2]
            cells = (f"`{key}`", str(len(found)), _names(first), _names(found))
            lines.append(f"| {' | '.join(cells)} |")
        parts.append("\n".join([*lines, ""]))
    return "\n".join(parts)


def write(root: Path) -> Path:
    """Write docs/blast_radius.md; return its path, relative to `root`."""
    write_text(root / PAGE, page(root))
    return PAGE


def read_pipeline(root: Path) -> Pipeline:
    """Return all stages of the DVC repository at `root`. Raises `LeverlabError` when DVC cannot read them."""
    root = root.resolve()
    with dvc_errors(f"DVC cannot read the pipeline of {root}"), Repo(str(root)) as repo:
        graph = repo.index.graph
    files = {stage: _relative(stage.path, root) for stage in graph if stage.cmd}
    stages = sorted(files, key=lambda stage: (files[stage].count("/"), files[stage]))  # within a file as they stand
    names = {stage: address(stage, root) for stage in stages}
    reads = {stage: _declared(stage, root) | _interpolated(stage, root) for stage in stages}
    params_files = sorted(
        {file for read in reads.values() for file, _ in read}, key=lambda file: (file.count("/"), file)
    )
    params = {file: read_params(root / file) for file in params_files}
    items = {stage: _items_of_lists(stage, reads[stage], params) for stage in stages}
    return Pipeline(
        root=root,
        graph=_renamed(graph, names),
        files=tuple(dict.fromkeys(files.values())),
        params=params,
        reads={names[stage]: frozenset(reads[stage] - items[stage].keys()) for stage in stages},
        fans=frozenset(fan for stage in stages for fan in items[stage].values()),
        provenance={names[stage]: record_path(stage) for stage in stages},
    )


def _renamed(graph: Any, names: Mapping[Any, str]) -> Any:
    """Return DVC's graph of the stages in `names` turned round, all in the order of `names`."""
    turned = nx.DiGraph()
    turned.add_nodes_from(names.values())
    turned.add_edges_from((names[need], names[stage]) for stage in names for need in graph[stage] if need in names)
    return turned


def _relative(path: str, root: Path) -> str:
    return Path(os.path.relpath(Path(path).resolve(), root)).as_posix()


def _declared(stage: Any, root: Path) -> set[tuple[str, str]]:
    deps = [dep for dep in stage.deps if isinstance(dep, ParamsDependency)]
    return {(_relative(dep.fs_path, root), key) for dep in deps for key in dep.params or [""]}


def _interpolated(stage: Any, root: Path) -> set[tuple[str, str]]:
    """Return the params that `${…}` puts into the stage; a value of a list has its index behind the key."""
    return {(_relative(file, root), key) for file, values in stage.tracked_vars.items() for key in values}


def _items_of_lists(
    stage: Any, reads: set[tuple[str, str]], params: Mapping[str, Mapping[str, Any]]
) -> dict[tuple[str, str], tuple[str, str]]:
    """Return, for the item of a matrix, its values of lists with the list: another list leaves the item alone."""
    if "@" not in stage.name:
        return {}
    return {
        (file, key): (file, leaf) for file, key in reads for leaf in _leaves(params[file]) if key.startswith(f"{leaf}.")
    }


def _radius(pipeline: Pipeline, file: str, key: str) -> dict[str, tuple[str, ...]]:
    """Return the stages that a change of `key` in `file` re-runs, in the order in which they run, each with why."""
    fans = [leaf for where, leaf in pipeline.fans if where == file and _overlap(leaf, key)]
    after = _with_new_values(pipeline, file, fans) if fans else pipeline
    labels = {name: f"matrix of {name.rpartition('@')[0]}" for name in after.graph if name not in pipeline.graph}
    start = (file, key)  # no stage has such a name
    graph = after.graph.copy()
    for name, reads in after.reads.items():
        if name in labels or any(where == file and _overlap(read, key) for where, read in reads):
            graph.add_edge(start, name)
    if start not in graph:
        return {}
    paths = nx.single_source_shortest_path(graph, start)
    del paths[start]
    position = {name: place for place, name in enumerate(graph)}
    order = nx.lexicographical_topological_sort(graph.subgraph(paths), key=position.__getitem__)
    return {name: (key, *(labels.get(step, step) for step in paths[name][1:])) for name in order}


def _overlap(one: str, other: str) -> bool:
    """Return whether two dotted keys are the same, or one lies inside the other."""
    return not one or one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")


def _with_new_values(pipeline: Pipeline, file: str, fans: Iterable[str]) -> Pipeline:
    """Return the pipeline that DVC makes of the lists `fans` of `file` with a new value at the end of each."""
    data = json.loads(json.dumps(pipeline.params[file], default=str))
    for fan in fans:
        *folders, leaf = fan.split(".")
        section = data
        for folder in folders:
            section = section[folder]
        section[leaf].append(NEW)
    with TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in {*pipeline.files, *pipeline.params}:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(pipeline.root / name, copy / name)
        (copy / file).write_text(json.dumps(data), encoding="utf-8")  # JSON is YAML
        (copy / ".dvc").mkdir()
        (copy / ".dvc" / "config").write_text(f"[core]\nno_scm = true\nsite_cache_dir = {copy}/.dvc/site\n")
        return read_pipeline(copy)


def _nodes(data: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, bool]]:
    """Yield every dotted key of a params file in its order, and whether it is a leaf: no mapping."""
    for name, value in data.items():
        yield f"{above}{name}", not isinstance(value, Mapping)
        if isinstance(value, Mapping):
            yield from _nodes(value, f"{above}{name}.")


def _leaves(data: Mapping[str, Any]) -> list[str]:
    return [key for key, is_leaf in _nodes(data) if is_leaf]


def _find(pipeline: Pipeline, key: str) -> tuple[str, str]:
    """Return the params file that has `key`, and the key without the file."""
    prefix, _, dotted = key.rpartition(":")
    if prefix and prefix not in pipeline.params:
        hint = did_you_mean(prefix, pipeline.params, "`leverlab blast --all`")
        raise LeverlabError(f"no stage reads a params file '{prefix}'{hint}")
    known = {file: [name for name, _ in _nodes(pipeline.params[file])] for file in pipeline.params}
    where = [prefix] if prefix else list(known)
    found = [file for file in where if dotted in known[file]]
    if ROOT_PARAMS in found:  # those of recipes and worlds are named
        return ROOT_PARAMS, dotted
    if len(found) > 1:
        choices = " or ".join(f"{file}:{dotted}" for file in found)
        raise LeverlabError(f"more than one params file has the key '{dotted}'; name one: {choices}")
    if not found:
        names = [name for file in where for name in known[file]]
        raise LeverlabError(f"no key '{dotted}' in {', '.join(where)}{did_you_mean(dotted, names, str(PAGE))}")
    return found[0], dotted


def _cost(pipeline: Pipeline, stage: str) -> tuple[float | None, int | None]:
    """Return the seconds and the peak memory (MiB) of the stage's last run, None where none is recorded."""
    path = pipeline.provenance.get(stage)
    if path is None or not path.exists():
        return None, None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return record["seconds"], record["peak_mib"]
    except (ValueError, KeyError, TypeError):
        raise LeverlabError(f"{path} is no record of a run; run the stage {stage} again to write it anew") from None


def _cell(value: float | None, style: str) -> str:
    return "–" if value is None else format(value, style)


def _names(stages: Iterable[str]) -> str:
    """Return the stages as one cell, the items of a matrix together: grpo@{0,1,2}."""
    groups: dict[str, list[str]] = {}
    for stage in stages:
        group, _, item = stage.partition("@")
        groups.setdefault(group, []).append(item)
    if not groups:
        return "–"
    return ", ".join(f"`{group}{_items(items)}`" for group, items in groups.items())


def _items(items: list[str]) -> str:
    if len(items) > 1:
        return f"@{{{','.join(items)}}}"
    return f"@{items[0]}" if items[0] else ""
