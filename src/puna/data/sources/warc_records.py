"""Records of a WARC file, the good ones of a damaged file too.

FastWARC parses (plain, gzip, lz4, zstd). Around it: a file compressed as one member is unpacked, so that records have
offsets; a record that is cut or whose headers are broken is reported with its offset, and reading goes on at the next
place that looks like a record; HTTP bodies lose their chunking and compression, and a body whose chunk sizes lie is
taken as it is, as browsers do.
"""

import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import zstandard

from puna.core.errors import need

Trouble = Callable[[str, str, int], None]
"""Called with reason, detail and offset."""

_SCAN_BYTES = 1 << 20
_MEMBER = re.compile(rb"\x1f\x8b\x08|\x28\xb5\x2f\xfd|\x04\x22\x4d\x18|WARC/\d\.\d")  # gzip, zstd, lz4, plain
_PLAIN = re.compile(rb"WARC/\d\.\d\r?\n")


@dataclass(slots=True)
class Record:
    """One record.

    Attributes:
        offset: Where it begins: in the file, or in the unpacked stream of a file that is one compressed member.
        kind: `response`, `revisit`, `conversion` ...
        headers: WARC headers by lower-case name.
        block: Its content as it stands in the file.
    """

    offset: int
    kind: str
    headers: dict[str, str]
    block: bytes

    @property
    def url(self) -> str:
        """Address, without the angle brackets of old writers."""
        return self.headers.get("warc-target-uri", "").strip("<>")


@dataclass(slots=True)
class Response:
    """An HTTP response: status, headers by lower-case name, body without chunking and compression."""

    status: int
    headers: dict[str, str]
    body: bytes


def read_records(open_file: Callable[[], BinaryIO], trouble: Trouble, *, max_bytes: int = 1 << 30) -> Iterator[Record]:
    """Every record that can be read.

    Args:
        open_file: Opens the file anew.
        trouble: Told of each damaged record.
        max_bytes: Larger records are reported and left out.
    """
    with open_file() as file:
        head = file.read(4)
    if head.startswith(b"\x1f\x8b\x08") and _one_member(open_file):
        yield from _read(lambda: cast("BinaryIO", _Unpacked(open_file())), trouble, max_bytes)
        return
    yield from _read(open_file, trouble, max_bytes)


def record_at(open_file: Callable[[], BinaryIO], offset: int) -> Record:
    """The record that begins at an offset which `read_records` gave.

    Raises:
        OSError: There is none.
    """
    warc = need("fastwarc.warc", extra="data")
    with open_file() as file:
        packed = file.read(3) == b"\x1f\x8b\x08" and _one_member(open_file)
    with _Unpacked(open_file()) if packed else open_file() as stream:
        stream.seek(offset)
        for record in warc.ArchiveIterator(stream, parse_http=False):
            headers = {name.lower(): value for name, value in record.headers.items()}
            return Record(offset, headers.get("warc-type", ""), headers, record.reader.read())
    raise OSError(f"no record at offset {offset}")


def _read(open_file: Callable[[], BinaryIO], trouble: Trouble, max_bytes: int) -> Iterator[Record]:
    warc = need("fastwarc.warc", extra="data")
    start: int | None = 0
    seen = told = -1

    def tell(reason: str, detail: str, offset: int) -> None:
        nonlocal told
        if offset > told:  # one report a damaged place
            trouble(reason, detail, offset)
        told = max(told, offset)

    while start is not None:
        with open_file() as file:
            file.seek(start)
            records = warc.ArchiveIterator(file, parse_http=False)
            at = start
            try:
                for record in records:
                    at = record.stream_pos
                    yield from _one(record, at, tell, max_bytes)
                    seen = at
            except Exception as error:  # the readers raise several unrelated classes
                detail = str(error).strip() or type(error).__name__
            else:
                detail = _silent_end(open_file, seen)
        if not detail:
            return
        # the damage lies behind the last good record; the next place that looks like a record goes on
        start = _next_start(open_file, max(seen, at, start))
        tell("damaged record", detail, max(seen, at, 0))


def _one(record: Any, at: int, trouble: Trouble, max_bytes: int) -> Iterator[Record]:
    if record.content_length > max_bytes:
        trouble("record too large", f"{record.content_length} bytes, at most {max_bytes} are allowed", at)
        return
    block = record.reader.read()
    if len(block) < record.content_length:
        trouble("truncated record", f"{len(block)} of {record.content_length} bytes", at)
        return
    headers = {name.lower(): value for name, value in record.headers.items()}
    yield Record(at, headers.get("warc-type", ""), headers, block)


def _silent_end(open_file: Callable[[], BinaryIO], last: int) -> str:
    """FastWARC ends without a word where a gzip member is cut or broken; look at the last member again."""
    with open_file() as file:
        file.seek(max(last, 0))
        if file.read(2) != b"\x1f\x8b":
            return ""
        file.seek(max(last, 0))
        decoder = zlib.decompressobj(wbits=31)
        try:
            while data := file.read(_SCAN_BYTES):
                while data:
                    decoder.decompress(data)
                    data = decoder.unused_data
                    if decoder.eof:
                        if not data.strip(b"\0"):
                            data = b""
                        decoder = zlib.decompressobj(wbits=31)
                        fresh = not data
                    else:
                        fresh = False
        except zlib.error as error:
            return f"the compressed stream is broken: {error}"
    return "" if fresh else "the file ends before its compressed stream does"


def _next_start(open_file: Callable[[], BinaryIO], after: int) -> int | None:
    """The first place behind `after` at which a record begins; None when there is none."""
    with open_file() as file:
        file.seek(after + 1)
        base, window = after + 1, b""
        while block := file.read(_SCAN_BYTES):
            window += block
            for match in re.finditer(
                rb"\x1f\x8b\x08|\x28\xb5\x2f\xfd|\x04\x22\x4d\x18|WARC/\d\.\d", window[: -64 or None]
            ):
                place = match.start()
                if match.group().startswith(b"WARC/") or _begins_record(window[place : place + 4096]):
                    return base + place
            keep = min(len(window), 4096)
            base += len(window) - keep
            window = window[-keep:] if len(block) == _SCAN_BYTES else b""
            if not window:
                return None
    return None


def _begins_record(data: bytes) -> bool:
    """Whether a compressed member that starts here unpacks to a WARC record."""
    try:
        if data.startswith(b"\x1f\x8b"):
            return zlib.decompressobj(wbits=31).decompress(data, 64).startswith(b"WARC/")
        if data.startswith(b"\x28\xb5\x2f\xfd"):
            return zstandard.ZstdDecompressor().decompressobj().decompress(data).startswith(b"WARC/")
    except (zlib.error, zstandard.ZstdError):
        return False
    return True


def _one_member(open_file: Callable[[], BinaryIO]) -> bool:
    """Whether the first gzip member holds more than one record."""
    with open_file() as file:
        decoder, text = zlib.decompressobj(wbits=31), b""
        while data := file.read(1 << 16):
            try:
                text += decoder.decompress(data)
            except zlib.error:
                return False
            if len(_PLAIN.findall(text)) > 1 and re.search(rb"\r?\n\r?\nWARC/\d\.\d\r?\n", text):
                return True
            if decoder.eof or len(text) > 64 << 20:
                return False
            text = text if len(text) < 1 << 20 else text[:64] + text[-4096:]
    return False


class _Unpacked(gzip.GzipFile):
    """A gzip file read as its content; it closes what it reads from."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(fileobj=file)
        self._file = file

    def close(self) -> None:
        super().close()
        self._file.close()


# ---- HTTP ----


def http_response(block: bytes, *, max_body_bytes: int = 1 << 28) -> Response | None:
    """A response record's block as an HTTP response; None when it is none.

    Raises:
        ValueError: The body's compression is broken or unknown.
    """
    head, separator, body = block.partition(b"\r\n\r\n")
    if not separator:
        head, _, body = block.partition(b"\n\n")
    first, *lines = head.decode("latin-1").splitlines() or [""]
    match = re.match(r"HTTP/[\d.]+\s+(\d{3})", first)
    if not match:
        return None
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            key = name.strip().lower()
            headers[key] = f"{headers[key]}, {value.strip()}" if key in headers else value.strip()
    if "chunked" in headers.get("transfer-encoding", "").lower():
        body = _without_chunks(body)
    for coding in reversed([c.strip().lower() for c in headers.get("content-encoding", "").split(",") if c.strip()]):
        body = _decoded(body, coding, max_body_bytes)
    return Response(int(match.group(1)), headers, body)


def _without_chunks(body: bytes) -> bytes:
    parts, at = [], 0
    while True:
        end = body.find(b"\r\n", at)
        size = body[at:end].partition(b";")[0].strip() if end >= 0 else b""
        if not size or not re.fullmatch(rb"[0-9a-fA-F]+", size):
            # archives often hold bodies that were unpacked while the header stayed
            return b"".join(parts) + body[at:] if parts else body
        n = int(size, 16)
        if n == 0:
            return b"".join(parts)
        parts.append(body[end + 2 : end + 2 + n])
        at = end + 2 + n + 2


def _decoded(body: bytes, coding: str, most: int) -> bytes:
    try:
        if coding in {"gzip", "x-gzip"}:
            # a body that does not begin as gzip was unpacked by the crawler
            return zlib.decompressobj(wbits=31).decompress(body, most) if body[:2] == b"\x1f\x8b" else body
        if coding == "deflate":
            try:
                return zlib.decompressobj().decompress(body, most)
            except zlib.error:
                return zlib.decompressobj(wbits=-15).decompress(body, most)
        if coding == "br":
            return _brotli(body, most)
        if coding == "zstd":
            return zstandard.ZstdDecompressor().decompressobj().decompress(body)[:most]
    except (zlib.error, zstandard.ZstdError, OSError) as error:
        raise ValueError(f"the {coding} body is broken: {error}") from error
    if coding in {"identity", "none", "utf-8"}:
        return body
    raise ValueError(f"content-encoding {coding[:40]!r} is not known")


def _brotli(body: bytes, most: int) -> bytes:
    streams = need("fastwarc.stream_io", extra="data")
    if body[:1] in b"<" or body[:15].lstrip()[:1] == b"<":
        return body  # unpacked by the crawler
    with streams.BrotliReader(io.BytesIO(body)) as reader:
        return reader.read(most)
