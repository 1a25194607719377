"""The stages of all `dvc.yaml` as DVC resolves them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import networkx
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.stage import PipelineStage

from leverlab.errors import LeverlabError


@contextmanager
def open_pipeline(root: Path) -> Iterator[dict[str, Any]]:
    """Yield DVC's stages of all `dvc.yaml` below `root`, matrices resolved, by address; a stage stands after those
    that it depends on.

    An address is DVC's, seen from the root: `grpo@0`, `worlds/digits/dvc.yaml:digits-vlm`. A `DvcException`, inside the
    context too, becomes a `LeverlabError`.
    """
    try:
        with Repo(str(root)) as repo:
            order = {stage: place for place, stage in enumerate(repo.index.stages)}
            ordered = networkx.lexicographical_topological_sort(repo.index.graph.reverse(), key=order.__getitem__)
            yield {address(stage, root): stage for stage in ordered if isinstance(stage, PipelineStage)}
    except DvcException as error:
        reasons = [str(error), str(error.__cause__ or "")]
        raise LeverlabError(f"DVC refuses the pipeline: {' '.join(' '.join(reasons).split())}") from None


def address(stage: Any, root: Path) -> str:
    """Return the address of a stage, seen from `root`."""
    file = os.path.relpath(stage.path, root)
    return str(stage.name) if file == "dvc.yaml" else f"{file}:{stage.name}"


def record_path(stage: Any) -> Path:
    """Return where the stage's last run left its provenance record; the file may not exist."""
    return Path(stage.path).parent / "provenance" / f"{stage.name}.json"
