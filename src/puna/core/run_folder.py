"""A run folder: everything that one run of a stage leaves behind, in one place with one layout.

    runs/demo/base/
        config.toml       the resolved recipe, itself runnable
        lineage.json      who made it from what (written by lineage/runner.py)
        metrics.jsonl     one record a log interval, unrounded
        log.txt           what the console said, with times
        checkpoints/      step-00000400/ ... for resuming
        work/             half-done pieces of other stages, for resuming
        ...               the stage's product (model/, documents-*.jsonl.zst, ...), sealed

Metrics are append-only. A run that resumes from step n first drops the records after n, so the file tells one story.
"""

import fcntl
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from puna.core.errors import UsageError
from puna.core.files import atomic_open


class RunFolder:
    """The files of one run.

    Args:
        path: The folder; made when absent.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self.listeners: list[Callable[[dict[str, Any]], None]] = []

    @property
    def checkpoints(self) -> Path:
        """Where training state is kept."""
        return self.path / "checkpoints"

    @property
    def work(self) -> Path:
        """Where a stage keeps finished pieces of unfinished work."""
        return self.path / "work"

    @property
    def model(self) -> Path:
        """The finished model of a training run: a sealed Hugging Face folder."""
        return self.path / "model"

    @property
    def metrics_path(self) -> Path:
        """The append-only record of metrics."""
        return self.path / "metrics.jsonl"

    def write_config(self, toml: str) -> None:
        """Write the resolved recipe."""
        with atomic_open(self.path / "config.toml") as file:
            file.write(toml)

    def metrics(self, record: dict[str, Any]) -> None:
        """Append one record to `metrics.jsonl`, and tell the listeners of it."""
        with self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        for listener in self.listeners:
            listener(record)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Every whole record; a line cut short by a kill is left out."""
        return list(self._records())

    def keep_metrics(self, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Rewrite `metrics.jsonl` with the records that `keep` accepts (before resuming from an earlier step)."""
        records = [r for r in self._records() if keep(r)]
        with atomic_open(self.metrics_path) as file:
            file.writelines(json.dumps(r) + "\n" for r in records)

    def _records(self) -> Iterator[dict[str, Any]]:
        if not self.metrics_path.exists():
            return
        for line in self.metrics_path.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for this process.

        Raises:
            UsageError: Another process works in it.
        """
        path = self.path / ".lock"
        with path.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                holder = file.read().strip() or "unknown"
                raise UsageError(
                    f"{self.path} is in use by process {holder}. Wait for it, stop it, or choose another out=..."
                ) from error
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            try:
                yield
            finally:
                file.truncate(0)

    @contextmanager
    def logging(self) -> Iterator[None]:
        """Copy what the `puna` logger says into `log.txt` while the run lasts."""
        handler = logging.FileHandler(self.path / "log.txt", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger = logging.getLogger("puna")
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            handler.close()
