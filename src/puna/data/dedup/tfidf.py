"""Embeddings that need no model: hashed TF-IDF and a truncated SVD of a sample (latent semantic analysis).

A document is its words' hash buckets with `(1 + log tf) * idf`. The 128 strongest directions of a sample's matrix come
from subspace iteration; a document's embedding is its projection on them, of length 1. Everything is NumPy; sparse
products gather rows and add them up in runs.

Source: Deerwester et al. 1990; Halko, Martinsson, Tropp 2011, algorithm 4.4.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from puna.data.word_hashes import batches, compose, words_of

BUCKETS = 1 << 18
_ROWS_AT_ONCE = 256
_OVERSAMPLING = 16
_ITERATIONS = 2


@dataclass(frozen=True)
class Terms:
    """Word counts of some documents, as sparse rows.

    Attributes:
        buckets: `[terms]` hash bucket of each different word of each document.
        counts: `[terms]` how often it occurs.
        offsets: `[documents + 1]` where each document's terms begin.
    """

    buckets: NDArray[np.uint32]
    counts: NDArray[np.uint16]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        """How many documents."""
        return len(self.offsets) - 1

    def take(self, rows: NDArray[np.int64]) -> "Terms":
        """Certain documents."""
        sizes = np.diff(self.offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        at = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], sizes)
        return Terms(self.buckets[at], self.counts[at], offsets)


def terms_of(texts: Sequence[str]) -> tuple[list[NDArray[np.uint32]], list[NDArray[np.uint16]]]:
    """Buckets and counts of each text."""
    buckets, counts = [], []
    for batch in batches(texts):
        words = words_of([compose(text) for text in batch])
        hashed = (words.hashes % np.uint64(BUCKETS)).astype(np.uint32)
        for low, high in zip(words.first[:-1], words.first[1:], strict=True):
            found, times = np.unique(hashed[low:high], return_counts=True)
            buckets.append(found)
            counts.append(np.minimum(times, 65_535).astype(np.uint16))
    return buckets, counts


@dataclass(frozen=True)
class Projection:
    """What turns terms into embeddings.

    Attributes:
        idf: `[BUCKETS]` weight of a word.
        directions: `[BUCKETS, width]`.
    """

    idf: NDArray[np.float32]
    directions: NDArray[np.float32]

    def embed(self, terms: Terms) -> NDArray[np.float32]:
        """`[documents, width]`, rows of length 1; zeros for a document without known words."""
        found = _times(_weights(terms, self.idf), terms, self.directions)
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        return np.divide(found, lengths, out=np.zeros_like(found), where=lengths > 1e-12)


def idf_of(document_counts: NDArray[np.int64], n_documents: int) -> NDArray[np.float32]:
    """`log((1 + n) / (1 + df)) + 1`, and 0 for a word of a single document, which is like no other's."""
    idf = np.log((1 + n_documents) / (1 + document_counts)) + 1
    return np.where(document_counts > 1, idf, 0).astype(np.float32)


def fit(sample: Terms, idf: NDArray[np.float32], *, width: int, seed: int) -> Projection:
    """The strongest directions of a sample.

    Args:
        sample: Some thousand documents.
        idf: From `idf_of`.
        width: Numbers of an embedding.
        seed: Of the start of the iteration.
    """
    weights = _weights(sample, idf)
    norms = np.sqrt(np.maximum(np.add.reduceat(np.append(weights**2, 0), sample.offsets[:-1]), 1e-12))
    norms[np.diff(sample.offsets) == 0] = 1
    weights = weights / np.repeat(norms, np.diff(sample.offsets)).astype(np.float32)
    known, columns = np.unique(sample.buckets[weights > 0], return_inverse=True)
    place = np.zeros(BUCKETS, dtype=np.uint32)
    place[known] = np.arange(len(known))
    narrow = Terms(place[sample.buckets], sample.counts, sample.offsets)
    del columns
    rng = np.random.default_rng(seed)
    rank = min(width + _OVERSAMPLING, max(1, len(known)))
    basis = rng.standard_normal((max(1, len(known)), rank), dtype=np.float32)
    for _ in range(_ITERATIONS):
        basis, _ = np.linalg.qr(_transposed_times(weights, narrow, _times(weights, narrow, basis), len(basis)))
    image = _times(weights, narrow, basis)
    values, vectors = np.linalg.eigh(image.T @ image)
    best = vectors[:, np.argsort(-values)][:, :width]
    directions = np.zeros((BUCKETS, width), dtype=np.float32)
    directions[known, : best.shape[1]] = basis @ best
    return Projection(idf, directions)


def _weights(terms: Terms, idf: NDArray[np.float32]) -> NDArray[np.float32]:
    return (1 + np.log(terms.counts.astype(np.float32))) * idf[terms.buckets]


def _times(weights: NDArray[np.float32], terms: Terms, dense: NDArray[np.float32]) -> NDArray[np.float32]:
    """The sparse matrix times a dense one."""
    out = np.zeros((len(terms), dense.shape[1]), dtype=np.float32)
    for begin in range(0, len(terms), _ROWS_AT_ONCE):
        end = min(begin + _ROWS_AT_ONCE, len(terms))
        offsets = terms.offsets[begin : end + 1]
        span = slice(int(offsets[0]), int(offsets[-1]))
        full = np.flatnonzero(np.diff(offsets))
        if len(full):
            rows = dense[terms.buckets[span]] * weights[span, None]
            out[begin + full] = np.add.reduceat(rows, offsets[full] - offsets[0], axis=0)
    return out


def _transposed_times(
    weights: NDArray[np.float32], terms: Terms, dense: NDArray[np.float32], n_columns: int
) -> NDArray[np.float32]:
    """The transposed sparse matrix times a dense one: the same with documents and words exchanged."""
    order = np.argsort(terms.buckets, kind="stable")
    rows = np.repeat(np.arange(len(terms), dtype=np.uint32), np.diff(terms.offsets))[order]
    offsets = np.searchsorted(terms.buckets[order], np.arange(n_columns + 1))
    return _times(weights[order], Terms(rows, terms.counts[order], offsets), dense)
