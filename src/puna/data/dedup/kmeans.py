"""Spherical k-means: centroids of length 1, similarity by cosine. Deterministic for its seed.

Source: Dhillon, Modha 2001. Centroids are fitted on a sample; what belongs to whom is then asked in blocks.
"""

import numpy as np
from numpy.typing import NDArray

_ROWS_AT_ONCE = 4096


def fit_centroids(sample: NDArray[np.float32], k: int, *, iterations: int, seed: int) -> NDArray[np.float32]:
    """Centroids of a sample.

    Args:
        sample: `[n, width]`, rows of length 1.
        k: How many; fewer when the sample is smaller.
        iterations: Rounds; it ends earlier when nothing changes.
        seed: Which rows the centroids start from.

    Returns:
        `[k, width]`, rows of length 1.
    """
    rng = np.random.default_rng(seed)
    k = max(1, min(k, len(sample)))
    centroids = sample[np.sort(rng.choice(len(sample), size=k, replace=False))].copy()
    before = None
    for _ in range(iterations):
        nearest, similarity = assign(sample, centroids)
        if before is not None and np.array_equal(nearest, before):
            break
        before = nearest
        order = np.argsort(nearest, kind="stable")
        present, begins = np.unique(nearest[order], return_index=True)
        sums = np.add.reduceat(sample[order], begins, axis=0)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        centroids[present] = np.divide(sums, lengths, out=centroids[present].copy(), where=lengths > 1e-12)
        empty = np.setdiff1d(np.arange(k), present)
        centroids[empty] = sample[np.argsort(similarity, kind="stable")[: len(empty)]]  # the loneliest rows
    return centroids


def assign(rows: NDArray[np.float32], centroids: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The nearest centroid of each row, and the cosine to it."""
    nearest = np.empty(len(rows), dtype=np.int32)
    similarity = np.empty(len(rows), dtype=np.float32)
    for begin in range(0, len(rows), _ROWS_AT_ONCE):
        block = rows[begin : begin + _ROWS_AT_ONCE] @ centroids.T
        nearest[begin : begin + _ROWS_AT_ONCE] = best = block.argmax(axis=1)
        similarity[begin : begin + _ROWS_AT_ONCE] = block[np.arange(len(block)), best]
    return nearest, similarity
