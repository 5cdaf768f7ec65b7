"""Web archives: WARC responses through an extractor, WET conversions as they are.

Each page keeps the way back (file, offset of its record), the date of its capture, and what server and page say about
its use. A `revisit` record says that a page did not change and has no body; it is counted, not quarantined.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

from pydantic import Field

from puna.core.errors import need
from puna.data.document import Document, Scalar
from puna.data.extract.guard import ExtractionError, Guard
from puna.data.extract.html import ExtractionConfig, licence_name
from puna.data.places import join, open_binary
from puna.data.sources.files import find_files
from puna.data.sources.task import Place, Problem, Report, SourceConfig, Task, group
from puna.data.sources.warc_records import Record, Response, http_response, read_records

_HTML_TYPES = ("text/html", "application/xhtml+xml")


class WarcConfig(SourceConfig):
    """WARC or WET files, plain or compressed (`.gz`, `.lz4`, `.zst`)."""

    kind: Literal["warc"] = "warc"
    """Which kind of source this is."""
    path: Place
    """A folder or a file, local or remote (`s3://commoncrawl/...`, `https://...`)."""
    include: tuple[str, ...] = ("*.warc", "*.warc.gz", "*.warc.lz4", "*.warc.zst", "*.wet", "*.wet.gz")
    """Glob patterns of the files to read."""
    exclude: tuple[str, ...] = ()
    """Glob patterns of files and names of folders to leave out."""
    extraction: ExtractionConfig = ExtractionConfig()
    """How pages become text."""
    max_record_bytes: int = Field(default=16 << 20, ge=1)
    """Larger records are reported and left out."""
    task_bytes: int = Field(default=64 << 20, ge=1)
    """Input bytes of one task, about; a file is never cut."""


def tasks(config: WarcConfig) -> list[Task]:
    """The files, grouped."""
    need("fastwarc", extra="data")
    return group(config, find_files(config.path, include=config.include, exclude=config.exclude, source=config.name))


def read(config: WarcConfig, task: Task, report: Report) -> Iterator[Document]:
    """The task's pages as documents."""
    with Guard(config.extraction) as guard:
        for part in task.parts:
            yield from _read_file(config, part, guard, report)


def _read_file(config: WarcConfig, part: str, guard: Guard, report: Report) -> Iterator[Document]:
    def trouble(reason: str, detail: str, offset: int) -> None:
        report(Problem(part, reason, detail, offset=offset))

    opened = partial(open_binary, join(config.path, part))
    try:
        for record in read_records(opened, trouble, max_bytes=config.max_record_bytes):
            try:
                document = _document(config, part, record, guard)
            except ExtractionError as error:
                trouble("extraction failed", str(error), record.offset)
            except (ValueError, LookupError) as error:  # one page must not cost the others
                trouble("unreadable record", str(error), record.offset)
            else:
                if document is not None:
                    yield document
    except OSError as error:
        report(Problem(part, "unreadable", error.strerror or str(error)))


def _document(config: WarcConfig, part: str, record: Record, guard: Guard) -> Document | None:
    metadata: dict[str, Scalar] = {}
    licence = ""
    if record.kind == "conversion":
        text = record.block.decode("utf-8")
    elif record.kind == "response":
        response = http_response(record.block)
        if response is None or response.status >= 400 or not _is_html(response):
            return None
        page = guard.extract(response.body, _charset(response))
        text, licence = page.pop("text"), page.pop("licence", "")
        metadata = {**page, **_header_rights(response)}
    elif record.kind == "resource" and record.headers.get("content-type", "").startswith(_HTML_TYPES):
        page = guard.extract(record.block, "")
        text, licence = page.pop("text"), page.pop("licence", "")
        metadata = page
    else:
        return None
    if not text.strip():
        return None
    url = record.url or record.headers.get("warc-record-id", "").strip("<>")
    date = record.headers.get("warc-date", "")
    return config.document(text, url, licence=licence, file=part, offset=record.offset, date=date, metadata=metadata)


def _is_html(response: Response) -> bool:
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in _HTML_TYPES:
        return True
    return not kind and response.body[:512].lstrip().lower().startswith((b"<!doctype html", b"<html"))


def _charset(response: Response) -> str:
    for item in response.headers.get("content-type", "").split(";")[1:]:
        name, _, value = item.partition("=")
        if name.strip().lower() == "charset":
            return value.strip(" \"'")
    return ""


def _header_rights(response: Response) -> dict[str, Any]:
    found = {}
    if robots := response.headers.get("x-robots-tag"):
        found["robots"] = robots.lower()
    if tdm := response.headers.get("tdm-reservation"):
        found["tdm_reservation"] = tdm.lower()
    if "license" in response.headers.get("link", ""):
        found["licence_link"] = licence_name(response.headers["link"])
    return found
