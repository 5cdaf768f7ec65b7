"""How much of the time a long run spends on training that counts, given failures and checkpoints.

    goodput = 1 - stall / tau - (restart + tau / 2) / M

with tau the time between two checkpoints, `stall` what training waits for each of them, `restart` the time from failure
to the first new step, and M the mean time to an interruption. Half an interval is lost on average at a failure. The
best tau is sqrt(2 stall M) (Young 1974; Daly 2006).

Llama 3 405B had 466 interruptions in 54 days on 16,384 GPUs, 419 of them unplanned (2407.21783, section 3.3.4): 2.2e-5
a GPU and hour, an interruption every 2.8 hours. For 95 % of the time at that rate, saves must stall for 2 s or less,
every 3 minutes, and a restart may take 5 minutes.
"""

import math
from dataclasses import dataclass

from puna.planner.shape import Shape

INTERRUPTIONS_PER_GPU_HOUR = 466 / (54 * 24 * 16_384)
"""Rate of Llama 3's run (2407.21783, section 3.3.4)."""

BYTES_PER_PARAMETER = 12
"""Of a checkpoint that can be resumed: fp32 master weight and two moments."""


@dataclass(frozen=True)
class Goodput:
    """What is expected of a long run.

    Attributes:
        hours_to_interruption: Mean time between two interruptions, hours.
        interval_seconds: Time between checkpoints.
        share: Of the time that training advances, 0 to 1.
        lost_to_saving: Share waited for checkpoints.
        lost_to_failures: Share repeated or spent restarting.
    """

    hours_to_interruption: float
    interval_seconds: float
    share: float
    lost_to_saving: float
    lost_to_failures: float


def checkpoint_bytes(shape: Shape) -> float:
    """Bytes of a checkpoint with optimizer states."""
    return BYTES_PER_PARAMETER * shape.parameters()


def checkpoint_seconds(shape: Shape, *, writers: int, bytes_per_second: float, at_most: float = math.inf) -> float:
    """Seconds to write a checkpoint.

    Args:
        shape: The model.
        writers: Nodes that write their own part.
        bytes_per_second: Of one node to its storage.
        at_most: What the storage takes in all, bytes/s.
    """
    return checkpoint_bytes(shape) / min(writers * bytes_per_second, at_most)


def stall_seconds(shape: Shape, n_gpus: int, *, bytes_per_second: float = 20e9) -> float:
    """Seconds that training waits for an asynchronous save: copying a GPU's part to pinned host memory over PCIe."""
    return checkpoint_bytes(shape) / n_gpus / bytes_per_second


def best_interval_seconds(stall: float, hours_to_interruption: float, *, write_seconds: float = 0.0) -> float:
    """The interval that loses least, sqrt(2 stall M); no less than ten stalls, and than writing one takes."""
    return max(math.sqrt(2 * stall * hours_to_interruption * 3600), 10 * stall, write_seconds, 1.0)


def expected_goodput(
    n_gpus: int,
    *,
    stall: float,
    restart_seconds: float = 300.0,
    interval_seconds: float | None = None,
    write_seconds: float = 0.0,
    interruptions_per_gpu_hour: float = INTERRUPTIONS_PER_GPU_HOUR,
) -> Goodput:
    """The share of time that counts.

    Args:
        n_gpus: GPUs of the run; failures grow with them.
        stall: Seconds that training waits for one checkpoint.
        restart_seconds: From a failure to the first step after it.
        interval_seconds: Between checkpoints; None takes the best.
        write_seconds: What writing one takes in the background.
        interruptions_per_gpu_hour: How often a GPU (with all that belongs to it) stops the run.
    """
    rate = n_gpus * interruptions_per_gpu_hour / 3600
    if rate == 0:
        interval = interval_seconds or 3600.0
        return Goodput(math.inf, interval, max(0.0, 1 - stall / interval), stall / interval, 0.0)
    hours = 1 / rate / 3600
    interval = interval_seconds or best_interval_seconds(stall, hours, write_seconds=write_seconds)
    saving = min(1.0, stall / interval)
    failing = min(1.0, rate * (restart_seconds + interval / 2))
    return Goodput(hours, interval, max(0.0, 1 - saving - failing), saving, failing)
