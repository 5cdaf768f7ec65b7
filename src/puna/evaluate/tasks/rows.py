"""Reading the rows of benchmark files: JSON lines (plain, .gz) and CSV, with errors that name the file and the line."""

import csv
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from puna.core.errors import CorruptError, MissingError

Row = dict[str, Any]


def read_jsonl(path: Path, *, limit: int | None = None) -> list[Row]:
    """Objects of a JSON-lines file; empty lines are skipped.

    Args:
        path: `.jsonl` or `.jsonl.gz`.
        limit: Only the first so many.

    Returns:
        The rows.

    Raises:
        MissingError: No such file.
        CorruptError: Not UTF-8, a truncated archive, a line that is no JSON object, or no row at all.
    """
    rows: list[Row] = []
    number = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if limit is not None and len(rows) >= limit:
                    break
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise CorruptError(f"{path}, line {number}: a JSON object is needed, this is {line[:40]!r}")
                    rows.append(row)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise MissingError(f"{path} is not there; give the path of a .jsonl file") from error
    except json.JSONDecodeError as error:
        raise CorruptError(f"{path}, line {number}: not valid JSON: {error}") from error
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
        raise CorruptError(f"{path}, after line {number}: cannot be read: {error}") from error
    if not rows:
        raise CorruptError(f"{path} has no rows")
    return rows


def read_csv(path: Path, columns: int) -> list[list[str]]:
    """Rows of a CSV file without a header.

    Raises:
        CorruptError: Not UTF-8, or a row with another number of columns.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise CorruptError(f"{path} cannot be read as CSV: {error}") from error
    for number, row in enumerate(rows, start=1):
        if len(row) != columns:
            raise CorruptError(f"{path}, row {number}: {len(row)} columns, {columns} are needed")
    return rows


def field(row: Row, name: str, path: Path, number: int, kinds: type | tuple[type, ...] = str) -> Any:
    """A field of a row.

    Raises:
        CorruptError: It is missing or of another type; the message names file, row and what is there.
    """
    if name not in row:
        raise CorruptError(f"{path}, row {number}: no field {name!r}; it has {', '.join(map(repr, row))}")
    value = row[name]
    if not isinstance(value, kinds) or isinstance(value, bool):
        wanted = " or ".join(k.__name__ for k in (kinds if isinstance(kinds, tuple) else (kinds,)))
        raise CorruptError(f"{path}, row {number}: {name!r} is {type(value).__name__}, {wanted} is needed")
    return value


def gold_index(answer: str | int, choices: Sequence[str], path: Path, number: int) -> int:
    """The right choice given as an index, a letter or its text.

    Raises:
        CorruptError: It is none of these.
    """
    if isinstance(answer, str) and answer in choices:
        return list(choices).index(answer)
    if isinstance(answer, str) and len(answer) == 1 and answer.isalpha():
        answer = ord(answer.upper()) - ord("A")
    if isinstance(answer, str) and answer.isdigit():
        answer = int(answer)
    if isinstance(answer, int) and 0 <= answer < len(choices):
        return answer
    raise CorruptError(f"{path}, row {number}: the answer {answer!r} is none of the {len(choices)} choices")
