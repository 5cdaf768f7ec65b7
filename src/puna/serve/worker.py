"""One thread that writes every answer: it goes round the running iterators and takes one piece from each.

A `Generator` need not be safe for several threads, so one thread owns it. Going round gives every reader a share; and
an engine that batches (`infer/engine.py`) advances all its open streams whenever one of them is asked, so that going
round is continuous batching.

    submit -> waiting (bounded, first come first served) -> running (bounded) -> finished | failed | cancelled

A job that fails ends alone. A cancelled job is closed before the next piece is taken.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from puna.core.errors import PunaError
from puna.core.generator import Piece
from puna.serve.errors import too_busy

_logger = logging.getLogger("puna.serve")

Event = Piece | BaseException


@dataclass(eq=False, slots=True)
class Job:
    """One answer to write.

    Attributes:
        start: Makes the iterator; called on the worker's thread.
        emit: Receives every piece, or the exception that ended the job. Called on the worker's thread.
        cancelled: Set by `Worker.cancel`.
    """

    start: Callable[[], Iterator[Piece]]
    emit: Callable[[Event], None]
    cancelled: bool = False
    pieces: Iterator[Piece] | None = None
    started: float = field(default_factory=time.monotonic)


class Worker:
    """The thread and its queue.

    Args:
        max_running: Jobs advanced together.
        max_waiting: Jobs that may wait.
    """

    def __init__(self, *, max_running: int, max_waiting: int) -> None:
        self._max_running, self._max_waiting = max_running, max_waiting
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._wake = threading.Condition()
        self._stopping = False
        self._job_seconds = 1.0  # moving average, for Retry-After
        self._thread = threading.Thread(target=self._work, name="puna-engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether jobs are being worked on."""
        return self._thread.is_alive() and not self._stopping

    @property
    def load(self) -> tuple[int, int]:
        """Jobs running and waiting."""
        with self._wake:
            return len(self._running), len(self._waiting)

    def submit(self, jobs: list[Job]) -> None:
        """Queue the jobs of one request, all or none.

        Raises:
            ApiError: 429 with `Retry-After`, when they do not fit.
        """
        with self._wake:
            free = self._max_running - len(self._running) + self._max_waiting - len(self._waiting)
            if len(jobs) > free or self._stopping:
                raise too_busy(self._retry_after_seconds())
            self._waiting.extend(jobs)
            self._wake.notify()

    def cancel(self, jobs: list[Job]) -> None:
        """Stop the jobs. A waiting one never starts, a running one takes no further piece."""
        with self._wake:
            for job in jobs:
                job.cancelled = True
            self._wake.notify()

    def stop(self, *, timeout_seconds: float = 10.0) -> None:
        """Drop what is left and end the thread."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join(timeout_seconds)

    def _retry_after_seconds(self) -> int:
        rounds = (len(self._running) + len(self._waiting)) / self._max_running
        return min(600, max(1, math.ceil(rounds * self._job_seconds)))

    def _work(self) -> None:
        while self._admit():
            for job in list(self._running):
                self._advance(job)
        for job in self._running:
            self._close(job)

    def _admit(self) -> bool:
        with self._wake:
            while True:
                self._waiting = deque(job for job in self._waiting if not job.cancelled)
                while self._waiting and len(self._running) < self._max_running:
                    self._running.append(self._waiting.popleft())
                if self._stopping:
                    return False
                if self._running:
                    return True
                self._wake.wait()

    def _advance(self, job: Job) -> None:
        if job.cancelled:
            self._finish(job)
            return
        try:
            if job.pieces is None:
                job.started = time.monotonic()
                job.pieces = job.start()
            piece = next(job.pieces)
        except Exception as error:  # this thread is an edge of the process: one job's fault must not end the others
            if not isinstance(error, PunaError):  # those are the request's own fault, and its client is told
                _logger.exception("an answer failed")
            self._finish(job)
            job.emit(error)
            return
        if piece.completion is not None:
            self._job_seconds = 0.8 * self._job_seconds + 0.2 * (time.monotonic() - job.started)
            self._finish(job)
        job.emit(piece)

    def _finish(self, job: Job) -> None:
        self._close(job)
        with self._wake:
            self._running.remove(job)

    def _close(self, job: Job) -> None:
        close = getattr(job.pieces, "close", None)
        if close is not None:
            try:
                close()
            except Exception:
                _logger.exception("an answer could not be closed")
