"""Folders of HTML files: one file, one page, through the same extractor as web archives."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from puna.data.document import Document
from puna.data.extract.guard import ExtractionError, Guard
from puna.data.extract.html import ExtractionConfig
from puna.data.sources.files import find_files, locate, read_bytes
from puna.data.sources.task import Place, Problem, Report, SourceConfig, Task, group


class HtmlConfig(SourceConfig):
    """A folder of HTML files, or a single file."""

    kind: Literal["html"] = "html"
    """Which kind of source this is."""
    path: Place
    """The folder, local or remote."""
    include: tuple[str, ...] = ("*.html", "*.htm", "*.xhtml")
    """Glob patterns of the files to read."""
    exclude: tuple[str, ...] = ()
    """Glob patterns of files and names of folders to leave out."""
    base_url: str = ""
    """Address under which the folder was published; a page's address is this and its path."""
    extraction: ExtractionConfig = ExtractionConfig()
    """How pages become text."""
    max_file_bytes: int = Field(default=16 << 20, ge=1)
    """Larger files are reported and left out."""


def tasks(config: HtmlConfig) -> list[Task]:
    """The folder's files, grouped."""
    return group(config, find_files(config.path, include=config.include, exclude=config.exclude, source=config.name))


def read(config: HtmlConfig, task: Task, report: Report) -> Iterator[Document]:
    """The task's pages as documents."""
    with Guard(config.extraction) as guard:
        for part in task.parts:
            data = read_bytes(locate(config.path, part), part, report)
            if data is None:
                continue
            if len(data) > config.max_file_bytes:
                report(Problem(part, "file too large", f"{len(data)} bytes, max_file_bytes is {config.max_file_bytes}"))
                continue
            try:
                page = guard.extract(data)
            except ExtractionError as error:
                report(Problem(part, "extraction failed", str(error)))
                continue
            text, licence = page.pop("text"), page.pop("licence", "")
            if text.strip():
                yield config.document(text, f"{config.base_url}{part}", licence=licence, file=part, metadata=page)
