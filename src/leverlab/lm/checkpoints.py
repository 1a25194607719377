"""Checkpoints of transformers' `Trainer`: which are whole, and where a run that was killed goes on."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from leverlab.files import files_below, write_text

_WHOLE = "whole.json"  # written last: the size of every file


class MarkWhole(TrainerCallback):
    """Marks each checkpoint once all of it is written. Callbacks that write into it are to be added before."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Mark the checkpoint that was just written, to which every process has added its part by then."""
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            if folder.is_dir():
                write_text(folder / _WHOLE, json.dumps(_sizes(folder), indent=2) + "\n")


def resume_point(folder: Path) -> str | None:
    """Return the newest whole checkpoint below `folder`, or None; what a kill left half is removed."""
    found = []
    for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        step = re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name)
        if step and _is_whole(path):
            found.append((int(step[1]), str(path)))
        else:
            shutil.rmtree(path)
    return max(found)[1] if found else None


def _is_whole(folder: Path) -> bool:
    """Return whether all files are there: a kill may come while a checkpoint is written, or while it is deleted."""
    try:
        marked = json.loads((folder / _WHOLE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return bool(marked.items() <= _sizes(folder).items())


def _sizes(folder: Path) -> dict[str, int]:
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files_below(folder)}
