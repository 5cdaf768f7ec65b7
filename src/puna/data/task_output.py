"""What a task writes: documents for the next pass or the corpus, features for barriers, texts of what was dropped.

documents.parquet        kept documents; before the last pass with their rows, and dropped ones whose texts stay
dropped.parquet          in the last pass: texts that stay, with the reason of each
index.arrow              before the last pass: what barriers know of each stored document without reading it
features-STEP.arrow      what each barrier after this pass asked for
"""

import contextlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from puna.data.document import Document
from puna.data.documents import INDEX_COLUMNS, SCHEMA, ArrowWriter, TableWriter, feature_array, to_table
from puna.data.ledger import Ledger
from puna.data.passes import NamedStep
from puna.data.steps.registry import STEPS
from puna.data.steps.step import Barrier

_ROW = pa.schema([("row", pa.int64())])
_DROPPED = pa.schema(
    [*SCHEMA, ("row", pa.int64()), ("reason", pa.string()), ("value", pa.float64()), ("twin", pa.string())]
)


class TaskOutput:
    """The files of one task. Use it as a context manager.

    Args:
        folder: Where they go.
        barriers: The barriers after this pass; none means that it is the last.
        samples: Texts of dropped documents that stay for each reason; None keeps all.
    """

    def __init__(self, folder: Path, barriers: Sequence[NamedStep], *, samples: int | None) -> None:
        self._folder, self._barriers, self._samples = folder, barriers, samples
        self._sampled = Counter[str]()
        self._stack = contextlib.ExitStack()
        self.last = not barriers

    def __enter__(self) -> "TaskOutput":
        enter, last = self._stack.enter_context, self.last
        schema = SCHEMA if last else pa.schema([*SCHEMA, *_ROW])
        self._documents = enter(TableWriter(self._folder / "documents.parquet", schema))
        self._dropped = enter(TableWriter(self._folder / "dropped.parquet", _DROPPED)) if last else None
        self._index = None if last else enter(ArrowWriter(self._folder / "index.arrow"))
        self._features = {
            barrier.name: enter(ArrowWriter(self._folder / f"features-{barrier.name}.arrow"))
            for barrier in self._barriers
        }
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)
        if error[0] is None and self._dropped is not None:
            for writer in (self._documents, self._dropped):
                if not writer.rows:
                    writer.path.unlink()

    def store(self, documents: list[Document], rows: list[int], ledger: Ledger) -> None:
        """Write a batch, and note in the ledger which texts stay."""
        alive = [ledger.alive(row) for row in rows]
        stored = [is_alive or self._stays(ledger, row) for is_alive, row in zip(alive, rows, strict=True)]
        for row, stays in zip(rows, stored, strict=True):
            ledger.columns["stored"][row] = stays
        if self._dropped is not None:
            if kept := [d for d, a in zip(documents, alive, strict=True) if a]:
                self._documents.add(to_table(kept))
            gone = [k for k, (a, s) in enumerate(zip(alive, stored, strict=True)) if s and not a]
            if gone:
                self._dropped.add(_dropped([documents[k] for k in gone], [rows[k] for k in gone], ledger))
        elif any(stored):
            chosen = [(d, r) for d, r, stays in zip(documents, rows, stored, strict=True) if stays]
            self._store_for_barriers([d for d, _ in chosen], [r for _, r in chosen])

    def _store_for_barriers(self, documents: list[Document], rows: list[int]) -> None:
        self._documents.add(to_table(documents, {"row": pa.array(rows, pa.int64())}))
        assert self._index is not None
        index = to_table(documents).select([*INDEX_COLUMNS])
        self._index.add(index.append_column("bytes", pa.array([d.n_bytes for d in documents], pa.int64())))
        for barrier in self._barriers:
            how = STEPS[barrier.kind]
            assert isinstance(how, Barrier)
            columns = how.features(documents, barrier.config)
            if columns:
                self._features[barrier.name].add(pa.table({k: feature_array(v) for k, v in columns.items()}))

    def _stays(self, ledger: Ledger, row: int) -> bool:
        """Whether a dropped document's text stays: all of them, or the first few for each reason of the task."""
        if self._samples is None:
            return True
        reason = ledger.columns["reason"][row]
        self._sampled[reason] += 1
        return self._sampled[reason] <= self._samples


def _dropped(documents: list[Document], rows: list[int], ledger: Ledger) -> pa.Table:
    """A table of dropped texts with the reason of each."""
    extra = {
        name: pa.array([ledger.columns[name][row] for row in rows], kind)
        for name, kind in (("reason", pa.string()), ("value", pa.float64()), ("twin", pa.string()))
    }
    return to_table(documents, {"row": pa.array(rows, pa.int64()), **extra})
