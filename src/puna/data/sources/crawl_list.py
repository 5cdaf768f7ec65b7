"""Lists of crawl files: Common Crawl publishes, for each crawl, a compressed list of the paths of its WARC files.

`read_list` fetches such a list (from an address or a local file), `choose` takes a repeatable sample of it, and a
source of kind `crawl_list` reads the files where they are, one task each. Nothing is downloaded to disk.

Source: https://commoncrawl.org/get-started, `crawl-data/CC-MAIN-YYYY-WW/warc.paths.gz`.
"""

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import Field

from puna.core.errors import CorruptError, MissingError
from puna.data.document import Document
from puna.data.places import open_binary
from puna.data.sources import warc
from puna.data.sources.task import Place, Report, Task

COMMON_CRAWL = "https://data.commoncrawl.org/"
_FILE_BYTES = 1 << 30  # of one Common Crawl WARC file, about; the list does not say


class CrawlListConfig(warc.WarcConfig):
    """WARC files named by a list of paths."""

    kind: Literal["crawl_list"] = "crawl_list"  # type: ignore[assignment]
    """Which kind of source this is."""
    path: Place = ""
    """Address in front of the list's paths: `s3://commoncrawl/`, or a local folder; empty takes https."""
    list: str
    """The list: a crawl's name (`CC-MAIN-2024-18`), an address or a file, plain or gzip."""
    files: Literal["warc", "wet"] = "warc"
    """Which files of a named crawl."""
    sample: int | None = Field(default=None, ge=1)
    """How many files to take, chosen by a hash of their paths; none takes all."""


def list_address(text: str, files: str = "warc", *, base: str = COMMON_CRAWL) -> str:
    """Address of a crawl's list of paths; anything but a crawl's name is an address already."""
    return f"{base}crawl-data/{text}/{files}.paths.gz" if text.startswith("CC-MAIN-") and "/" not in text else text


def read_list(address: str) -> list[str]:
    """The paths in a list.

    Raises:
        MissingError: It cannot be fetched.
        CorruptError: It is damaged.
    """
    try:
        with open_binary(address) as file:
            data = file.read()
    except (OSError, ValueError) as error:
        raise MissingError(f"the list {address} cannot be read: {error}") from error
    try:
        text = zlib.decompress(data, wbits=31) if data[:2] == b"\x1f\x8b" else data
        return [line.strip() for line in text.decode("utf-8").splitlines() if line.strip()]
    except (zlib.error, UnicodeDecodeError) as error:
        raise CorruptError(f"the list {address} is damaged: {error}") from error


def choose(paths: Sequence[str], n: int | None) -> list[str]:
    """A sample that does not depend on the order of the list: those with the smallest hashes, in the list's order."""
    if n is None or n >= len(paths):
        return list(paths)
    chosen = set(sorted(paths, key=lambda path: hashlib.sha256(path.encode()).digest())[:n])
    return [path for path in paths if path in chosen]


def tasks(config: CrawlListConfig) -> list[Task]:
    """One task a file.

    Raises:
        MissingError: The list cannot be fetched, or is empty.
    """
    address = list_address(config.list, config.files)
    paths = choose(read_list(address), config.sample)
    if not paths:
        raise MissingError(f"source {config.name!r}: the list {address} is empty")
    return [Task(config.name, i, (path,), _FILE_BYTES) for i, path in enumerate(paths)]


def read(config: CrawlListConfig, task: Task, report: Report) -> Iterator[Document]:
    """The task's pages as documents."""
    return warc.read(config.model_copy(update={"path": config.path or COMMON_CRAWL}), task, report)
