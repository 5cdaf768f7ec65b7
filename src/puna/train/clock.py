"""Goodput: the share of a run's working time that went into steps which are part of its result.

Start-up, evaluation, saving, and steps that were lost because the process died after the last save, all count against
it. Time in which the run was not running does not. The clock's file lies beside the checkpoints, not in one: a
checkpoint holds no times, so that equal work gives equal files.
"""

import time
from collections.abc import Callable
from pathlib import Path

from puna.core.errors import CorruptError, MissingError
from puna.core.files import read_json, write_json

FILE = "clock.json"


class Clock:
    """Working time over all sessions of a run.

    Args:
        folder: The run's `checkpoints/`.
        step: The step that this process begins at.
        now: Source of seconds.
        writes: Whether this process keeps the file.
    """

    def __init__(
        self, folder: Path, *, step: int, now: Callable[[], float] = time.monotonic, writes: bool = True
    ) -> None:
        self._path, self._now, self._start, self._writes = folder / FILE, now, now(), writes
        self._earlier, self._at_save = 0.0, {0: 0.0}
        try:
            stored = read_json(self._path)
            self._earlier = float(stored["seconds"])
            self._at_save |= {int(k): float(v) for k, v in stored["productive"].items() if int(k) <= step}
        except (MissingError, CorruptError, KeyError, TypeError, ValueError):
            pass  # a figure for people; a run goes on without it
        self._productive = self._at_save[max(self._at_save)]

    @property
    def seconds(self) -> float:
        """Working time of all sessions."""
        return self._earlier + self._now() - self._start

    @property
    def goodput(self) -> float:
        """Productive share, 0 to 1."""
        return min(1.0, self._productive / max(self.seconds, 1e-9))

    def add(self, seconds: float) -> None:
        """Count a step that was made."""
        self._productive += seconds

    def write(self, *, saved_step: int | None = None) -> None:
        """Write the working time down, and what of it a checkpoint of `saved_step` keeps."""
        if saved_step is not None:
            self._at_save[saved_step] = self._productive
        if not self._writes:
            return
        newest = dict(sorted(self._at_save.items())[-8:])
        write_json(self._path, {"seconds": self.seconds, "productive": {str(k): v for k, v in newest.items()}})
