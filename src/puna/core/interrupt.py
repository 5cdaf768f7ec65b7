"""Stopping politely: the first Ctrl-C or SIGTERM is a request, the second one is an order.

Long jobs open a `StopRequest` and look at `.requested` where they can save; they then raise `Stopped` (exit 75), and
the same command resumes them. Signal handlers can be set in the main thread only; elsewhere the request stays unset.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from puna.core import console
from puna.core.errors import Stopped


@contextmanager
def stoppable() -> Iterator[None]:
    """While open, SIGTERM ends the command as `Stopped`, where no `StopRequest` is open to save something first.

    A job is killed while it starts as well: before the first step there is nothing to save, and whoever started it
    still wants to know that the same command goes on. Of one process alone, since one of many may wait for the others
    inside a call that no signal ends; forked children keep the plain end.

    Raises:
        Stopped: SIGTERM came.
    """
    if threading.current_thread() is not threading.main_thread() or console.processes() > 1:
        yield
        return
    owner = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        raise Stopped("stopped; nothing was lost, the same command goes on from what is saved")

    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


class StopRequest:
    """Context manager that turns the first SIGINT or SIGTERM into a flag.

    Attributes:
        requested: True once a signal came.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
