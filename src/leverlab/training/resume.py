"""Resume states: what a run needs to go on after a kill, read back whole or not at all."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from leverlab.errors import LeverlabError


def read_state(path: Path, names: Sequence[str]) -> dict[str, Any]:
    """Return the parts `names` of the resume state at `path`.

    Raises `LeverlabError` when it is damaged or lacks one of them.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not look at the checksums
            if damaged := archive.testzip():
                raise ValueError(f"wrong checksum of {damaged}")
        state = torch.load(path, weights_only=True)
        return {name: state[name] for name in names}
    except Exception as error:  # both libraries raise errors of many kinds, UnicodeDecodeError among them
        raise state_error(path, error) from None


def state_error(path: Path, error: Exception) -> LeverlabError:
    """Return the error for a resume state that is damaged, or does not fit what is to be resumed."""
    problem = " ".join(str(error).split())[:300]
    return LeverlabError(
        f"the resume state {path} is damaged ({type(error).__name__}: {problem}); delete its folder and run again"
    )
