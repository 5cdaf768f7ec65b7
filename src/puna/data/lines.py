"""Our own compressed line files: provenance of shards, quarantines."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import zstandard

from puna.core.errors import CorruptError
from puna.core.files import atomic_open
from puna.data.compressed import Damage, read_lines


def write_lines(path: Path, lines: Iterable[str]) -> int:
    """Write lines to a Zstandard file, atomically.

    Returns:
        How many.
    """
    count = 0
    compressor = zstandard.ZstdCompressor(level=3)
    with atomic_open(path, "wb") as file, compressor.stream_writer(file, closefd=False) as out:
        for line in lines:
            out.write(line.encode("utf-8"))
            out.write(b"\n")
            count += 1
    return count


def read_records(path: Path) -> Iterator[bytes]:
    """Lines of one of our own compressed files.

    Raises:
        CorruptError: The file is damaged; its name is in the message.
    """

    def damaged(damage: Damage) -> None:
        raise CorruptError(f"{path} is damaged at byte {damage.offset}: {damage.detail}. Make {path.parent} again.")

    try:
        yield from read_lines(path, damaged)
    except FileNotFoundError as error:
        raise CorruptError(f"{path} is missing, though its manifest lists it. Make {path.parent} again.") from error
