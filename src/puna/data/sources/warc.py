"""Web archives: WARC responses through a main-content extractor, WET conversions as they are.

FastWARC reads the records and resiliparse extracts the text; both are C++ and need no network. A record that cannot
be read is reported with its offset, and the good ones survive. Resuming inside a file, language identification,
other extractors and a killable child are the curation room's later work.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from puna.core.errors import need
from puna.data.compressed import Damage, read_blocks
from puna.data.document import Document
from puna.data.sources.files import find_files, locate
from puna.data.sources.task import Problem, Report, SourceConfig, Task, group

_HTML_TYPES = ("text/html", "application/xhtml+xml")


class WarcConfig(SourceConfig):
    """WARC or WET files, plain or compressed (`.gz`, `.lz4`, `.zst`)."""

    kind: Literal["warc"] = "warc"
    """Which kind of source this is."""
    path: Path
    """A folder or a file."""
    include: tuple[str, ...] = ("*.warc", "*.warc.gz", "*.warc.lz4", "*.warc.zst", "*.wet", "*.wet.gz")
    """Glob patterns of the files to read."""
    exclude: tuple[str, ...] = ()
    """Glob patterns of files and names of folders to leave out."""
    extract: Literal["main_content", "whole_page"] = "main_content"
    """What to take from a page."""
    max_record_bytes: int = Field(default=16 << 20, ge=1)
    """Larger records are reported and left out."""


def tasks(config: WarcConfig) -> list[Task]:
    """The files, grouped."""
    need("fastwarc", extra="data")
    return group(config, find_files(config.path, include=config.include, exclude=config.exclude, source=config.name))


def read(config: WarcConfig, task: Task, report: Report) -> Iterator[Document]:
    """The task's pages as documents."""
    for part in task.parts:
        yield from _read_file(config, part, report)


def _read_file(config: WarcConfig, part: str, report: Report) -> Iterator[Document]:
    warc = need("fastwarc.warc", extra="data")
    wanted = warc.WarcRecordType.response | warc.WarcRecordType.conversion
    with locate(config.path, part).open("rb") as stream:
        records = warc.ArchiveIterator(stream, record_types=wanted, parse_http=True)
        offset = 0
        while True:
            try:
                record = next(records)
            except StopIteration:
                _check_end(locate(config.path, part), part, offset, report)
                return
            except (
                Exception
            ) as error:  # the readers raise several unrelated classes; whatever it is, the file ends here
                report(Problem(part, "damaged record", str(error) or type(error).__name__, offset=offset))
                return
            offset = record.stream_pos
            try:
                document = _document(config, part, record)
            except Exception as error:  # as above: one page must not cost the others
                report(Problem(part, "unreadable record", str(error) or type(error).__name__, offset=offset))
                continue
            if document is not None:
                yield document


def _check_end(path: Path, part: str, last_record: int, report: Report) -> None:
    """FastWARC ends without a word where a gzip member is cut in a record's header; look at the last members again."""
    if path.suffix != ".gz":
        return
    with path.open("rb") as stream:
        stream.seek(last_record)
        start = last_record if stream.read(2) == b"\x1f\x8b" else 0  # one member for all: records have no offsets

    def damaged(damage: Damage) -> None:
        report(Problem(part, "damaged file", f"{damage.detail}; the records before it are kept", offset=damage.offset))

    for _ in read_blocks(path, damaged, start=start):
        pass


def _document(config: WarcConfig, part: str, record: Any) -> Document | None:
    is_html = (record.http_content_type or "").lower() in _HTML_TYPES
    is_text = record.headers.get("WARC-Type") == "conversion"
    if not is_html and not is_text:
        return None
    if record.content_length > config.max_record_bytes:
        raise ValueError(f"{record.content_length} bytes, max_record_bytes is {config.max_record_bytes}")
    body = record.reader.read()
    if len(body) < record.content_length:
        raise ValueError(f"truncated: {len(body)} of {record.content_length} bytes")
    if is_text:
        text = body.decode("utf-8")
    else:
        parse = need("resiliparse.parse.html", extra="data")
        encoding = need("resiliparse.parse.encoding", extra="data")
        plain = need("resiliparse.extract.html2text", extra="data")
        declared = record.http_charset or encoding.detect_encoding(body)
        tree = parse.HTMLTree.parse_from_bytes(body, declared)
        text = plain.extract_plain_text(tree, main_content=config.extract == "main_content", alt_texts=True)
    url = record.headers.get("WARC-Target-URI", "").strip("<>") or record.record_id
    date = record.headers.get("WARC-Date", "")
    return config.document(text, url, file=part, offset=record.stream_pos, date=date) if text.strip() else None
