"""Candidate pairs from LSH keys, and their true similarity; both in buckets, so that memory stays bounded.

A task is one band and one range of keys. It reads that column of all parts, sorts, and writes the pairs that share a
key. All pairs of one range of second documents are then brought together, each once, and compared in chunks.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.data.dedup.places import Places
from puna.data.documents import list_column, numpy_column, read_arrow

Run = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]
_BYTES_PER_KEY = 64  # while a bucket of keys is sorted: keys, numbers, order and their copies
_BYTES_PER_PAIR = 80
_PAIRS_AT_ONCE = 20_000  # compared in one task


@dataclass(frozen=True)
class Edges:
    """Pairs of documents that are similar enough, sorted by `(second, first)`; `first < second`.

    Attributes:
        first: Numbers.
        second: Numbers.
        score: Similarity of each pair.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    score: NDArray[np.float32]


@dataclass(frozen=True)
class _BandTask:
    places: Places
    band: int
    bucket: int
    n_buckets: int
    neighbours: int
    out: Path


def candidates(run: Run, places: Places, *, bands: int, neighbours: int, memory_bytes: int) -> list[Path]:
    """Pairs that share a key, a file a band and bucket; a pair may be in several files.

    Args:
        run: Does tasks in parallel.
        places: The documents; their features have `keys` and `shingles`.
        bands: Columns of `keys`.
        neighbours: Each document is paired with so many before it under the same key, and with the first.
        memory_bytes: For one bucket.
    """
    n_buckets = max(1, -(-places.n_documents * _BYTES_PER_KEY // memory_bytes))
    tasks = [
        _BandTask(places, band, bucket, n_buckets, neighbours, places.scratch / f"pairs-{band:03d}-{bucket:04d}.npy")
        for band in range(bands)
        for bucket in range(n_buckets)
    ]
    return list(run(_band_pairs, tasks))


def _band_pairs(task: _BandTask) -> Path:
    all_keys, all_numbers = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for part, path in enumerate(task.places.features):
        table = read_arrow(path)
        keys = numpy_column(table, "keys")[:, task.band]
        _, offsets = list_column(table, "shingles")
        chosen = (keys % np.uint64(task.n_buckets) == task.bucket) & (np.diff(offsets) > 0) & task.places.mask(part)
        rows = np.flatnonzero(chosen)
        all_keys.append(keys[rows])
        all_numbers.append(rows + task.places.starts[part])
    keys, numbers = np.concatenate(all_keys), np.concatenate(all_numbers)
    np.save(task.out, pairs_by_key(keys, numbers, neighbours=task.neighbours))
    return task.out


def pairs_by_key(keys: NDArray[Any], numbers: NDArray[np.int64], *, neighbours: int) -> NDArray[np.int64]:
    """Pairs of numbers under the same key: with the first of the key, and with the `neighbours` before.

    Args:
        keys: A key for each entry.
        numbers: Rising.
        neighbours: How many before.

    Returns:
        `[pairs, 2]`, the lower number first.
    """
    order = np.argsort(keys, kind="stable")
    keys, numbers = keys[order], numbers[order]
    found = []
    for lag in range(1, neighbours + 1):
        same = np.flatnonzero(keys[lag:] == keys[:-lag])
        if not len(same):
            break
        found.append(np.stack([numbers[same], numbers[same + lag]], axis=1))
    if len(found) == neighbours:  # some key has more documents than are paired as neighbours
        new = np.ones(len(keys), dtype=bool)
        new[1:] = keys[1:] != keys[:-1]
        begins = np.maximum.accumulate(np.where(new, np.arange(len(keys)), 0))
        far = np.flatnonzero(np.arange(len(keys)) - begins > neighbours)
        found.append(np.stack([numbers[begins[far]], numbers[far]], axis=1))
    return np.concatenate(found) if found else np.empty((0, 2), dtype=np.int64)


@dataclass(frozen=True)
class _CompareTask:
    places: Places
    pairs: NDArray[np.int64]


def confirm(
    run: Run, places: Places, files: Sequence[Path], min_similarity: float, *, memory_bytes: int
) -> tuple[Edges, int]:
    """The candidates whose shingle sets are similar enough.

    Args:
        run: Does tasks in parallel.
        places: The documents.
        files: What `candidates` wrote; they are removed.
        min_similarity: Jaccard similarity that counts.
        memory_bytes: For the pairs that are brought together.

    Returns:
        The edges, and how many pairs were compared.
    """
    kept: list[NDArray[Any]] = []
    looked_at = 0
    for pairs in _each_once(places, files, memory_bytes):
        looked_at += len(pairs)
        chunks = [pairs[at : at + _PAIRS_AT_ONCE] for at in range(0, len(pairs), _PAIRS_AT_ONCE)]
        scores = list(run(_compare, [_CompareTask(places, chunk) for chunk in chunks]))
        for chunk, score in zip(chunks, scores, strict=True):
            near = score >= min_similarity
            kept.append(_edge_rows(chunk[near, 0], chunk[near, 1], score[near]))
    for path in files:
        path.unlink(missing_ok=True)
    if not kept:
        return Edges(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)), looked_at
    edges = np.concatenate(kept)
    return Edges(edges["first"].copy(), edges["second"].copy(), edges["score"].copy()), looked_at


def _edge_rows(first: NDArray[np.int64], second: NDArray[np.int64], score: NDArray[np.float32]) -> NDArray[Any]:
    rows = np.empty(len(first), dtype=[("first", "<i8"), ("second", "<i8"), ("score", "<f4")])
    rows["first"], rows["second"], rows["score"] = first, second, score
    return rows


def _each_once(places: Places, files: Sequence[Path], memory_bytes: int) -> Iterator[NDArray[np.int64]]:
    """All pairs, each once, sorted by (second, first), in ranges of second documents that fit the memory."""
    total = sum(path.stat().st_size // 16 for path in files)
    n_ranges = max(1, -(-total * _BYTES_PER_PAIR // memory_bytes))
    bounds = np.linspace(0, places.n_documents, n_ranges + 1).astype(np.int64)
    for low, high in pairwise(bounds):
        here = [np.empty((0, 2), dtype=np.int64)]
        for path in files:
            pairs = np.load(path, mmap_mode="r")
            here.append(np.asarray(pairs[(pairs[:, 1] >= low) & (pairs[:, 1] < high)]))
        pairs = np.concatenate(here)
        order = np.lexsort((pairs[:, 0], pairs[:, 1]))
        pairs = pairs[order]
        new = np.ones(len(pairs), dtype=bool)
        new[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
        yield pairs[new]


def _compare(task: _CompareTask) -> NDArray[np.float32]:
    first_part, second_part = (task.places.part_of(task.pairs[:, side]) for side in (0, 1))
    scores = np.zeros(len(task.pairs), dtype=np.float32)
    for at in np.lexsort((second_part, first_part)).tolist():  # neighbours in this order read the same files
        sets = [
            _shingles(task.places.features[int(part[at])], int(task.pairs[at, side] - task.places.starts[part[at]]))
            for side, part in enumerate((first_part, second_part))
        ]
        scores[at] = jaccard(*sets)
    return scores


def jaccard(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Size of the intersection over that of the union; both sorted, each value once."""
    if not len(one) or not len(other):
        return 0.0
    if len(one) > len(other):
        one, other = other, one
    common = int(np.count_nonzero(other.take(np.searchsorted(other, one), mode="clip") == one))
    return common / (len(one) + len(other) - common)


@lru_cache(maxsize=32)
def _open_shingles(path: Path) -> tuple[NDArray[Any], NDArray[np.int64]]:
    return list_column(read_arrow(path), "shingles")


def _shingles(path: Path, row: int) -> NDArray[Any]:
    values, offsets = _open_shingles(path)
    return values[offsets[row] : offsets[row + 1]]
