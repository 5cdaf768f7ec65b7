"""Doing tasks somewhere else, in any order, with the results given out in the order of the tasks.

`in_order` uses processes of this machine. One worker runs the tasks in this process. More are spawned afresh (a fork of
a process with threads can hang), ignore Ctrl-C, which is the parent's to handle, and end when their parent dies,
however it died. A worker that dies (out of memory, killed) costs only the tasks in flight: a new pool does them again.

`on_ray` hands the same tasks to a Ray cluster, whose machines must see the same files under the same paths.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import wait
from typing import Any, Literal, TypeVar

from puna.core import console
from puna.core.errors import PunaError, need

T = TypeVar("T")
R = TypeVar("R")
Executor = Callable[[Callable[[Any], Any], Sequence[Any]], Generator[Any, None, None]]

SMALL_BYTES = 4 << 20
ATTEMPTS = 3  # of a task whose worker died


def default_workers(n_bytes: int | None = None) -> int:
    """Two, or the number of processors this process may use when that is less; one for little work.

    Args:
        n_bytes: Size of the work; a process costs a second to start, which small work does not give back.
    """
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(2, processors, 1 if n_bytes is not None and n_bytes < SMALL_BYTES else 2)


@contextmanager
def executor(kind: Literal["local", "ray"], workers: int | None, n_bytes: int | None = None) -> Iterator[Executor]:
    """What `curate` runs its tasks with: `run(function, items)` gives the results in the order of the items.

    Args:
        kind: Processes of this machine, or the Ray cluster that this machine belongs to (a local one without any).
        workers: Tasks at a time; None means `default_workers` here, and as many as there are processors on Ray.
        n_bytes: Size of the work.

    Yields:
        The function; processes that it started end with the context.
    """
    if kind == "ray":
        yield partial(on_ray, workers=workers)
        return
    processes = _Processes()
    try:
        yield partial(_in_order, processes, workers or default_workers(n_bytes))
    finally:
        processes.close()


def in_order(work: Callable[[T], R], tasks: Sequence[T], *, workers: int) -> Generator[R, None, None]:
    """Apply `work` to every task in processes of this machine.

    Args:
        work: A picklable function (of module level, or a `functools.partial` of one).
        tasks: Picklable arguments. A task may be begun twice, when a worker died; its output must not mind.
        workers: Processes; 1 means this one.

    Yields:
        The results in the order of the tasks. Closing the iterator cancels what has not begun.

    Raises:
        PunaError: Workers died again and again at the same task.
    """
    processes = _Processes()
    try:
        yield from _in_order(processes, workers, work, tasks)
    finally:
        processes.close()


class _Processes:
    """Workers that serve call after call: a process costs a second to start, and a curation makes many calls."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None
        self._workers = 0

    def pool(self, workers: int) -> ProcessPoolExecutor:
        if self._pool is None or self._workers != workers:
            self.close()
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(workers, mp_context=spawn, initializer=_begin_worker)
            self._workers = workers
        return self._pool

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None


def _in_order(
    processes: _Processes, workers: int, work: Callable[[T], R], tasks: Sequence[T]
) -> Generator[R, None, None]:
    if workers <= 1 or len(tasks) <= 1:
        yield from map(work, tasks)
        return
    done = deaths = 0
    while done < len(tasks):
        results = _ahead(processes.pool(workers if deaths < ATTEMPTS - 1 else 1), work, tasks[done:], 4 * workers)
        try:
            for result in results:
                done, deaths = done + 1, 0
                yield result
        except BrokenProcessPool:
            processes.close()
            deaths += 1
            if deaths >= ATTEMPTS:
                raise PunaError(
                    f"a worker died {deaths} times at {tasks[done]}: out of memory, or killed. What is finished is "
                    "kept; the same command goes on from here. Use fewer workers, or smaller tasks (task_bytes)."
                ) from None
            console.warn(f"a worker died; its tasks are done again ({len(tasks) - done} of {len(tasks)} are left)")
        finally:
            results.close()


def _ahead(
    pool: ProcessPoolExecutor, work: Callable[[T], R], tasks: Sequence[T], limit: int
) -> Generator[R, None, None]:
    """Results in order, with at most `limit` tasks handed in; when closed, it waits for those that have begun."""
    waiting: deque[Future[R]] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(work, task))
            if len(waiting) >= limit:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        wait_for([future for future in waiting if not future.cancel()])


def on_ray(work: Callable[[T], R], tasks: Sequence[T], *, workers: int | None = None) -> Generator[R, None, None]:
    """Apply `work` to every task on Ray; a task whose machine died is done again elsewhere.

    Raises:
        MissingError: Ray is not installed.
    """
    ray = need("ray", extra="cluster")
    if not ray.is_initialized():
        try:
            ray.init(
                address=None, num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="warning"
            )
        except Exception as error:  # it raises several unrelated classes
            detail = (str(error).strip().splitlines() or [""])[0]
            raise PunaError(
                f"Ray did not start here: {type(error).__name__}: {detail}. The cause lies in its environment: "
                "too little memory or time, a firewall, a dead cluster in RAY_ADDRESS. Mend that, or use engine=local."
            ) from error
    limit = 4 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    remote = partial(ray.remote(num_cpus=1, max_retries=ATTEMPTS)(_apply).remote, work)
    waiting: deque[Any] = deque()
    for task in tasks:
        waiting.append(remote(task))
        if len(waiting) >= limit:
            yield ray.get(waiting.popleft())
    while waiting:
        yield ray.get(waiting.popleft())


def _apply(work: Callable[[T], R], task: T) -> R:
    return work(task)


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
