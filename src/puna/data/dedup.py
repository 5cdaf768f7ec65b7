"""Exact deduplication: the first of several equal texts stays.

Equal means equal after Unicode NFC and with every run of white space as one space. Texts are compared by 128 bits of
BLAKE2b. The first in the corpus's own order stays, so the result does not depend on the number of workers. Hashes are
looked at in buckets by their leading bits, so memory is bounded by `memory_bytes` plus one byte a document.

Near duplicates are not looked for here.
"""

import hashlib
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_BYTES_PER_HASH = 96  # of a bucket while it is sorted: hashes, places, sorting order and their copies


def text_hash(text: str) -> bytes:
    """16 bytes that equal texts share."""
    normal = " ".join((text if text.isascii() else unicodedata.normalize("NFC", text)).split())
    return hashlib.blake2b(normal.encode("utf-8"), digest_size=16).digest()


def first_copies(files: Sequence[Path], *, memory_bytes: int = 1 << 29) -> list[NDArray[np.bool_]]:
    """Which documents are the first with their text.

    Args:
        files: For each part of the corpus, in order, a file of 16-byte hashes.
        memory_bytes: Memory for one bucket of hashes.

    Returns:
        For each file a mask, true where the document stays.
    """
    counts = [path.stat().st_size // 16 for path in files]
    keep = [np.ones(count, dtype=bool) for count in counts]
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    n_buckets = max(1, -(-int(starts[-1]) * _BYTES_PER_HASH // memory_bytes))
    for bucket in range(n_buckets):
        hashes, places = _bucket(files, starts, bucket, n_buckets)
        order = np.lexsort((places, hashes[:, 1], hashes[:, 0]))
        ordered = hashes[order]
        repeats = np.flatnonzero((ordered[1:] == ordered[:-1]).all(axis=1)) + 1
        dropped = np.sort(places[order[repeats]])
        file_of = np.searchsorted(starts, dropped, side="right") - 1
        for index in np.unique(file_of):
            keep[index][dropped[file_of == index] - starts[index]] = False
    return keep


def _bucket(
    files: Sequence[Path], starts: NDArray[np.int64], bucket: int, n_buckets: int
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    hashes, places = [np.empty((0, 2), np.uint64)], [np.empty(0, np.int64)]
    for path, start in zip(files, starts[:-1], strict=True):
        values = np.fromfile(path, dtype="<u8").reshape(-1, 2)
        here = np.flatnonzero(values[:, 0] % np.uint64(n_buckets) == bucket)
        hashes.append(values[here])
        places.append(here + start)
    return np.concatenate(hashes), np.concatenate(places)
