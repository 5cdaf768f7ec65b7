"""Reading lines of plain, gzip and Zstandard files, where damage costs only what lies behind it.

The decompressors are driven by hand: the library file objects lose what they had already decoded when the end is
missing. Every whole line before the damage is given out; then `Damage` says where in the compressed file it begins.
"""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import zstandard

from puna.data.places import open_binary

CHUNK_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class Damage:
    """A compressed file that ends early or does not decode.

    Attributes:
        offset: Byte offset in the compressed file at which decoding stopped, to within one read of 256 KiB.
        detail: What the decoder said.
    """

    offset: int
    detail: str


def read_lines(path: Path | str, on_damage: Callable[[Damage], None]) -> Iterator[bytes]:
    """Lines of a file, decompressed by its suffix (`.gz`, `.zst`), without their line ends.

    Args:
        path: The file.
        on_damage: Called once when the file is damaged; the iterator then ends. The last, partial line is not given.
    """
    rest = b""
    damaged = False

    def note(damage: Damage) -> None:
        nonlocal damaged
        damaged = True
        on_damage(damage)

    for block in read_blocks(path, note):
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
    if rest and not damaged:
        yield rest


def read_blocks(path: Path | str, on_damage: Callable[[Damage], None], *, start: int = 0) -> Iterator[bytes]:
    """Decompressed blocks of a file in order; every byte that could be decoded is among them.

    Args:
        path: The file.
        on_damage: Called once when the file is damaged; the iterator then ends.
        start: Byte offset to begin at; in a compressed file, that of a member.
    """
    suffix = PurePosixPath(str(path)).suffix
    if suffix == ".gz":
        return _decompressed(path, lambda: zlib.decompressobj(wbits=31), zlib.error, on_damage, start)
    if suffix == ".zst":
        return _decompressed(
            path, lambda: zstandard.ZstdDecompressor().decompressobj(), zstandard.ZstdError, on_damage, start
        )
    return _plain(path, start)


def _plain(path: Path | str, start: int) -> Iterator[bytes]:
    with open_binary(path) as file:
        file.seek(start)
        while block := file.read(CHUNK_BYTES):
            yield block


def _decompressed(
    path: Path | str, new: Callable[[], Any], failure: type[Exception], on_damage: Callable[[Damage], None], start: int
) -> Iterator[bytes]:
    decoder, fresh, offset = new(), True, start
    with open_binary(path) as file:
        file.seek(start)
        while chunk := file.read(CHUNK_BYTES):
            pending = chunk
            while pending:
                if decoder.eof:  # a file may hold several members one after the other
                    decoder, fresh = new(), True
                try:
                    block = decoder.decompress(pending)
                except failure as error:
                    on_damage(Damage(offset, str(error)))
                    return
                fresh = False
                if block:
                    yield block
                pending = decoder.unused_data if decoder.eof else b""
            offset += len(chunk)
    if not decoder.eof and not (fresh and offset > start):
        on_damage(Damage(offset, "the file ends before its compressed stream does"))
