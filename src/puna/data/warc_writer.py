"""Writing WARC files: one gzip member a record, as crawlers do, with the same bytes for the same pages."""

import gzip
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from puna.core.files import atomic_open


@dataclass(frozen=True)
class Page:
    """A page to archive: address, HTML, and the licence that its server declares."""

    url: str
    html: str
    licence: str = ""


def write_warc(path: Path, pages: Iterable[Page], *, date: str) -> int:
    """Write pages as response records.

    Args:
        path: The file, `.warc.gz`.
        pages: In the order of the file.
        date: Date of every record, ISO 8601: given, so that the same pages make the same file.

    Returns:
        How many pages.
    """
    count = 0
    with atomic_open(path, "wb") as out:
        out.write(_member("warcinfo", "", date, b"software: puna\r\n", "application/warc-fields"))
        for page in pages:
            body = page.html.encode()
            head = f"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {len(body)}\r\n"
            block = f"{head}\r\n".encode() + body
            out.write(_member("response", page.url, date, block, "application/http; msgtype=response"))
            count += 1
    return count


def _member(kind: str, url: str, date: str, block: bytes, content_type: str) -> bytes:
    record_id = uuid.uuid5(uuid.NAMESPACE_URL, f"{kind} {url}")
    lines = ["WARC/1.0", f"WARC-Type: {kind}", f"WARC-Record-ID: <urn:uuid:{record_id}>", f"WARC-Date: {date}"]
    lines += [f"WARC-Target-URI: {url}"] if url else []
    lines += [f"Content-Type: {content_type}", f"Content-Length: {len(block)}", "", ""]
    return gzip.compress("\r\n".join(lines).encode() + block + b"\r\n\r\n", compresslevel=4, mtime=0)
