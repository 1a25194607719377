"""Stages run again in an empty place, and what they write compared with `dvc.lock`.

The place holds what `dvc.yaml` declares for the stage and nothing else: no cache, no score of an earlier run, no file
that it reads without declaring it. So equal digests show that its outs follow from its declared inputs.
"""

import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dvc.dependency.param import ParamsDependency
from rich.table import Table
from ruamel.yaml import YAML

from leverlab.config.base import read_param, read_yaml
from leverlab.errors import LeverlabError
from leverlab.files import files_below
from leverlab.pipeline.compare import largest_difference
from leverlab.pipeline.resolved import open_pipeline, unknown_stage

TAIL_LINES = 20


@dataclass(frozen=True)
class Verdict:
    """What running one stage again showed.

    `outs` were compared. `differing` are the files that differ, `close` those that differ by no more than `tolerance`,
    `largest` is the largest difference of numbers found in either (see `compare.largest_difference`). `error` tells why
    there is nothing to compare, `tail` ends the output of a stage that failed to run. A stage that is not
    `deterministic` (it measures time, say, and states so in `dvc.yaml`) was run and not compared.
    """

    stage: str
    outs: tuple[str, ...]
    seconds: float
    tolerance: float | None = None
    differing: tuple[str, ...] = ()
    close: tuple[str, ...] = ()
    largest: float | None = None
    error: str | None = None
    tail: str = ""
    deterministic: bool = True

    @property
    def passed(self) -> bool:
        """Whether every out is the same, in bytes or within the tolerance."""
        return self.error is None and not self.differing

    @property
    def result(self) -> str:
        """The verdict in words."""
        if self.error is not None:
            return f"failed: {self.error}"
        if not self.deterministic:
            return "runs; not deterministic, not compared"
        if not self.differing and not self.close:
            return "same bytes"
        found = "" if self.largest is None else f"; largest difference {self.largest:.3g}, tolerance {self.tolerance:g}"
        if not self.differing:
            return f"within tolerance{found} ({', '.join(self.close)})"
        return f"differs: {', '.join(self.differing)}{found}"


def select(root: Path, asked: Sequence[str]) -> list[str]:
    """Return the addresses of the stages `asked`, upstream ones first; none asked means all of the root's `dvc.yaml`.

    A name is an address (`grpo@0`, `worlds/digits/dvc.yaml:digits-vlm`) or a matrix (`grpo`, which means all its
    items). Raises `LeverlabError` for a name that no stage has, and when a stage is not up to date.
    """
    with open_pipeline(root) as stages:
        chosen = {address for address in stages if ":" not in address} if not asked else set()
        for name in asked:
            plain = name.removeprefix("dvc.yaml:")
            found = {address for address in stages if plain in (address, _matrix(address))}
            if not found:
                raise LeverlabError(unknown_stage(name, stages))
            chosen |= found
        problems = [problem for address in stages if address in chosen for problem in _stale(stages[address], address)]
        if problems:
            raise LeverlabError("\n".join(problems))
        return [address for address in stages if address in chosen]


def verify_stage(root: Path, name: str, tolerance: float | None = None) -> Verdict:
    """Run the stage with the address `name` again, in a temporary folder, and compare its outs with `dvc.lock`.

    Files that differ are compared within `tolerance`, by default the one that the stage states in `dvc.yaml` (`meta:
    {tolerance: 1e-3}`); without one they must have equal bytes. Those of a stage with `meta: {deterministic: false}`
    are not compared. Raises `LeverlabError` when the stage is not up to date
    or cannot be copied; a stage that fails to run gives a verdict with an `error`.
    """
    with open_pipeline(root) as stages, tempfile.TemporaryDirectory(prefix="leverlab-verify-") as folder:
        if name not in stages:
            raise LeverlabError(unknown_stage(name, stages))
        stage = stages[name]
        problems = _stale(stage, name)
        if problems:
            raise LeverlabError(problems[0])
        stated = _stated_tolerance(stage, name) if tolerance is None else tolerance
        copy = Path(folder) / "repository"
        _lay_out(stage, root, copy)
        start = time.monotonic()
        tail = _run(copy, name, root)
        seconds = time.monotonic() - start
        outs = tuple(out.def_path for out in stage.outs)
        if tail is not None:
            error = "the stage does not run on what it declares"
            return Verdict(name, outs, seconds, stated, error=error, tail=tail)
        if (stage.meta or {}).get("deterministic") is False:
            return Verdict(name, outs, seconds, deterministic=False)
        again = _lock_entry(copy / os.path.relpath(stage.path, root), stage.name) or {}
        return _judge(stage, name, again, seconds, stated, copy / os.path.relpath(stage.wdir, root))


def as_list(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Return the verdicts as plain data for JSON; a largest difference that is not finite is None."""
    found = []
    for verdict in verdicts:
        largest = verdict.largest if verdict.largest is not None and math.isfinite(verdict.largest) else None
        found.append(asdict(verdict) | {"largest": largest, "passed": verdict.passed, "result": verdict.result})
    return found


def table(verdicts: Sequence[Verdict]) -> Table:
    """Return the verdicts as a table to print."""
    shown = Table("stage", "outs", "result")
    for verdict in verdicts:
        shown.add_row(verdict.stage, str(len(verdict.outs)), verdict.result, style=None if verdict.passed else "red")
    return shown


def _matrix(address: str) -> str:
    file, colon, name = address.rpartition(":")
    return file + colon + name.partition("@")[0]


def _lock_entry(dvc_yaml: Path, name: str) -> dict[str, Any] | None:
    lock = dvc_yaml.with_suffix(".lock")
    entry: dict[str, Any] | None = read_yaml(lock).get("stages", {}).get(name) if lock.exists() else None
    return entry


def _digests(entry: Mapping[str, Any], part: str) -> dict[str, Any]:
    return {item["path"]: item.get("md5") for item in entry.get(part, [])}


def _stale(stage: Any, address: str) -> list[str]:
    """Return a sentence when `dvc.lock` does not record a run of `stage` on its present inputs."""
    if _lock_entry(Path(stage.path), stage.name) is None:
        return [f"stage '{address}' has no entry in dvc.lock, so there is nothing to compare with; run dvc repro first"]
    changed = [f"'{dep.def_path}'" for dep in stage.deps if dep.workspace_status()]
    changed += ["its command"] if stage.changed_stage() else []
    if not changed:
        return []
    return [f"stage '{address}' is not up to date: dvc.lock records another {', '.join(changed)}; run dvc repro first"]


def _stated_tolerance(stage: Any, address: str) -> float | None:
    value = (stage.meta or {}).get("tolerance")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise LeverlabError(f"dvc.yaml: the tolerance of stage '{address}' is {value!r}; it must be a number from 0 on")
    return float(value)


def _lay_out(stage: Any, root: Path, copy: Path) -> None:
    """Write into `copy` what the stage declares: its entry of `dvc.yaml`, its sections of params, its deps."""
    for dep in sorted(stage.deps, key=lambda dep: not isinstance(dep, ParamsDependency)):
        source = Path(dep.fs_path)
        if not source.is_relative_to(root):
            raise LeverlabError(f"'{dep.def_path}' lies outside of the repository; a stage that reads it has no copy")
        if isinstance(dep, ParamsDependency):
            values = {key: read_param(source, key) for key in dep.params}
            _write_yaml(copy / source.relative_to(root), _nested(values))
            continue
        # what DVC hashes, without files that .dvcignore names
        for file in [str(source)] if source.is_file() else dep.repo.dvcignore.find(dep.fs, dep.fs_path):
            target = copy / Path(file).relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    _write_yaml(copy / os.path.relpath(stage.path, root), {"stages": dict([_entry(stage)])})
    (copy / os.path.relpath(stage.wdir, root)).mkdir(parents=True, exist_ok=True)
    if (root / ".dvcignore").exists():
        shutil.copy(root / ".dvcignore", copy)


def _entry(stage: Any) -> tuple[str, dict[str, Any]]:
    """Return name and entry of the stage as they stand in its `dvc.yaml`, a matrix reduced to the one item."""
    base, _, item = stage.name.partition("@")
    entry = dict(read_yaml(Path(stage.path))["stages"][base])
    commands = [stage.cmd] if isinstance(stage.cmd, str) else stage.cmd
    entry["cmd"] = [command.replace("${", "\\${") for command in commands]  # resolved: no params are needed for it
    if "matrix" in entry:
        values = stage.dvcfile.resolver.definitions[base].normalized_iterable[item]
        entry["matrix"] = {key: [value.value] for key, value in values.items()}
    return base, entry


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections that hold the dotted keys of `values` and nothing else."""
    sections: dict[str, Any] = {}
    for key, value in values.items():
        *folders, leaf = key.split(".")
        section = sections
        for folder in folders:
            section = section.setdefault(folder, {})
        section[leaf] = value
    return sections


def _write_yaml(path: Path, data: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    yaml: Any = YAML(typ="safe")
    yaml.dump(dict(data), path)


def _run(copy: Path, address: str, root: Path) -> str | None:
    """Run the stage in `copy` through DVC; return None, or the end of its output when it failed."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("DVC_")}
    # nothing that is set up for the workspace: its modules, its DVC configuration with a shared cache, its state
    elsewhere = [
        path
        for path in environment.get("PYTHONPATH", "").split(os.pathsep)
        if path and not Path(path).absolute().is_relative_to(root)
    ]
    environment |= {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)]),
        "PYTHONPATH": os.pathsep.join(elsewhere),
        "DVC_NO_ANALYTICS": "1",
        "DVC_GLOBAL_CONFIG_DIR": str(copy.parent / "config"),
        "DVC_SYSTEM_CONFIG_DIR": str(copy.parent / "config"),
        "DVC_SITE_CACHE_DIR": str(copy.parent / "site"),
    }
    for command in (["init", "--no-scm", "-q"], ["repro", "--no-commit", "--no-run-cache", address]):
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *command],
            cwd=copy,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        if done.returncode != 0:
            return "\n".join(done.stdout.strip().splitlines()[-TAIL_LINES:])
    return None


def _judge(
    stage: Any, address: str, again: Mapping[str, Any], seconds: float, tolerance: float | None, place: Path
) -> Verdict:
    """Compare the entry `again` of the copy's `dvc.lock`, and outs below `place`, with what the workspace holds."""
    outs = tuple(out.def_path for out in stage.outs)
    recorded = _lock_entry(Path(stage.path), stage.name) or {}
    if _digests(again, "deps") != _digests(recorded, "deps") or again.get("params") != recorded.get("params"):
        error = "its inputs are not what dvc.lock records: they changed while they were copied, or the stage edits them"
        return Verdict(address, outs, seconds, tolerance, error=error)
    before, after = _digests(recorded, "outs"), _digests(again, "outs")
    differing: list[str] = []
    close: list[str] = []
    differences: list[float] = []
    for out in stage.outs:
        if before.get(out.def_path) == after[out.def_path]:
            continue
        if out.workspace_status():
            error = f"'{out.def_path}' differs, and the workspace lost what to compare with; run dvc checkout first"
            return Verdict(address, outs, seconds, tolerance, (out.def_path,), error=error)
        for name, old, new in _changed_files(Path(out.fs_path), place / out.def_path):
            difference = math.inf if tolerance is None else largest_difference(old, new)
            differences += [difference] if difference < math.inf else []
            kind = close if tolerance is not None and difference <= tolerance else differing
            kind.append((Path(out.def_path) / name).as_posix())
    largest = max(differences, default=None)
    return Verdict(address, outs, seconds, tolerance, tuple(differing), tuple(close), largest)


def _changed_files(before: Path, after: Path) -> Iterator[tuple[Path, Path, Path]]:
    """Yield relative name, old and new path of every file, itself or below a folder, whose bytes are not the same."""
    names = {file.relative_to(top) for top in (before, after) for file in files_below(top)}
    for name in sorted(names):
        old, new = before / name, after / name
        if not (old.is_file() and new.is_file() and old.read_bytes() == new.read_bytes()):
            yield name, old, new
