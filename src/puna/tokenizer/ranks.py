"""Ranks: the vocabulary as bytes -> rank, and tiktoken's file of them.

A rank is both the token's id and its priority: BPE merges the adjacent pair whose joined bytes have the lowest rank.
The file (`tokenizer.model` of Llama 3, `*.tiktoken`) has one line a token: base64 of the bytes, a space, the rank.
"""

import base64
import binascii
import hashlib
from collections.abc import Mapping
from pathlib import Path

from puna.core.errors import CorruptError, MissingError
from puna.core.files import atomic_open

Ranks = dict[bytes, int]


def read_ranks(path: Path | str) -> Ranks:
    """Read a ranks file.

    Args:
        path: A `tokenizer.model` or `*.tiktoken` file.

    Returns:
        Bytes -> rank, complete: ranks 0 to n-1, all 256 single bytes present.

    Raises:
        MissingError: There is no such file.
        CorruptError: It is not a ranks file, or a rank or byte is missing; the message names the line.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError as error:
        raise MissingError(f"{path} is not there") from error
    ranks: Ranks = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            encoded, rank = line.split()
            token = base64.b64decode(encoded, validate=True)
            ranks[token] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise CorruptError(
                f"{path}, line {number}: expected 'base64 rank', found {line[:40]!r}. "
                "It is not a tiktoken ranks file, or it was cut short."
            ) from error
    check_ranks(ranks, where=str(path))
    return ranks


def format_ranks(ranks: Mapping[bytes, int]) -> bytes:
    """The ranks file's bytes, in the order of the ranks."""
    by_rank = sorted(ranks.items(), key=lambda entry: entry[1])
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in by_rank)


def write_ranks(path: Path | str, ranks: Mapping[bytes, int]) -> None:
    """Write a ranks file atomically."""
    with atomic_open(path, "wb") as file:
        file.write(format_ranks(ranks))


def ranks_digest(ranks: Mapping[bytes, int]) -> str:
    """Hexadecimal SHA-256 of the ranks file."""
    return hashlib.sha256(format_ranks(ranks)).hexdigest()


def is_ranks_file(path: Path | str) -> bool:
    """Whether the file's first line looks like `base64 rank` (a SentencePiece model's does not)."""
    try:
        with Path(path).open("rb") as file:
            encoded, rank = file.readline(4096).split()
        base64.b64decode(encoded, validate=True)
        int(rank)
    except (OSError, ValueError, binascii.Error):
        return False
    return True


def check_ranks(ranks: Mapping[bytes, int], *, where: str) -> None:
    """Refuse ranks that cannot encode every text.

    Raises:
        CorruptError: Ranks are not 0 to n-1, or one of the 256 bytes has none.
    """
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise CorruptError(f"{where}: the ranks of {len(ranks)} tokens are not 0 to {len(ranks) - 1}, each once")
    absent = [value for value in range(256) if bytes([value]) not in ranks]
    if absent:
        raise CorruptError(
            f"{where}: {len(absent)} of the 256 bytes have no token (first: 0x{absent[0]:02x}), "
            "so some text could not be encoded"
        )
