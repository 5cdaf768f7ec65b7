"""How torch's threads wait for each other, decided before torch is loaded, because OpenMP asks only once.

Spinning threads are the faster ones on a quiet machine: a small model on two cores trains up to twice as fast. On a
busy one they starve, since each spins through the time in which the other could work: the same model then trains many
times slower than with sleeping threads. So a short look at the processors decides. The results are the same bits.
"""

import os
import time
from pathlib import Path

_LOOK_SECONDS = 0.1
_BUSY_SHARE = 0.25  # of all processors; one of two taken is 0.5


def choose_waiting() -> str:
    """Let waiting threads sleep when other processes use the machine. Users' own settings are left alone.

    Returns:
        What there is to note in the run's log; empty when nothing was changed.
    """
    if {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        return ""
    share = busy_share()
    if share is not None and share > _BUSY_SHARE:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        return f"other processes use {share:.0%} of the processors: waiting threads sleep instead of spinning"
    return ""


def busy_share(stat: Path = Path("/proc/stat")) -> float | None:
    """Share of the processors' time that is in use right now; None where the system does not tell."""
    before = _times(stat)
    time.sleep(_LOOK_SECONDS)
    after = _times(stat)
    if before is None or after is None:
        return None
    total = sum(after) - sum(before)
    idle = after[3] + after[4] - before[3] - before[4]
    return 1 - idle / total if total > 0 else None


def _times(stat: Path) -> list[int] | None:
    try:
        fields = stat.read_text(encoding="ascii").split("\n", 1)[0].split()
        return [int(value) for value in fields[1:9]]
    except (OSError, ValueError):
        return None
