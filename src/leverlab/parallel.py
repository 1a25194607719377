"""Work on several cores whose results do not depend on how many there are."""

import multiprocessing
import os
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
    if not asked.isdigit() or int(asked) < 1:
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
    with ProcessPoolExecutor(count, context, start, start_arguments) as pool:
        try:
            yield from pool.map(function, tasks)
        except BrokenProcessPool:
            raise LeverlabError(
                "a worker process died, perhaps for want of memory; run dvc repro again (finished work is kept), with "
                "LEVERLAB_WORKERS=1 if memory is short"
            ) from None
