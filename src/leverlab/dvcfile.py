"""What `dvc.yaml` declares for a stage, as the running stage itself sees it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leverlab.config.base import read_yaml
from leverlab.errors import LeverlabError


@dataclass(frozen=True)
class Declaration:
    """The declared inputs and outputs of one stage; paths are relative to the folder that the command runs in."""

    name: str  # as DVC prints it: 'sft@0' for the item 0 of the matrix of 'sft'
    deps: tuple[str, ...]
    params: tuple[tuple[str, str], ...]  # (params file, dotted key)
    outs: tuple[str, ...]  # outs, metrics and plots


def read_declaration(dvc_yaml: Path, stage: str, item: Mapping[str, str]) -> Declaration:
    """Return the declaration of `stage` with `item` (matrix variable → value) filled in.

    Raises `LeverlabError` when the file has no such stage, or the stage's matrix has other variables.
    """
    entry = (read_yaml(dvc_yaml) or {}).get("stages", {}).get(stage)
    if entry is None:
        raise LeverlabError(f"{dvc_yaml} has no stage '{stage}'")
    if set(entry.get("matrix", {})) != set(item):
        raise LeverlabError(
            f"stage '{stage}' needs a value for each of {sorted(entry.get('matrix', {}))}, it got {dict(item)}; "
            f"run it with dvc repro {stage}"
        )
    suffix = "@" + "-".join(item.values()) if item else ""
    outs = [*entry.get("outs", []), *entry.get("metrics", []), *entry.get("plots", [])]
    return Declaration(
        name=stage + suffix,
        deps=tuple(_fill(dep, item) for dep in _names(entry.get("deps", []))),
        params=tuple(_params(entry.get("params", []))),
        outs=tuple(_fill(out, item) for out in _names(outs)),
    )


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
