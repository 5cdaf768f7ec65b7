"""All that a person reads: rich on a terminal, plain lines elsewhere, quiet colours when `NO_COLOR` is set.

This is the only file that prints. Every line also goes to the `puna` logger, so that a run's `log.txt` has it with its
time. A progress bar outside a terminal becomes one line every ten seconds. Under torchrun only rank 0 speaks; other
ranks only warn, with `[rank 3]` in front.
"""

import logging
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

_logger = logging.getLogger("puna")
_logger.setLevel(logging.INFO)
_logger.addHandler(logging.NullHandler())
_logger.propagate = False

_PLAIN_INTERVAL_SECONDS = 10.0
_NUMBER = re.compile(r"(?:[-+~]?[.,\d]+(?:e[-+]?\d+)? ?[A-Za-z%/]{0,5}|-|nan|inf)?")
"""Cells of a column that is aligned right."""
_NAME_CHARACTERS = 36  # names of rows up to here are not broken
_PIPE_CHARACTERS = 10_000


def rank() -> int:
    """This process's rank under torchrun, 0 elsewhere."""
    return int(os.environ.get("RANK", "0"))


def processes() -> int:
    """How many processes torchrun started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _console(stderr: bool = False) -> Console:
    return Console(stderr=stderr, highlight=False, soft_wrap=True)


def is_terminal() -> bool:
    """Whether standard output is a terminal."""
    return sys.stdout.isatty()


def say(text: str = "") -> None:
    """Print a line of plain text."""
    _logger.info(text)
    if rank() == 0:
        _console().print(escape(text))


def note(text: str) -> None:
    """Write a line to the run's log alone: what explains a run afterwards and helps nobody meanwhile."""
    _logger.info(text)


def warn(text: str) -> None:
    """Print a warning to standard error."""
    _logger.warning(text)
    where = f"[rank {rank()}] " if rank() else ""
    _console(stderr=True).print(f"[yellow]warning:[/] {escape(where + text)}")


def error(text: str) -> None:
    """Print an error to standard error."""
    _logger.error(text)
    where = f"[rank {rank()}] " if rank() else ""
    _console(stderr=True).print(f"[bold red]error:[/] {escape(where + text)}")


def command(text: str) -> None:
    """Print a command as the user would type it."""
    _logger.info("$ %s", text)
    if rank() == 0:
        _console().print(f"[bold]$ {escape(text)}[/]")


def write(text: str) -> None:
    """Write a piece of streamed text as it is: no newline, no markup, not logged."""
    sys.stdout.write(text)
    sys.stdout.flush()


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table; columns whose cells are all numbers, with a unit or without, are aligned right."""
    text_rows = [[str(cell) for cell in row] for row in rows]
    _logger.info("%s\n%s", title, "\n".join(" | ".join(row) for row in [list(columns), *text_rows]))
    if rank() != 0:
        return
    grid = Table(title=escape(title) if title else None, title_justify="left", box=None, pad_edge=False)
    for index, name in enumerate(columns):
        numeric = bool(text_rows) and all(_NUMBER.fullmatch(row[index]) for row in text_rows)
        whole = index == 0 and all(len(row[0]) <= _NAME_CHARACTERS for row in text_rows)
        grid.add_column(escape(name), justify="right" if numeric else "left", overflow="fold", no_wrap=whole)
    for row in text_rows:
        grid.add_row(*(escape(cell) for cell in row))
    printer = _console()
    if not is_terminal():
        printer.width = _PIPE_CHARACTERS  # a row is a line for grep and cut
    printer.print(grid)


class ProgressHandle:
    """What `progress` hands out: count forward, and say a word beside the bar."""

    def __init__(self, label: str, total: int | None, unit: str, bar: Progress | None) -> None:
        self._label, self._total, self._unit, self._bar = label, total, unit, bar
        self._done, self._note = 0, ""
        self._start = self._last = time.monotonic()
        self._task = bar.add_task(label, total=total, note="", rate="") if bar else None

    @property
    def done(self) -> int:
        """Units counted so far."""
        return self._done

    def advance(self, n: int = 1) -> None:
        """Count `n` units."""
        self._done += n
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=n, rate=self._rate_text())
        elif time.monotonic() - self._last >= _PLAIN_INTERVAL_SECONDS:
            self._plain_line()

    def note(self, text: str) -> None:
        """Show `text` beside the bar."""
        self._note = text
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, note=text)

    def _rate(self) -> float:
        return self._done / max(time.monotonic() - self._start, 1e-9)

    def _rate_text(self) -> str:
        return f"{short_number(self._rate())} {self._unit}/s"

    def _plain_line(self) -> None:
        self._last = time.monotonic()
        of = f"/{short_number(self._total)}" if self._total else ""
        eta = ""
        if self._total and self._done:
            eta = f" | eta {short_time((self._total - self._done) / self._rate())}"
        note = f" | {self._note}" if self._note else ""
        say(f"{self._label}: {short_number(self._done)}{of} {self._unit} | {self._rate_text()}{eta}{note}")


@contextmanager
def progress(label: str, *, total: int | None, unit: str) -> Iterator[ProgressHandle]:
    """Show the advance of a long job with its rate and the time left.

    Args:
        label: What is being done.
        total: Units in all, or None when unknown.
        unit: What is counted: `"docs"`, `"tokens"`, `"bytes"`.

    Yields:
        A handle with `.advance(n)` and `.note(text)`.
    """
    if not is_terminal() or rank() != 0:
        yield ProgressHandle(label, total, unit, None)
        return
    columns = [
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    ]
    with Progress(*columns, console=_console(), transient=True) as bar:
        yield ProgressHandle(label, total, unit, bar)


def short_number(value: float) -> str:
    """`1234567 -> '1.23M'`: three significant digits with k, M, G, T."""
    for limit, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{suffix}"
    return f"{value:.3g}"


def short_bytes(value: float) -> str:
    """`1536 -> '1.5 KiB'`."""
    for limit, suffix in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if abs(value) >= limit:
            return f"{value / limit:.1f} {suffix}"
    return f"{value:.0f} B"


def counts(reasons: Mapping[str, int]) -> str:
    """How often each reason occurred, in words: `3 (longer than 64 tokens), 1 (no assistant speaks)`, or `none`."""
    return ", ".join(f"{count:,} ({reason})" for reason, count in reasons.items()) or "none"


def short_time(seconds: float) -> str:
    """`3700 -> '1h02m'`, `75 -> '1m15s'`, `3 -> '3s'`."""
    seconds = max(0, round(seconds))
    hours, rest = divmod(seconds, 3600)
    minutes, rest = divmod(rest, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
