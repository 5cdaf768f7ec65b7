"""The step line and its record: sums over a log window, rates, and how they are written.

    step 00420/02000 | loss 3.1416 | lr 3.0e-04 | gnorm 0.91 | 41.2k tok/s | mfu 38.1% | mem 21.3/80 GiB | ...

and then `goodput 99.2% | eta 12m`. `metrics.jsonl` gets the same figures unrounded, with `kind` `train` or
`evaluation`. The loss of a line is the mean over all terms since the line before; the window's sums are part of a
checkpoint, so a restart changes no line.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from puna.train.loss import LossOutput


class Window:
    """Sums over the steps since the last line. `sums` is all of its state."""

    def __init__(self, sums: Mapping[str, float] | None = None) -> None:
        self.sums: dict[str, float] = dict(sums or {})
        self._seconds = self._tokens = self._flops = 0.0

    def add(self, outputs: Sequence[LossOutput], *, loss_sum: float, count: float, seconds: float) -> None:
        """Count one step."""
        self._put("loss", loss_sum)
        self._put("count", count)
        for output in outputs:
            for name, value in output.metrics.items():
                self._put(f"metric/{name}", _number(value))
        self._seconds += seconds
        self._tokens += sum(o.tokens for o in outputs)
        self._flops += sum(o.flops for o in outputs)

    def means(self) -> dict[str, float]:
        """Loss and metrics per term."""
        count = self.sums["count"]
        named = {k.removeprefix("metric/"): v / count for k, v in self.sums.items() if k.startswith("metric/")}
        return {"loss": self.sums["loss"] / count, **named}

    def rates(self) -> dict[str, float]:
        """Tokens and FLOPs per second of step time, over the steps of this process."""
        seconds = max(self._seconds, 1e-9)
        return {"tokens_per_second": self._tokens / seconds, "flops_per_second": self._flops / seconds}

    def reset(self) -> None:
        """Begin a new window."""
        self.__init__()

    def _put(self, name: str, value: float) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + value


def _number(value: Tensor | float) -> float:
    return float(value.detach()) if isinstance(value, Tensor) else float(value)


class Eta:
    """Seconds to go, from the mean pace of this process, evaluations and saves included."""

    def __init__(self, *, step: int, steps: int) -> None:
        self._first, self._steps, self._start = step, steps, time.monotonic()

    def seconds(self, step: int) -> float:
        """Seconds to go after `step` steps."""
        made = step - self._first
        return (time.monotonic() - self._start) / made * (self._steps - step) if made else float("inf")


def step_line(record: Mapping[str, Any]) -> str:
    """The line of a record of kind `train`.

    Args:
        record: `step, steps, loss, lr, grad_norm, tokens_per_second, mfu` (None when not known), `memory_bytes,
            memory_total_bytes, goodput, eta_seconds`.
    """
    gib = 2**30
    return " | ".join(
        [
            f"step {record['step']:05d}/{record['steps']:05d}",
            f"loss {_six(record['loss'])}",
            f"lr {record['lr']:.1e}",
            f"gnorm {_four(record['grad_norm'])}",
            f"{_rate(record['tokens_per_second'])} tok/s",
            f"mfu {'    -' if record['mfu'] is None else _percent(record['mfu'])}",
            f"mem {record['memory_bytes'] / gib:4.1f}/{record['memory_total_bytes'] / gib:.0f} GiB",
            f"goodput {_percent(record['goodput'])}",
            f"eta {_short_time(record['eta_seconds'])}",
        ]
    )


def _six(value: float) -> str:
    """Six characters: `3.1416`, `11.763`."""
    return f"{value:.4f}"[:6].rjust(6)


def _four(value: float) -> str:
    """Four characters: `0.91`, `12.3`, ` 457`."""
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:4.0f}"


def _rate(value: float) -> str:
    """Five characters: `41.2k`, `  980`."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * limit:
            scaled = value / limit
            digits = 2 if scaled < 9.995 else 1 if scaled < 99.95 else 0
            return f"{scaled:.{digits}f}{suffix}".rjust(5)
    return f"{value:5.0f}"


def _percent(share: float) -> str:
    """Five characters: `38.1%`, ` 100%`."""
    return f"{share:.1%}".rjust(5) if share < 0.9995 else f"{share:.0%}".rjust(5)


def _short_time(seconds: float) -> str:
    """`42s`, `12m`, `3h05m`, `2d04h`."""
    if seconds == float("inf"):
        return "-"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes}m"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours}h{minutes:02d}m"
    days, hours = divmod(hours, 24)
    return f"{days}d{hours:02d}h"
