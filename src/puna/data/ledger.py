"""The ledger: one row for every document that was ever read, with what became of it, why, and everything measured.

A task's ledger travels from pass to pass beside its documents and ends in the corpus. Scores are columns
(`gopher_quality.words`), so thresholds can be judged anew from a few columns of numbers.

    id url file offset language confidence bytes    the record as it was read (language: as it was last known)
    step reason value twin                          0 and "kept", or the number of the step that dropped it, and why
    stored                                          whether its text lies beside the ledger
    KIND.NAME ...                                   scores; null where it was not measured
    tokens.read tokens.left                         with a tokenizer, where it is counted: of the text as it was read,
                                                    and as it is at the end, or was when it was dropped
    KIND:reason                                     with `keep = "all"`: why an edit would drop it
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from puna.data.document import Document, Size
from puna.data.documents import TableWriter, read_table
from puna.data.steps.step import Verdict

_BASE = {
    "id": pa.string(),
    "url": pa.string(),
    "file": pa.string(),
    "offset": pa.int64(),
    "language": pa.string(),
    "confidence": pa.float32(),
    "bytes": pa.int64(),
    "step": pa.int16(),
    "reason": pa.string(),
    "value": pa.float64(),
    "twin": pa.string(),
    "stored": pa.bool_(),
}
COLUMNS = tuple(_BASE)
_REASON = ":reason"


class Ledger:
    """Rows in memory, one task's worth.

    Attributes:
        columns: Lists by column name.
        scores: For each score its values; None where a row was not measured.
    """

    def __init__(self) -> None:
        self.columns: dict[str, list[Any]] = {name: [] for name in _BASE}
        self.scores: dict[str, list[float | None]] = {}
        self.edits: dict[str, list[str | None]] = {}

    def __len__(self) -> int:
        return len(self.columns["id"])

    @classmethod
    def load(cls, path: Path) -> "Ledger":
        """Read a task's ledger."""
        table = read_table(path)
        ledger = cls()
        for name in table.schema.names:
            values = table.column(name).to_pylist()
            if name in _BASE:
                ledger.columns[name] = values
            elif name.endswith(_REASON):
                ledger.edits[name.removesuffix(_REASON)] = values
            else:
                ledger.scores[name] = values
        return ledger

    def add(self, document: Document, n_bytes: int) -> int:
        """A row for a document that was just read; its number."""
        row = len(self)
        for name in ("id", "url", "file", "offset", "language", "confidence"):
            self.columns[name].append(getattr(document, name))
        for name, value in zip(
            ("bytes", "step", "reason", "value", "twin", "stored"), (n_bytes, 0, "kept", 0.0, "", False), strict=True
        ):
            self.columns[name].append(value)
        return row

    def alive(self, row: int) -> bool:
        """Whether nothing dropped it yet."""
        return self.columns["step"][row] == 0

    def drop(self, row: int, step: int, verdict: Verdict, twin: str = "") -> None:
        """Note who dropped it and why; the first stays."""
        if self.alive(row):
            self.columns["step"][row] = step
            self.columns["reason"][row] = verdict.reason
            self.columns["value"][row] = float(verdict.value)
            self.columns["twin"][row] = twin

    def speaks(self, row: int, language: str, confidence: float) -> None:
        """Note the language that a step found."""
        self.columns["language"][row] = language
        self.columns["confidence"][row] = confidence

    def score(self, label: str, rows: Sequence[int], scores: Sequence[Mapping[str, float]]) -> None:
        """Keep what a step measured."""
        for row, measured in zip(rows, scores, strict=True):
            for name, value in measured.items():
                _put(self.scores.setdefault(f"{label}.{name}", []), row, float(value))

    def edited(self, label: str, row: int, size: Size, verdict: Verdict) -> None:
        """Keep what an edit did, so that it need not be done again: the size after it, and whether it would drop."""
        _put(self.scores.setdefault(f"{label}.bytes", []), row, float(size.n_bytes))
        if size.n_tokens is not None:
            _put(self.scores.setdefault(f"{label}.tokens", []), row, float(size.n_tokens))
        if not verdict.keep:
            _put(self.edits.setdefault(label, []), row, verdict.reason)
            _put(self.scores.setdefault(f"{label}.value", []), row, float(verdict.value))

    def scores_of(self, label: str, row: int) -> dict[str, float]:
        """What a step measured of a row; empty when it did not."""
        start = len(label) + 1
        return {
            name[start:]: value
            for name, column in self.scores.items()
            if name.startswith(f"{label}.") and row < len(column) and (value := column[row]) is not None
        }

    def score_at(self, name: str, row: int) -> float | None:
        """One score of a row by its column's name; None when it was not measured."""
        column = self.scores.get(name, [])
        return column[row] if row < len(column) else None

    def write(self, path: Path) -> None:
        """Write it as Parquet, atomically; score columns in the order of their names."""
        n = len(self)
        columns = {name: pa.array(values, _BASE[name]) for name, values in self.columns.items()}
        for name in sorted(self.scores):
            values = self.scores[name]
            columns[name] = pa.array([*values, *([None] * (n - len(values)))], pa.float64())
        for label in sorted(self.edits):
            reasons = self.edits[label]
            columns[label + _REASON] = pa.array([*reasons, *([None] * (n - len(reasons)))], pa.string())
        table = pa.table(columns)
        with TableWriter(path, table.schema) as writer:
            writer.add(table)


def _put(column: list[Any], row: int, value: Any) -> None:
    column.extend([None] * (row + 1 - len(column)))
    column[row] = value


def alive_and_stored(path: Path) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """For each stored row of a task, in order, whether it is alive."""
    table = read_table(path, ["step", "stored"])
    stored = table.column("stored").to_numpy(zero_copy_only=False)
    return (table.column("step").to_numpy(zero_copy_only=False) == 0)[stored.astype(bool)]
