"""Doing tasks in processes, in any order, with the results given out in the order of the tasks.

One worker runs the tasks in this process. More are spawned afresh (a fork of a process with threads can hang), ignore
Ctrl-C, which is the parent's to handle, and end when their parent dies, however it died.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.connection import wait
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def default_workers() -> int:
    """Two, or the number of processors this process may use when that is less."""
    return min(2, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def in_order(work: Callable[[T], R], tasks: Sequence[T], *, workers: int) -> Generator[R, None, None]:
    """Apply `work` to every task.

    Args:
        work: A picklable function (of module level, or a `functools.partial` of one).
        tasks: Picklable arguments.
        workers: Processes; 1 means this one.

    Yields:
        The results in the order of the tasks. Closing the iterator cancels what has not begun.
    """
    if workers <= 1 or len(tasks) <= 1:
        yield from map(work, tasks)
        return
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(tasks)), mp_context=spawn, initializer=_begin_worker)
    try:
        waiting: deque[Future[R]] = deque()
        remaining = iter(tasks)
        for task in remaining:
            waiting.append(pool.submit(work, task))
            if len(waiting) >= 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
