"""Work on several cores whose results do not depend on how many there are."""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from leverlab.errors import LeverlabError

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")


def workers() -> int:
    """Return how many processes to use: the cores of this process, or LEVERLAB_WORKERS."""
    asked = os.environ.get("LEVERLAB_WORKERS")
    if asked is None:
        return len(os.sched_getaffinity(0))
    if not (asked.isascii() and asked.isdecimal()) or int(asked) < 1:
        raise LeverlabError(f"LEVERLAB_WORKERS = '{asked}' must be a whole number from 1 on")
    return int(asked)


def run_tasks(
    function: Callable[[TaskT], ResultT],
    tasks: Sequence[TaskT],
    start: Callable[..., None] | None = None,
    start_arguments: tuple[Any, ...] = (),
) -> Iterator[ResultT]:
    """Yield `function(task)` in the order of `tasks`, computed by several processes.

    `start(*start_arguments)` is called once in each process. Cut tasks the same way whatever the number of workers:
    then results do not depend on it. Raises `LeverlabError` when a process dies.
    """
    count = min(workers(), len(tasks))
    if count <= 1:
        if start is not None:
            start(*start_arguments)
        yield from map(function, tasks)
        return
    context = multiprocessing.get_context("spawn")  # a fork of a process that has used torch may hang
    arguments = (os.getpid(), start, start_arguments)
    with ProcessPoolExecutor(count, context, _start_worker, arguments) as pool:
        try:
            yield from pool.map(function, tasks)
        except BrokenProcessPool:
            raise LeverlabError(
                "a worker process died, perhaps for want of memory; run dvc repro again (finished work is kept), with "
                "LEVERLAB_WORKERS=1 if memory is short"
            ) from None


def _start_worker(parent: int, start: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    if start is not None:
        start(*arguments)


def _die_with(parent: int) -> None:
    """End this process soon after its parent: a killed stage must not leave workers that go on computing."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
