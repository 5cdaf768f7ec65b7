"""Embeddings that need no model: hashed TF-IDF and a truncated SVD of a sample (latent semantic analysis).

A document is its words' hash buckets with `(1 + log tf) * idf`. The 128 strongest directions of a sample's matrix come
from subspace iteration; a document's embedding is its projection on them, of length 1. Everything is NumPy; sparse
products gather rows and add them up in runs.

Source: Deerwester et al. 1990; Halko, Martinsson, Tropp 2011, algorithm 4.4.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from puna.data.word_hashes import batches, compose, ngrams, words_of

BUCKETS = 1 << 18
_ROWS_AT_ONCE = 256
_UNSPACED_CHARACTERS = 1.5  # of a word on average: below it a text is hardly spaced
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
        return self.places(rows)[0]

    def places(self, rows: NDArray[np.int64]) -> tuple["Terms", NDArray[np.int64]]:
        """Certain documents, and where their terms are in this."""
        sizes = np.diff(self.offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        at = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], sizes)
        return Terms(self.buckets[at], self.counts[at], offsets), at

    @classmethod
    def joined(cls, pieces: Sequence["Terms"]) -> "Terms":
        """Documents of several, one after the other."""
        sizes = np.concatenate([np.diff(piece.offsets) for piece in pieces])
        return cls(
            np.concatenate([piece.buckets for piece in pieces]),
            np.concatenate([piece.counts for piece in pieces]),
            np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        )


def terms_of(texts: Sequence[str]) -> tuple[list[NDArray[np.uint32]], list[NDArray[np.uint16]]]:
    """Buckets and counts of each text.

    A text that is written without spaces has single characters for words: its terms are runs of three of them.
    """
    buckets, counts = [], []
    for batch in batches(texts):
        words = words_of([compose(text) for text in batch])
        hashed = (words.hashes % np.uint64(BUCKETS)).astype(np.uint32)
        lengths, runs = words.stops - words.starts, None
        for text, (low, high) in enumerate(pairwise(words.first)):
            terms = hashed[low:high]
            if high > low and lengths[low:high].mean() < _UNSPACED_CHARACTERS:
                runs = runs or ngrams(words, 3)
                terms = (runs[0][runs[1][text] : runs[1][text + 1]] % np.uint64(BUCKETS)).astype(np.uint32)
            found, times = np.unique(terms, return_counts=True)
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
    """`log((1 + n) / (1 + df)) + 1` of each bucket."""
    return (np.log((1 + n_documents) / (1 + document_counts)) + 1).astype(np.float32)


def cosines(
    terms: Terms, idf: NDArray[np.float32], first: NDArray[np.int64], second: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Cosine of the whole TF-IDF vectors of pairs of documents.

    Args:
        terms: The documents.
        idf: `[BUCKETS]` weight of a word.
        first: `[pairs]` rows of `terms`.
        second: `[pairs]` rows of `terms`.
    """
    weights = _unit(_weights(terms, idf), terms)
    found = np.zeros(len(first), dtype=np.float32)
    dense = np.zeros((BUCKETS, 1), dtype=np.float32)
    order = np.argsort(first, kind="stable")
    for pairs in np.split(order, np.flatnonzero(np.diff(first[order])) + 1):
        if not len(pairs):
            continue
        row = int(first[pairs[0]])
        mine = slice(int(terms.offsets[row]), int(terms.offsets[row + 1]))
        dense[terms.buckets[mine], 0] = weights[mine]
        others, places = terms.places(second[pairs])
        found[pairs] = _times(weights[places], others, dense)[:, 0]
        dense[terms.buckets[mine], 0] = 0
    return found


def fit(sample: Terms, idf: NDArray[np.float32], *, width: int, seed: int) -> Projection:
    """The strongest directions of a sample.

    Args:
        sample: Some thousand documents.
        idf: `[BUCKETS]` weight of a word, 0 for those that no direction should follow.
        width: Numbers of an embedding.
        seed: Of the start of the iteration.
    """
    weights = _unit(_weights(sample, idf), sample)
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


def _unit(weights: NDArray[np.float32], terms: Terms) -> NDArray[np.float32]:
    """The weights with every document's of length 1."""
    norms = np.sqrt(np.maximum(np.add.reduceat(np.append(weights**2, 0), terms.offsets[:-1]), 1e-12))
    norms[np.diff(terms.offsets) == 0] = 1
    return weights / np.repeat(norms, np.diff(terms.offsets)).astype(np.float32)


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
