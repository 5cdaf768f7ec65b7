"""Documents on disk: Parquet between steps and in a corpus, Arrow for features.

Text lies in Parquet (Zstandard), so DuckDB, pandas, Daft and `datasets` open a corpus as it is, and a reader that wants
the addresses reads no text. Features and indexes of barriers lie in uncompressed Arrow IPC files: hashes do not
compress, and a map of the file is an array at once. Both have the same bytes for the same content.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from puna.core.errors import CorruptError
from puna.core.files import atomic_open
from puna.data.document import Document, metadata_text

GROUP_BYTES = 16 << 20  # of text in a row group: what a reader holds at once

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.large_string()),
        ("source", pa.string()),
        ("domain", pa.string()),
        ("url", pa.string()),
        ("licence", pa.string()),
        ("language", pa.string()),
        ("confidence", pa.float32()),
        ("date", pa.string()),
        ("file", pa.string()),
        ("offset", pa.int64()),
        ("metadata", pa.string()),
    ]
)
INDEX_COLUMNS = ("id", "source", "domain", "url", "date", "language", "confidence", "licence", "file", "offset")


def to_table(documents: Sequence[Document], extra: Mapping[str, Any] | None = None) -> pa.Table:
    """Documents as a table, with further columns behind."""
    columns: dict[str, Any] = {}
    for field in SCHEMA:
        if field.name == "metadata":
            values: list[Any] = [metadata_text(document.metadata) for document in documents]
        else:
            values = [getattr(document, field.name) for document in documents]
        columns[field.name] = pa.array(values, field.type)
    return pa.table(columns | dict(extra or {}))


def from_table(table: pa.Table | pa.RecordBatch) -> list[Document]:
    """The documents of a table; columns it does not have stay at their defaults."""
    names = [name for name in SCHEMA.names if name in table.schema.names]
    columns = {name: table.column(name).to_pylist() for name in names}
    if "metadata" in columns:
        columns["metadata"] = [json.loads(text) if text else {} for text in columns["metadata"]]
    return [Document(**dict(zip(names, row, strict=True))) for row in zip(*columns.values(), strict=True)]


class TableWriter:
    """Writes tables to a Parquet file that appears whole or not at all; a row group is some `GROUP_BYTES` of text.

    Args:
        path: The file.
        schema: Of the tables.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path, self._schema = path, schema
        self._waiting: list[pa.Table] = []
        self._bytes = 0
        self._stack = contextlib.ExitStack()
        self.rows = 0

    def __enter__(self) -> "TableWriter":
        file = self._stack.enter_context(atomic_open(self.path, "wb"))
        self._writer = pq.ParquetWriter(file, self._schema, compression="zstd", compression_level=1)
        return self

    def add(self, table: pa.Table) -> None:
        """Append rows."""
        self._waiting.append(table)
        self._bytes += table.nbytes
        self.rows += table.num_rows
        if self._bytes >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            table = pa.concat_tables(self._waiting).combine_chunks()
            self._writer.write_table(table, row_group_size=max(1, table.num_rows))
        self._waiting, self._bytes = [], 0

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None:
            try:
                self._flush()
                self._writer.close()
            except BaseException as failure:
                self._give_up()
                if not self._stack.__exit__(type(failure), failure, failure.__traceback__):
                    raise
                return
        else:
            self._give_up()
        self._stack.__exit__(kind, error, trace)

    def _give_up(self) -> None:
        """Keep pyarrow from writing its footer to a file that is going away."""
        with contextlib.suppress(Exception):
            self._writer.close()
        self._writer.is_open = False


def write_documents(path: Path, documents: Sequence[Document]) -> None:
    """Write documents to one Parquet file, atomically."""
    with TableWriter(path, SCHEMA) as writer:
        writer.add(to_table(documents))


def read_batches(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """A Parquet file of ours, row group by row group.

    Raises:
        CorruptError: It is missing or damaged.
    """
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            for group in range(file.num_row_groups):
                yield from file.read_row_group(group, columns=columns).to_batches()
    except FileNotFoundError as error:
        raise CorruptError(
            f"{path} is missing, though its manifest lists it. Make {path.parent.parent} again."
        ) from error
    except (pa.ArrowException, OSError) as error:
        raise CorruptError(f"{path} is damaged: {_first_line(error)}. Make {path.parent.parent} again.") from error


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A whole Parquet file of ours.

    Raises:
        CorruptError: It is missing or damaged.
    """
    batches = list(read_batches(path, columns))
    if batches:
        return pa.Table.from_batches(batches)
    schema = pq.read_schema(path)
    return (schema if columns is None else pa.schema([schema.field(name) for name in columns])).empty_table()


def read_documents(path: Path) -> Iterator[Document]:
    """Documents of one Parquet file.

    Raises:
        CorruptError: It is missing or damaged.
    """
    for batch in read_batches(path):
        yield from from_table(batch)


# ---- features ----


class ArrowWriter:
    """Writes tables of one schema to an uncompressed Arrow IPC file, atomically; no file where no table came.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stack = contextlib.ExitStack()
        self._writer: Any = None

    def __enter__(self) -> "ArrowWriter":
        return self

    def add(self, table: pa.Table) -> None:
        """Append rows."""
        if self._writer is None:
            file = self._stack.enter_context(atomic_open(self._path, "wb"))
            self._writer = pa.ipc.new_file(file, table.schema)
        self._writer.write_table(table.combine_chunks())

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None and self._writer is not None:
            try:
                self._writer.close()
            except BaseException as failure:
                if not self._stack.__exit__(type(failure), failure, failure.__traceback__):
                    raise
                return
        self._stack.__exit__(kind, error, trace)


def read_arrow(path: Path) -> pa.Table:
    """A memory-mapped Arrow IPC file; columns have one chunk at most, so `numpy_column` copies nothing.

    Raises:
        CorruptError: It is missing or damaged.
    """
    try:
        with pa.memory_map(str(path)) as source:
            return pa.ipc.open_file(source).read_all()
    except (pa.ArrowException, OSError) as error:
        raise CorruptError(f"{path} is missing or damaged: {_first_line(error)}") from error


def numpy_column(table: pa.Table, name: str) -> np.ndarray[Any, Any]:
    """A numeric column as an array: (rows,), or (rows, width) for fixed-size lists."""
    column = table.column(name).combine_chunks()
    chunk = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_fixed_size_list(chunk.type):
        width = chunk.type.list_size
        return chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
    return chunk.to_numpy(zero_copy_only=False)


def list_column(table: pa.Table, name: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A column of lists as its values end to end and `rows + 1` offsets into them."""
    column = table.column(name).combine_chunks()
    chunk = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    offsets = chunk.offsets.to_numpy().astype(np.int64)
    return chunk.values.to_numpy(zero_copy_only=False)[offsets[0] : offsets[-1]], offsets - offsets[0]


def feature_array(values: Any) -> pa.Array:
    """A column that a barrier's `features` gave, as Arrow: 1-D and 2-D arrays, lists of strings, lists of arrays."""
    if isinstance(values, np.ndarray):
        if values.ndim == 1:
            return pa.array(values)
        flat = pa.array(np.ascontiguousarray(values).reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    if values and isinstance(values[0], np.ndarray):
        offsets = np.concatenate([[0], np.cumsum([len(value) for value in values])]).astype(np.int64)
        return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(values)))
    return pa.array(values)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
