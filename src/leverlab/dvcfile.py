"""What `dvc.yaml` declares for a stage, as the running stage itself sees it."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from leverlab.config.base import read_yaml
from leverlab.errors import LeverlabError

_Path = Annotated[str, Field(min_length=1)]
_Paths = list[_Path | Annotated[dict[_Path, Any], Field(min_length=1, max_length=1)]]  # a path or {path: options}


class _Entry(BaseModel):
    """The keys of a stage in `dvc.yaml` that tell what it reads and writes."""

    model_config = ConfigDict(strict=True)

    matrix: dict[str, list[Any] | str] = {}  # a list, or an interpolation of one
    deps: _Paths = []
    params: list[_Path | dict[_Path, list[_Path] | None]] = []
    outs: _Paths = []
    metrics: _Paths = []
    plots: _Paths = []


@dataclass(frozen=True)
class Declaration:
    """The declared inputs and outputs of one stage; paths are relative to the folder that the command runs in."""

    name: str  # as DVC prints it: 'sft@0' for the item 0 of the matrix of 'sft'
    deps: tuple[str, ...]
    params: tuple[tuple[str, str], ...]  # (params file, dotted key)
    outs: tuple[str, ...]  # outs, metrics and plots


def read_declaration(dvc_yaml: Path, stage: str, item: Mapping[str, str]) -> Declaration:
    """Return the declaration of `stage` with `item` (matrix variable → value) filled in.

    Raises `LeverlabError` when the file has no such stage, a key of it has another form than in DVC, or the stage's
    matrix has other variables.
    """
    data = read_yaml(dvc_yaml)
    stages = data.get("stages") if isinstance(data, dict) else None
    if not isinstance(stages, dict) or stages.get(stage) is None:
        raise LeverlabError(f"{dvc_yaml} has no stage '{stage}'")
    try:
        entry = _Entry.model_validate(stages[stage])
    except ValidationError as error:
        problems = {".".join(["stages", stage, *map(str, item["loc"][:2])]): item["msg"] for item in error.errors()}
        raise LeverlabError(
            f"{dvc_yaml} is no DVC pipeline: " + "; ".join(f"{key}: {message}" for key, message in problems.items())
        ) from None
    if set(entry.matrix) != set(item):
        raise LeverlabError(
            f"stage '{stage}' needs a value for each of {sorted(entry.matrix)}, it got {dict(item)}; "
            f"run it with dvc repro {stage}"
        )
    suffix = "@" + "-".join(item.values()) if item else ""
    outs = [*entry.outs, *entry.metrics, *entry.plots]
    return Declaration(
        name=stage + suffix,
        deps=tuple(_fill(dep, item) for dep in _names(entry.deps)),
        params=tuple(_params(entry.params)),
        outs=tuple(_fill(out, item) for out in _names(outs)),
    )


def declared_outs(dvc_yaml: Path) -> set[str]:
    """Return the outs, metrics and plots of all stages of a `dvc.yaml`, as paths from the folder that its path is from.

    `${…}` in them is not filled in. Raises `LeverlabError` when the file cannot be read; stages of another form than in
    DVC are left out.
    """
    data = read_yaml(dvc_yaml)
    stages = data.get("stages") if isinstance(data, dict) else None
    found = set()
    for stage in stages.values() if isinstance(stages, dict) else ():
        body = stage.get("do", stage) if isinstance(stage, dict) else stage
        try:
            entry = _Entry.model_validate(body)
        except ValidationError:
            continue
        folder = dvc_yaml.parent / str(body.get("wdir", "."))
        found |= {os.path.normpath(folder / out) for out in _names([*entry.outs, *entry.metrics, *entry.plots])}
    return found


def _names(entries: Sequence[Any]) -> list[str]:
    """Return the paths of a list whose members are paths or {path: options}."""
    return [next(iter(entry)) if isinstance(entry, Mapping) else str(entry) for entry in entries]


def _params(entries: Sequence[Any]) -> list[tuple[str, str]]:
    found = []
    for entry in entries:
        if isinstance(entry, Mapping):
            for file, keys in entry.items():
                if not keys:
                    raise LeverlabError(
                        f"dvc.yaml: '{file}:' without keys would re-run the stage at any change of that file; "
                        "name the sections that it reads"
                    )
                found += [(file, key) for key in keys]
        else:
            found.append(("params.yaml", str(entry)))
    return found


def _fill(text: str, item: Mapping[str, str]) -> str:
    for name, value in item.items():
        text = text.replace("${item." + name + "}", value)
    if "${" in text:
        raise LeverlabError(
            f"dvc.yaml: '{text}' uses an interpolation that stages do not resolve; use ${{item.NAME}} only"
        )
    return text
