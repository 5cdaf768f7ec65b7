"""The linear classifier: hashed word n-grams, logistic regression. Millions of documents an hour on one core.

A document is the set of its words, its word pairs and the punctuation between its words, hashed into 2^20 buckets; each
counts 1/sqrt(how many there are). The weights come from logistic regression by AdaGrad over small batches. It is what
fastText's supervised mode does without the hidden layer, which for two classes only factorises the same weights.

Source: Joulin et al., Bag of Tricks for Efficient Text Classification (1607.01759); Duchi, Hazan, Singer 2011.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from puna.core.config import Config
from puna.core.errors import UsageError
from puna.data.quality.calibrate import Calibration
from puna.data.word_hashes import batches, compose, mix, ngrams, words_of

_BATCH = 16


class LinearConfig(Config):
    """The linear classifier and its training."""

    bits: int = Field(default=20, ge=10, le=26)
    """The weights are 2 to this power."""
    ngram: int = Field(default=2, ge=1, le=4)
    """Longest run of words that is a feature."""
    epochs: int = Field(default=8, ge=1)
    """Passes over the labels."""
    rate: float = Field(default=0.5, gt=0)
    """Step size of AdaGrad."""
    l2: float = Field(default=1e-6, ge=0)
    """Decay of the weights of seen features, each time."""
    max_characters: int = Field(default=20_000, ge=1)
    """A text's beginning that is looked at."""
    seed: int = 0
    """Seed of the order."""


@dataclass(frozen=True)
class Features:
    """Sparse rows: the different buckets of each text.

    Attributes:
        buckets: `[features]`.
        offsets: `[texts + 1]`.
    """

    buckets: NDArray[np.int64]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        """How many texts."""
        return len(self.offsets) - 1


@dataclass(frozen=True)
class LinearClassifier:
    """Weights that give log-odds.

    Attributes:
        weights: `[2 ** bits]`.
        bias: Log-odds of an empty text.
        config: How features are made.
        calibration: Log-odds to probability.
    """

    weights: NDArray[np.float32]
    bias: float
    config: LinearConfig
    calibration: Calibration = Calibration()  # noqa: RUF009 - frozen

    def log_odds(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Of each text, not calibrated."""
        return _log_odds(self.weights, self.bias, features_of(texts, self.config))

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Probability that a text is positive."""
        return self.calibration(self.log_odds(texts))

    def calibrated(self, calibration: Calibration) -> "LinearClassifier":
        """The same with another calibration."""
        return replace(self, calibration=calibration)


def features_of(texts: Sequence[str], config: LinearConfig) -> Features:
    """The features of some texts."""
    rows: list[NDArray[np.int64]] = []
    modulus = np.uint64((1 << config.bits) - 1)
    for batch in batches([compose(text[: config.max_characters]) for text in texts]):
        words = words_of(batch, gaps=True)
        runs = [ngrams(words, n, short=False) for n in range(2, config.ngram + 1)]
        singles = words.hashes, words.first
        gaps = mix(words.gaps + np.uint64(1)), words.first
        for text in range(len(batch)):
            parts = [values[first[text] : first[text + 1]] for values, first in (singles, gaps, *runs)]
            rows.append(np.unique(np.concatenate(parts) & modulus).astype(np.int64))
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return Features(np.concatenate(rows) if rows else np.empty(0, np.int64), offsets)


def _log_odds(weights: NDArray[np.float32], bias: float, features: Features) -> NDArray[np.float64]:
    sizes = np.diff(features.offsets)
    sums = np.concatenate([[0.0], np.cumsum(weights[features.buckets], dtype=np.float64)])
    totals = sums[features.offsets[1:]] - sums[features.offsets[:-1]]
    return bias + totals / np.sqrt(np.maximum(sizes, 1))


def train_linear(
    texts: Sequence[str], labels: Sequence[bool] | NDArray[np.bool_], config: LinearConfig
) -> LinearClassifier:
    """Fit the weights.

    Args:
        texts: What to learn from.
        labels: Whether each is positive.
        config: How.

    Raises:
        UsageError: Only one class is there.
    """
    target = np.asarray(labels, dtype=bool).astype(np.float64)
    if not 0 < target.sum() < len(target):
        raise UsageError(
            f"all {len(target)} labels are the same; a classifier needs both. Change positive_from or add data."
        )
    features = features_of(texts, config)
    weights = np.zeros(1 << config.bits, dtype=np.float64)
    squares = np.full(1 << config.bits, 1e-8)
    bias, bias_square = float(np.log(target.mean() / (1 - target.mean()))), 1e-8
    rng = np.random.default_rng(config.seed)
    sizes = np.diff(features.offsets)
    scale = 1 / np.sqrt(np.maximum(sizes, 1))
    for _ in range(config.epochs):
        order = rng.permutation(len(texts))
        for begin in range(0, len(order), _BATCH):
            rows = order[begin : begin + _BATCH]
            buckets = np.concatenate([features.buckets[features.offsets[r] : features.offsets[r + 1]] for r in rows])
            owner = np.repeat(np.arange(len(rows)), sizes[rows])
            value = bias + np.bincount(owner, weights[buckets], minlength=len(rows)) * scale[rows]
            error = 1 / (1 + np.exp(-np.clip(value, -30, 30))) - target[rows]
            touched, inverse = np.unique(buckets, return_inverse=True)
            slope = np.bincount(inverse, (error * scale[rows])[owner]) + config.l2 * weights[touched]
            squares[touched] += slope**2
            weights[touched] -= config.rate * slope / np.sqrt(squares[touched])
            bias_square += float(error.sum()) ** 2
            bias -= 0.1 * config.rate * float(error.sum()) / np.sqrt(bias_square)
    return LinearClassifier(weights.astype(np.float32), bias, config)
