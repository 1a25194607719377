"""Runs stages in forked children, so that a run that is killed after a moment has cost no seconds of imports.

A line on stdin is a JSON list `[module, *arguments]`, with a plus before the module for a child that kills itself as
soon as its work is done, before its outs are in their place; the answer is the child's process id, and its status when
it has ended. Every unit of work that a stage finishes (a batch of scores, an epoch, a file) is noted in the file of the
first argument, so that a test can count what was done twice. What children print goes to the file of the second.
"""

import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

import datasets  # noqa: F401
import matplotlib  # noqa: F401
import pandas  # noqa: F401
import torch  # noqa: F401
import transformers  # noqa: F401

from leverlab import parallel
from leverlab import stage as contract
from leverlab.export import gguf
from leverlab.selector import encoders
from leverlab.stage import Stage
from leverlab.training import loop
from leverlab.vlm.scoring import Scorer
from tests.stages.forked import run_program

UNITS, LOG = sys.argv[1:]
RUN_TASKS = parallel.run_tasks


def noted(function: Callable[..., Any], what: Callable[..., object]) -> Callable[..., Any]:
    """`function`, which notes `what(arguments)` when it has ended."""

    def run(*arguments: Any) -> Any:
        result = function(*arguments)
        note(function.__name__, what(*arguments))
        return result

    return run


def note(name: str, what: object) -> None:
    with open(UNITS, "a") as file:
        file.write(f"{name} {hashlib.sha256(repr(what).encode()).hexdigest()}\n")


def run_noted(function: Callable[[Any], Any], tasks: Sequence[Any], *rest: Any) -> Any:
    """`run_tasks`, which notes the tasks whose results are kept in a file and were not there before."""

    def run(task: Any) -> Any:
        kept = getattr(task, "kept", None)
        new = kept is not None and not kept.exists()
        result = function(task)
        if new:
            note(function.__name__, kept.name)
        return result

    return RUN_TASKS(run, tasks, *rest)


def main() -> None:
    contract.check_all_params = lambda home: None  # a second of imports a run; tests/stages/test_params_check.py
    scorer: Any = Scorer
    scorer._score_rows = noted(Scorer._score_rows, lambda _, tries, texts: ([vars(trie) for trie in tries], texts))
    scorer._extend = noted(Scorer._extend, lambda _, question, prefixes, demos: (question, prefixes, demos))
    encoders.encode_images = noted(encoders.encode_images, lambda _, pixels, grids: pixels.numpy().tobytes())
    run: Any = loop._Run
    run.epoch = noted(run.epoch, lambda own, *rest: [float(part.sum()) for part in own.selector.parameters()])
    parallel.run_tasks = run_noted
    gguf.export_text = noted(gguf.export_text, lambda checkpoint, path, kind: kind)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            child(*json.loads(line))
        print(pid, flush=True)
        print(os.waitpid(pid, 0)[1], flush=True)


def child(module: str, *arguments: str) -> None:
    log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    if module.startswith("+"):
        end: Any = Stage
        end.check_inputs = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        module = module[1:]
    os._exit(run_program(module, *arguments))


if __name__ == "__main__":
    main()
