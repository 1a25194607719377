"""The part of wandb that trackers use: a run keeps its steps under its id, in the file that WANDB_FAKE names."""

import json
import os
import random
import time
from pathlib import Path
from typing import Any


def login(prompt: bool) -> bool:
    assert not prompt
    return "WANDB_API_KEY" in os.environ


class Settings:
    def __init__(self, **settings: Any):
        self.settings = settings


class _Run:
    def __init__(self, id: str, resume: str, **settings: Any):
        assert resume == "allow"
        self._path, self._id = Path(os.environ["WANDB_FAKE"]), id
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        steps = [line["step"] for line in map(json.loads, lines) if line["id"] == id and "step" in line]
        self.step = max(steps, default=-1) + 1
        self._write(config=settings["config"])

    def _write(self, **line: Any) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps({"id": self._id} | line) + "\n")

    def log(self, values: dict[str, float], step: int) -> None:
        if os.environ.get("WANDB_FAILS_AT") == str(step):
            raise ConnectionError("the network\nis gone")
        random.random()  # draws from the generator of its process
        self.step = step
        self._write(step=step, values=values)

    def finish(self, exit_code: int) -> None:
        time.sleep(float(os.environ.get("WANDB_HANGS", "0")))
        self._write(exit_code=exit_code)


def init(**settings: Any) -> _Run:
    return _Run(**settings)
