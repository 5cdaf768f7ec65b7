"""Figures with their uncertainty.

A score of a benchmark is a mean over items that could have been others, so it comes with n and an interval:

- right or wrong: Wilson's interval, which stays inside [0, 1] and is right for small n and extreme scores;
- other per-item scores and ratios of sums (bits per byte): percentile bootstrap over items, seeded;
- items that share a passage: the clustered standard error, which can be three times the naive one;
- two models on the same items: the difference within items, and McNemar's exact test.

Source: Wilson 1927; Miller, "Adding Error Bars to Evals" (arXiv 2411.00640), sections 2-4; Agresti and Min 2005
(interval for matched pairs); McNemar 1947 in its exact form.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

CONFIDENCE = 0.95
_RESAMPLES = 4000
_CHUNK_VALUES = 4_000_000
"""Resampled values held at once: 32 MB."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its interval.

    Attributes:
        value: The figure.
        low: Lower end of the interval.
        high: Upper end of the interval.
        n: Items that it rests on.
        method: How the interval was made: `wilson`, `bootstrap`, `clustered`, `stratified`.
    """

    value: float
    low: float
    high: float
    n: int
    method: str

    def as_json(self) -> dict[str, Any]:
        """The estimate as JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Paired:
    """The difference of two models on the same items.

    Attributes:
        difference: Mean of `b - a`.
        low: Lower end of its interval.
        high: Upper end of its interval.
        n: Common items.
        only_a: Items that a alone got right (binary scores).
        only_b: Items that b alone got right (binary scores).
        p_value: Two-sided; McNemar's exact test for binary scores, a normal test of the mean difference for others.
    """

    difference: float
    low: float
    high: float
    n: int
    only_a: int
    only_b: int
    p_value: float


def z_value(confidence: float = CONFIDENCE) -> float:
    """Two-sided normal quantile: 1.96 for 95 %."""
    assert 0 < confidence < 1, f"confidence is {confidence}"
    return NormalDist().inv_cdf((1 + confidence) / 2)


def wilson(successes: int, n: int, *, confidence: float = CONFIDENCE) -> Estimate:
    """Share of successes with Wilson's score interval.

    Args:
        successes: Items right, 0 to `n`.
        n: Items, at least 1.
        confidence: Coverage of the interval.

    Returns:
        The share and its interval.
    """
    assert 0 <= successes <= n and n > 0, f"{successes} of {n}"
    z = z_value(confidence)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Estimate(p, low, high, n, "wilson")


def bootstrap_ratio(
    numerators: Sequence[float],
    denominators: Sequence[float],
    *,
    seed: int = 0,
    resamples: int = _RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """Ratio of sums with a percentile interval from resampling items.

    Args:
        numerators: One value an item.
        denominators: One positive value an item.
        seed: Of the resampling.
        resamples: Number of bootstrap samples.
        confidence: Coverage of the interval.

    Returns:
        `sum(numerators) / sum(denominators)` and its interval.
    """
    top, bottom = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    assert top.shape == bottom.shape and top.ndim == 1 and top.size, f"shapes {top.shape} and {bottom.shape}"
    rng = np.random.default_rng(seed)
    per_chunk = max(1, _CHUNK_VALUES // top.size)
    ratios = []
    for start in range(0, resamples, per_chunk):
        chosen = rng.integers(0, top.size, size=(min(per_chunk, resamples - start), top.size))
        ratios.append(top[chosen].sum(axis=1) / bottom[chosen].sum(axis=1))
    low, high = np.quantile(np.concatenate(ratios), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(float(top.sum() / bottom.sum()), float(low), float(high), top.size, "bootstrap")


def bootstrap_mean(
    values: Sequence[float], *, seed: int = 0, resamples: int = _RESAMPLES, confidence: float = CONFIDENCE
) -> Estimate:
    """Mean with a percentile interval from resampling items; arguments as in `bootstrap_ratio`."""
    ones = [1.0] * len(values)
    return bootstrap_ratio(values, ones, seed=seed, resamples=resamples, confidence=confidence)


def standard_error(values: Sequence[float]) -> float:
    """`sqrt(var / n)` with the unbiased variance; 0 for a single value."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.std(ddof=1) / math.sqrt(array.size)) if array.size > 1 else 0.0


def clustered_standard_error(values: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """Standard error of a mean whose items come in clusters.

    Args:
        values: One score an item.
        clusters: The cluster of each item.

    Returns:
        `sqrt(sum over clusters of (sum of residuals)^2) / n`.

    Source: Miller 2024, equation 4.
    """
    assert len(values) == len(clusters) and values, f"{len(values)} values, {len(clusters)} clusters"
    mean = math.fsum(values) / len(values)
    sums: dict[Hashable, float] = {}
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + value - mean
    return math.sqrt(math.fsum(s * s for s in sums.values())) / len(values)


def clustered_mean(
    values: Sequence[float], clusters: Sequence[Hashable], *, confidence: float = CONFIDENCE
) -> Estimate:
    """Mean with a normal interval from the clustered standard error, cut to [0, 1] where all scores lie in it."""
    mean = math.fsum(values) / len(values)
    half = z_value(confidence) * clustered_standard_error(values, clusters)
    low, high = mean - half, mean + half
    if all(0 <= value <= 1 for value in values):
        low, high = max(0.0, low), min(1.0, high)
    return Estimate(mean, low, high, len(values), "clustered")


def macro_mean(groups: Sequence[Sequence[float]], *, confidence: float = CONFIDENCE) -> Estimate:
    """Mean of group means: each group counts the same, whatever its size.

    The variance of a binary group is that of its Wilson centre, so a group with all items right is not taken
    as certain.

    Args:
        groups: Scores of each group, none empty.
        confidence: Coverage of the interval.

    Returns:
        The macro mean with a normal interval, variances added over independent groups.
    """
    assert groups and all(len(g) for g in groups), "macro_mean needs groups with items"
    z = z_value(confidence)
    means, variance = [], 0.0
    for scores in groups:
        n = len(scores)
        means.append(math.fsum(scores) / n)
        if is_binary(scores):
            p = (math.fsum(scores) + z * z / 2) / (n + z * z)
            variance += p * (1 - p) / (n + z * z)
        else:
            variance += standard_error(scores) ** 2
    value = math.fsum(means) / len(means)
    half = z * math.sqrt(variance) / len(means)
    low, high = value - half, value + half
    if all(0 <= score <= 1 for scores in groups for score in scores):
        low, high = max(0.0, low), min(1.0, high)
    return Estimate(value, low, high, sum(map(len, groups)), "stratified")


def is_binary(values: Sequence[float]) -> bool:
    """Whether every score is 0 or 1."""
    return all(v in (0, 1) for v in values)


def mean_estimate(values: Sequence[float], *, seed: int = 0) -> Estimate:
    """Mean with the interval that fits: Wilson for 0 and 1, bootstrap for others."""
    if is_binary(values):
        return wilson(round(math.fsum(values)), len(values))
    return bootstrap_mean(values, seed=seed)


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided exact p-value that two models are equally good, from the items on which they differ.

    Args:
        only_a: Items that a alone got right.
        only_b: Items that b alone got right.

    Returns:
        `min(1, 2 P[X <= min(only_a, only_b)])` with X binomial(only_a + only_b, 1/2).
    """
    assert only_a >= 0 and only_b >= 0, f"{only_a} and {only_b}"
    n, fewer = only_a + only_b, min(only_a, only_b)
    term, tail = 1, 0
    for k in range(fewer + 1):
        tail += term
        term = term * (n - k) // (k + 1)
    # Division of whole numbers: exact also where 2**n is beyond a float.
    return min(1.0, 2 * tail / 2**n)


def paired_difference(a: Sequence[float], b: Sequence[float], *, confidence: float = CONFIDENCE) -> Paired:
    """The mean of `b - a` over the same items.

    Args:
        a: Scores of the first model.
        b: Scores of the second model on the same items, in the same order.
        confidence: Coverage of the interval.

    Returns:
        The difference with its interval and p-value. For binary scores the interval is Agresti and Min's (half an item
        added to each cell of the two-by-two table); for others it is normal, from the variance of the differences.
    """
    assert len(a) == len(b) and a, f"{len(a)} and {len(b)} scores"
    n, z = len(a), z_value(confidence)
    differences = [y - x for x, y in zip(a, b, strict=True)]
    mean = math.fsum(differences) / n
    if is_binary(a) and is_binary(b):
        only_a, only_b = differences.count(-1), differences.count(1)
        total, plus, minus = n + 2, only_b + 0.5, only_a + 0.5
        centre = (plus - minus) / total
        half = z * math.sqrt(plus + minus - (plus - minus) ** 2 / total) / total
        low, high = max(-1.0, centre - half), min(1.0, centre + half)
        return Paired(mean, low, high, n, only_a, only_b, mcnemar_exact(only_a, only_b))
    error = standard_error(differences)
    p = 2 * NormalDist().cdf(-abs(mean) / error) if error else float(mean == 0)
    return Paired(mean, mean - z * error, mean + z * error, n, 0, 0, p)
