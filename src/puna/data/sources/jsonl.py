"""JSON Lines, plain or compressed (`.gz`, `.zst`): one object, one document.

A malformed line is reported with file and line and left out. More of them than `max_bad_lines` in one file means
that the recipe is wrong rather than the data, and is an error. A truncated file gives every record before the
damage.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from puna.core.errors import PunaError
from puna.data.compressed import Damage, read_lines
from puna.data.document import Document, Scalar
from puna.data.sources.files import find_files, locate
from puna.data.sources.task import Place, Problem, Report, Skipped, SourceConfig, Task, group


class RecordFields(SourceConfig):
    """Which fields of a record mean what; shared by JSON Lines and Parquet."""

    text_field: str = "text"
    """Field of the text."""
    url_field: str = "url"
    """Field of the address; records without it get `file:line`."""
    licence_field: str = "license"
    """Field of the licence."""
    language_field: str = "language"
    """Field of the language."""
    date_field: str = "date"
    """Field of the capture's date, ISO 8601."""
    metadata_fields: tuple[str, ...] = ()
    """Fields to keep as metadata."""

    def from_record(self, record: Any, file: str, number: int) -> Document:
        """A record as a document.

        Raises:
            ValueError: It is not an object, or its text is absent, no string or empty.
        """
        if not isinstance(record, dict):
            raise ValueError(f"{_said(record)}, not an object")
        text = record.get(self.text_field)
        if not isinstance(text, str):
            got = f"{_said(text)}, not text" if self.text_field in record else "absent"
            raise ValueError(f"the text field {self.text_field!r} is {got}")
        text.encode("utf-8")  # JSON can hide half surrogates, which no tokenizer accepts

        def word(key: str, otherwise: str) -> str:
            value = record.get(key)
            return value if isinstance(value, str) and value else otherwise

        metadata: dict[str, Scalar] = {
            key: record[key] for key in self.metadata_fields if isinstance(record.get(key), (str, int, float, bool))
        }
        return self.document(
            text,
            word(self.url_field, f"{file}:{number}"),
            licence=word(self.licence_field, ""),
            language=word(self.language_field, ""),
            date=word(self.date_field, ""),
            file=file,
            offset=number,
            metadata=metadata,
        )


class JsonlConfig(RecordFields):
    """JSON Lines files."""

    kind: Literal["jsonl"] = "jsonl"
    """Which kind of source this is."""
    path: Place
    """A folder or a file, local or remote."""
    include: tuple[str, ...] = ("*.jsonl", "*.jsonl.gz", "*.jsonl.zst", "*.ndjson", "*.json.gz", "*.json.zst")
    """Glob patterns of the files to read."""
    exclude: tuple[str, ...] = ()
    """Glob patterns of files and names of folders to leave out."""
    max_bad_lines: int = Field(default=1000, ge=0)
    """More malformed lines than this in one file is an error."""


def tasks(config: JsonlConfig) -> list[Task]:
    """The files, grouped."""
    return group(config, find_files(config.path, include=config.include, exclude=config.exclude, source=config.name))


def read(config: JsonlConfig, task: Task, report: Report) -> Iterator[Document]:
    """The task's records as documents.

    Raises:
        PunaError: Too many malformed lines in one file.
    """
    for part in task.parts:
        yield from read_file(config, locate(config.path, part), part, config.max_bad_lines, report)


def read_file(
    config: RecordFields, place: Path | str, part: str, max_bad_lines: int, report: Report
) -> Iterator[Document]:
    """The records of one file.

    Raises:
        PunaError: More than `max_bad_lines` malformed lines.
    """
    bad = number = 0

    def damaged(damage: Damage) -> None:
        nonlocal bad
        bad += 1
        report(Problem(part, "damaged file", f"{damage.detail}; the records before it are kept", offset=damage.offset))

    try:
        for number, line in enumerate(read_lines(place, damaged), start=1):
            if not line.strip():
                continue
            try:
                document = config.from_record(json.loads(line), part, number)
            except (ValueError, RecursionError) as error:
                problem = _problem(error, part, number)
                report(problem)
                bad += 1
                if bad > max_bad_lines:
                    raise PunaError(
                        f"source {config.name!r}: more than {max_bad_lines} malformed lines in one file, the "
                        f"last one {problem}. Check text_field, or raise max_bad_lines."
                    ) from None
                continue
            yield document
        if not number and not bad:
            report(Skipped("empty file"))
    except OSError as error:
        report(Problem(part, "unreadable", error.strerror or type(error).__name__))


def _problem(error: ValueError | RecursionError, part: str, line: int) -> Problem:
    """What was wrong with a line, in our words, with the place where an editor finds it."""
    if isinstance(error, json.JSONDecodeError):
        detail = error.msg.removesuffix(" starting at")
        return Problem(part, "malformed line", detail[:1].lower() + detail[1:], line=line, column=error.colno)
    if isinstance(error, UnicodeDecodeError):
        return Problem(part, "not UTF-8", f"byte 0x{error.object[error.start]:02x}: {error.reason}", line=line)
    if isinstance(error, UnicodeEncodeError):
        return Problem(part, "not UTF-8", "half of a surrogate pair, which is no character", line=line)
    detail = "nested too deeply" if isinstance(error, RecursionError) else str(error)
    return Problem(part, "malformed line", detail, line=line)


_KINDS = ((bool, "a truth value"), ((int, float), "a number"), (str, "text"), (list, "a list"), (dict, "an object"))


def _said(value: Any) -> str:
    """A JSON value in words: `a number (5)`."""
    kind = next((words for types, words in _KINDS if isinstance(value, types)), None)
    if kind is None:
        return "null" if value is None else f"a {type(value).__name__}"
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return kind if isinstance(value, (list, dict)) or len(shown) > 40 else f"{kind} ({shown})"
