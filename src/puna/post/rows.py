"""Rows of JSON from files, each with its place, so that every complaint can name file and line.

JSON lines (`.jsonl`, plain or `.gz` or `.zst`) are read as a stream; a `.json` file may also hold one list, as Alpaca
and ShareGPT are often handed round. What is wrong with a row is collected in `Problems` and raised together; what is
wrong with the file itself (cut short, damaged) is raised at once, since nothing after that place can be trusted.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.core.errors import ConfigError, CorruptError, MissingError, UsageError
from puna.core.files import is_sealed
from puna.data.compressed import Damage, read_lines

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".jsonl.zst", ".json.zst")


@dataclass(frozen=True, slots=True)
class Row:
    """One JSON object and where it stands.

    Attributes:
        path: The file.
        number: Line (or, in a JSON list, entry), counted from 1.
        value: The object.
    """

    path: Path
    number: int
    value: dict[str, Any]

    @property
    def where(self) -> str:
        """`file:line`, as editors jump to it."""
        return f"{self.path}:{self.number}"


class Problems:
    """Collects what is wrong with rows, and raises it together.

    Args:
        limit: After this many problems reading stops.
        title: Head line of the error.
    """

    def __init__(self, *, limit: int, title: str) -> None:
        assert limit >= 1, f"limit is {limit}"
        self._limit, self._title = limit, title
        self._found: list[str] = []

    @property
    def count(self) -> int:
        """Problems so far."""
        return len(self._found)

    def add(self, where: str, text: str) -> None:
        """Notes one problem.

        Raises:
            ConfigError: This was the last one that the limit allows.
        """
        self._found.append(f"{where}: {text}")
        if len(self._found) >= self._limit:
            self.finish(note="Reading stopped there; there may be more.")

    def finish(self, *, note: str = "") -> None:
        """Ends the reading.

        Raises:
            ConfigError: At least one problem was found; the message holds all of them.
        """
        if self._found:
            raise ConfigError(self._found, title=self._title, note=note)


def find_files(paths: Sequence[Path | str]) -> list[Path]:
    """Names the files to read; a folder stands for the JSON files in it, sorted by name.

    Raises:
        MissingError: A path is not there, or a folder holds no such file.
        UsageError: A folder is that of a run, whose files are of several kinds.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(entry for entry in path.iterdir() if entry.name.endswith(SUFFIXES))
            if is_sealed(path):
                rows = " or ".join(str(entry) for entry in inside if ".jsonl" in entry.suffixes)
                raise UsageError(f"{path} is the folder of a finished run; name its file: {rows or 'it has none'}")
            if not inside:
                raise MissingError(f"{path} holds no file that ends with {', '.join(SUFFIXES)}")
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise MissingError(f"{path} is not there; name a file that ends with {', '.join(SUFFIXES)}, or a folder")
    return files


def read_rows(path: Path, problems: Problems) -> Iterator[Row]:
    """Reads the JSON objects of one file.

    Args:
        path: A file; its name says how it is compressed.
        problems: Where rows that cannot be read are noted.

    Yields:
        The rows that are JSON objects, in order. Blank lines are passed over.

    Raises:
        CorruptError: The compressed stream is cut short or damaged.
        ConfigError: `problems` is full.
    """
    lines = _lines(path)
    for number, line in enumerate(lines, start=1):
        text = _decode(line, f"{path}:{number}", problems)
        if text is None or not text.strip():
            continue
        if number == 1 and text.lstrip().startswith("["):
            yield from _list_rows(path, text, lines, problems)
            return
        value = _parse(text, f"{path}:{number}", problems)
        if value is not None:
            yield Row(path, number, value)


def _list_rows(path: Path, first: str, rest: Iterator[bytes], problems: Problems) -> Iterator[Row]:
    where = str(path)
    text = _decode(b"".join(rest), where, problems)
    if text is None:
        return
    try:
        entries = json.loads(first + text)
    except (ValueError, RecursionError) as error:
        problems.add(where, f"begins as a JSON list and is not one: {error}")
        return
    for number, entry in enumerate(entries, start=1):
        if isinstance(entry, dict):
            yield Row(path, number, entry)
        else:
            problems.add(f"{path}:{number}", f"an entry must be a JSON object, got {kind_of(entry)}")


def _decode(line: bytes, where: str, problems: Problems) -> str | None:
    try:
        return line.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        problems.add(where, f"not UTF-8: byte 0x{line[error.start]:02x} at column {error.start + 1}; save it as UTF-8")
        return None


def _parse(text: str, where: str, problems: Problems) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        problems.add(where, f"not valid JSON: {error}")
        return None
    if not isinstance(value, dict):
        problems.add(where, f"a row must be a JSON object, got {kind_of(value)}")
        return None
    return value


def kind_of(value: Any) -> str:
    """What a JSON value is, in words for a message."""
    if value is None:
        return "null"
    names = {dict: "an object", list: "a list", str: "text", bool: "a truth value", int: "a number", float: "a number"}
    return names.get(type(value), type(value).__name__)


def _lines(path: Path) -> Iterator[bytes]:
    n_lines = 0

    def refuse(damage: Damage) -> None:
        raise CorruptError(
            f"{path} is cut short or damaged after line {n_lines} (byte {damage.offset}): {damage.detail}. "
            "Fetch or make the file again."
        )

    for line in read_lines(path, refuse):
        n_lines += 1
        yield line
