"""What every kind of source has in common: its config, its tasks, and the problems that it reports.

A source is cut into *tasks*, small lists of parts (files, packages, seeds) in a fixed order. A task is the unit
that is handed to a worker, killed, and done again, so it is described by plain JSON values and its output depends
on nothing but itself. A part that cannot be read is a *problem*: reported with where and why, and the rest goes on.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from puna.core.config import Config
from puna.data.document import Document, Scalar

Place = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value)]
"""A path, or an address that fsspec opens."""


def _plain_name(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", value) or len(value) > 64:
        raise ValueError("use lower case letters, digits and single dashes between them, at most 64 characters")
    return value


Name = Annotated[str, AfterValidator(_plain_name)]


class SourceConfig(Config):
    """Fields of every source; each kind adds its own."""

    name: Name
    """Name in manifests, shard names and mixing weights: lower case letters, digits and dashes."""
    domain: Name = "prose"
    """What the text is about (`prose`, `code`, `exercises`): filters can be limited to a domain."""
    language: str = ""
    """Language of the documents where the source does not know better."""
    licence: str = ""
    """Licence of the documents where the source does not know better."""
    task_bytes: int = Field(default=8 << 20, ge=1)
    """Input bytes of one task, about: the granularity of resuming and of the process pool."""

    def document(
        self,
        text: str,
        url: str,
        *,
        licence: str = "",
        language: str = "",
        file: str = "",
        offset: int = -1,
        date: str = "",
        metadata: Mapping[str, Scalar] | None = None,
    ) -> Document:
        """A document of this source; what the record does not say, the source does."""
        language = language or self.language
        return Document(
            text,
            self.name,
            url,
            licence or self.licence,
            language,
            metadata or {},
            self.domain,
            1.0 if language else 0.0,
            date,
            file,
            offset,
        )


@dataclass(frozen=True, slots=True)
class Task:
    """A part of a source.

    Attributes:
        source: Name of the source.
        index: Place among the tasks of its source.
        parts: What to read, in the source kind's own terms.
        n_bytes: Input size, exact for files and estimated for generated text.
    """

    source: str
    index: int
    parts: tuple[str, ...]
    n_bytes: int

    @property
    def name(self) -> str:
        """File name stem of everything that the task makes."""
        return f"{self.source}-{self.index:05d}"


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in the input that could not be used.

    Attributes:
        where: Address relative to the source's root.
        reason: Short class of the problem; problems are counted by it.
        detail: What exactly was wrong.
        offset: Byte offset in the file, when known.
        line: Line number from 1, when known.
        column: Character of the line from 1, when known.
    """

    where: str
    reason: str
    detail: str
    offset: int | None = None
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        place = "".join(f":{number}" for number in (self.line, self.column) if number is not None)
        byte = f" at byte {self.offset}" if self.offset is not None else ""
        return f"{self.where}{place}{byte}: {self.reason}: {self.detail}"

    def record(self) -> dict[str, Any]:
        """JSON form, without what is not known."""
        values = {"where": self.where, "reason": self.reason, "detail": self.detail}
        known = {"offset": self.offset, "line": self.line, "column": self.column}
        return values | {key: value for key, value in known.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Skipped:
    """A record that is no document and nothing wrong: it is counted by its reason, no more.

    Attributes:
        reason: Its kind, from a small set: `record request`, `content type image`, `HTTP status 404`.
    """

    reason: str


Report = Callable[[Problem | Skipped], None]


def group(source: SourceConfig, parts: Iterable[tuple[str, int]]) -> list[Task]:
    """Cut a sequence of `(part, bytes)` into tasks of about `task_bytes`, in order."""
    tasks: list[Task] = []
    names: list[str] = []
    size = 0
    for name, n_bytes in parts:
        if names and size + n_bytes > source.task_bytes:
            tasks.append(Task(source.name, len(tasks), tuple(names), size))
            names, size = [], 0
        names.append(name)
        size += n_bytes
    if names:
        tasks.append(Task(source.name, len(tasks), tuple(names), size))
    return tasks
