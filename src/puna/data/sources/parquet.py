"""Parquet files: one row, one document. Read one row group at a time, so memory is that of a row group."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from puna.core.errors import need
from puna.data.document import Document
from puna.data.places import open_binary
from puna.data.sources.files import find_files, locate
from puna.data.sources.jsonl import RecordFields
from puna.data.sources.task import Place, Problem, Report, Task, group


class ParquetConfig(RecordFields):
    """Parquet files."""

    kind: Literal["parquet"] = "parquet"
    """Which kind of source this is."""
    path: Place
    """A folder or a file, local or remote."""
    include: tuple[str, ...] = ("*.parquet",)
    """Glob patterns of the files to read."""
    exclude: tuple[str, ...] = ()
    """Glob patterns of files and names of folders to leave out."""


def tasks(config: ParquetConfig) -> list[Task]:
    """The files, grouped."""
    need("pyarrow", extra="data")
    return group(config, find_files(config.path, include=config.include, exclude=config.exclude, source=config.name))


def read(config: ParquetConfig, task: Task, report: Report) -> Iterator[Document]:
    """The task's rows as documents; a row group that cannot be read is reported and left out."""
    for part in task.parts:
        yield from read_file(config, locate(config.path, part), part, report)


def read_file(config: RecordFields, place: Path | str, part: str, report: Report) -> Iterator[Document]:
    """The rows of one file; a row group that cannot be read is reported and left out."""
    parquet = need("pyarrow.parquet", extra="data")
    pyarrow = need("pyarrow", extra="data")
    try:
        handle = open_binary(place)
    except OSError as error:
        report(Problem(part, "unreadable", error.strerror or str(error)))
        return
    try:
        file = parquet.ParquetFile(handle)
    except (pyarrow.ArrowException, OSError) as error:
        handle.close()
        report(Problem(part, "damaged file", _first_line(error)))
        return
    with handle, file:
        names = [config.text_field, config.url_field, config.licence_field, config.language_field]
        names.append(config.date_field)
        names += config.metadata_fields
        columns = [name for name in file.schema_arrow.names if name in names]
        if config.text_field not in columns:
            detail = f"no column {config.text_field!r}; it has {', '.join(file.schema_arrow.names)}"
            report(Problem(part, "no text column", detail))
            return
        first = 1
        for index in range(file.num_row_groups):
            rows = file.metadata.row_group(index).num_rows
            try:
                records = file.read_row_group(index, columns=columns).to_pylist()
            except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
                report(Problem(part, "damaged row group", f"row group {index}: {_first_line(error)}", line=first))
                records = []
            for number, record in enumerate(records, start=first):
                try:
                    yield config.from_record(record, part, number)
                except ValueError as error:
                    report(Problem(part, "malformed row", str(error), line=number))
            first += rows


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
