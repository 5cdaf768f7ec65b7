"""Web archives: WARC responses through an extractor, WET conversions as they are.

Each page keeps the way back (file, offset of its record), the date of its capture, and what server and page say about
its use. What is no page (requests, images, revisits of a page that did not change, redirects) is counted by its kind.
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
from puna.data.sources.task import Place, Problem, Report, Skipped, SourceConfig, Task, group
from puna.data.sources.warc_records import Record, Response, http_response, read_records

_HTML_TYPES = ("text/html", "application/xhtml+xml")
_TYPES = {"application/json", "application/pdf", "application/xml", "application/javascript", "text/css", "text/plain"}
_MAIN_TYPES = {"application", "audio", "font", "image", "text", "video"}
_KINDS = {"warcinfo", "request", "revisit", "metadata", "continuation"}


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
    statuses: tuple[int, ...] = (200,)
    """HTTP status codes of the responses to take; none takes all. Bodies of redirects and errors are no pages."""
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
        with opened() as file:
            if not file.read(1):
                report(Skipped("empty file"))
                return
        for record in read_records(opened, trouble, max_bytes=config.max_record_bytes):
            try:
                document = _document(config, part, record, guard)
            except ExtractionError as error:
                trouble("extraction failed", str(error), record.offset)
            except (ValueError, LookupError) as error:  # one page must not cost the others
                trouble("unreadable record", str(error), record.offset)
            else:
                if isinstance(document, Skipped):
                    report(document)
                else:
                    yield document
    except OSError as error:
        report(Problem(part, "unreadable", error.strerror or str(error)))


def _document(config: WarcConfig, part: str, record: Record, guard: Guard) -> Document | Skipped:
    metadata: dict[str, Scalar] = {}
    licence = ""
    if record.kind == "conversion":
        text = record.block.decode("utf-8")
    elif record.kind == "response":
        response = http_response(record.block)
        if response is None:
            return Skipped("response that is not HTTP")
        if config.statuses and response.status not in config.statuses:
            return Skipped(f"HTTP status {response.status}")
        if not _is_html(response):
            return Skipped(_content_type(response.headers.get("content-type", "")))
        page = guard.extract(response.body, _charset(response))
        text, licence = page.pop("text"), page.pop("licence", "")
        metadata = {**page, **_header_rights(response)}
    elif record.kind == "resource" and record.headers.get("content-type", "").startswith(_HTML_TYPES):
        page = guard.extract(record.block, "")
        text, licence = page.pop("text"), page.pop("licence", "")
        metadata = page
    elif record.kind == "resource":
        return Skipped(_content_type(record.headers.get("content-type", "")))
    else:
        return Skipped(f"record {record.kind}" if record.kind in _KINDS else "record of an unknown kind")
    if not text.strip():
        return Skipped("no text in it")
    url = record.url or record.headers.get("warc-record-id", "").strip("<>")
    date = record.headers.get("warc-date", "")
    return config.document(text, url, licence=licence, file=part, offset=record.offset, date=date, metadata=metadata)


def _is_html(response: Response) -> bool:
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in _HTML_TYPES:
        return True
    return not kind and response.body[:512].lstrip().lower().startswith((b"<!doctype html", b"<html"))


def _content_type(header: str) -> str:
    """The class of a content type: servers send any words, and a count for each would have no end."""
    kind = header.partition(";")[0].strip().lower()
    main = kind.partition("/")[0]
    return f"content type {kind if kind in _TYPES else main if main in _MAIN_TYPES else 'unknown'}"


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
