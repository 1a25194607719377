"""The stages of all `dvc.yaml` as DVC resolves them."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import networkx
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.stage import PipelineStage

from leverlab.errors import LeverlabError
from leverlab.nearest import did_you_mean


@contextmanager
def open_pipeline(root: Path) -> Iterator[dict[str, Any]]:
    """Yield DVC's stages of all `dvc.yaml` below `root`, matrices resolved, by address; a stage stands after those
    that it depends on.

    An address is DVC's, seen from the root: `grpo@0`, `worlds/digits/dvc.yaml:digits-vlm`. A `DvcException`, inside the
    context too, becomes a `LeverlabError`.
    """
    with dvc_errors("DVC refuses the pipeline"), Repo(str(root)) as repo:
        order = {stage: place for place, stage in enumerate(repo.index.stages)}
        ordered = networkx.lexicographical_topological_sort(repo.index.graph.reverse(), key=order.__getitem__)
        yield {address(stage, root): stage for stage in ordered if isinstance(stage, PipelineStage)}


@contextmanager
def dvc_errors(what: str) -> Iterator[None]:
    """Turn an error of DVC in the context into a `LeverlabError` that begins with `what`, such as "DVC refuses …"."""
    try:
        yield
    except DvcException as error:
        reasons = [str(error), str(error.__cause__ or "")]
        raise LeverlabError(f"{what}: {' '.join(' '.join(reasons).split())}") from None
    except TypeError as error:
        if str(error) != "'Value' object is not iterable":  # what DVC raises for `matrix: {seed: ${seeds}}`, seeds: 3
            raise
        raise LeverlabError(
            f"{what}: a matrix in dvc.yaml goes over a param that is no list, such as seeds: 3 in params.yaml; write a "
            "list, on the command line -S 'seeds=[0,1,2]'"
        ) from None


def unknown_stage(name: str, stages: Iterable[str]) -> str:
    """Return the message on a name that is none of the addresses in `stages`, nor one of their matrices."""
    known = {stage if "@" in name else stage.partition("@")[0] for stage in stages}
    return f"there is no stage '{name}'{did_you_mean(name, known, '`dvc stage list --all`')}"


def address(stage: Any, root: Path) -> str:
    """Return the address of a stage, seen from `root`."""
    file = os.path.relpath(stage.path, root)
    return str(stage.name) if file == "dvc.yaml" else f"{file}:{stage.name}"


def record_path(stage: Any) -> Path:
    """Return where the stage's last run left its provenance record; the file may not exist."""
    return Path(stage.path).parent / "provenance" / f"{stage.name}.json"
