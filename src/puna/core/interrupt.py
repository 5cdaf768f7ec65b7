"""Stopping politely: the first Ctrl-C or SIGTERM is a request, the second one is an order.

Long jobs open a `StopRequest` and look at `.requested` where they can save; they then raise `Stopped` (exit 75), and
the same command resumes them. Signal handlers can be set in the main thread only; elsewhere the request stays unset.
"""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


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
