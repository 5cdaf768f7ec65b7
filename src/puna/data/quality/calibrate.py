"""From log-odds to probabilities that mean what they say, and the figures that judge a classifier.

Calibration is Platt's: `p = 1 / (1 + exp(-(a x + b)))`, fitted on labels that the classifier has not seen, with Platt's
smoothed targets. `auc` is the probability that a positive scores above a negative.

Source: Platt 1999; Lin, Lin, Weng 2007 for the smoothed targets; expected calibration error: Guo et al. (1706.04599).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Calibration:
    """`p = sigmoid(slope * x + offset)`."""

    slope: float = 1.0
    offset: float = 0.0

    def __call__(self, log_odds: NDArray[Any]) -> NDArray[np.float64]:
        """Probabilities."""
        return 1 / (1 + np.exp(-np.clip(self.slope * np.asarray(log_odds, dtype=np.float64) + self.offset, -50, 50)))


def fit_calibration(log_odds: NDArray[Any], labels: NDArray[np.bool_]) -> Calibration:
    """Fit by Newton's method; without both classes nothing is changed."""
    positive = int(labels.sum())
    negative = len(labels) - positive
    if not positive or not negative:
        return Calibration()
    target = np.where(labels, (positive + 1) / (positive + 2), 1 / (negative + 2))
    design = np.column_stack([np.asarray(log_odds, dtype=np.float64), np.ones(len(labels))])
    weights: NDArray[Any] = np.array([1.0, 0.0])

    def loss(at: NDArray[Any]) -> float:
        value = np.clip(design @ at, -500, 500)
        return float((np.logaddexp(0, value) - target * value).sum())

    now = loss(weights)
    for _ in range(100):
        probability = 1 / (1 + np.exp(-np.clip(design @ weights, -50, 50)))
        gradient = design.T @ (probability - target)
        hessian = (design * (probability * (1 - probability))[:, None]).T @ design + 1e-9 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while size > 1e-6 and loss(weights - size * step) > now:
            size /= 2
        weights = weights - size * step
        before, now = now, loss(weights)
        if before - now < 1e-9:
            break
    return Calibration(float(weights[0]), float(weights[1]))


def auc(scores: NDArray[Any], labels: NDArray[np.bool_]) -> float:
    """Area under the ROC curve; ties count half. NaN without both classes."""
    labels = np.asarray(labels, dtype=bool)
    positive, negative = int(labels.sum()), int((~labels).sum())
    if not positive or not negative:
        return float("nan")
    _, inverse, counts = np.unique(np.asarray(scores), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2)[inverse]
    return float((ranks[labels].sum() - positive * (positive + 1) / 2) / (positive * negative))


def calibration_error(probabilities: NDArray[Any], labels: NDArray[np.bool_], *, bins: int = 10) -> float:
    """Expected calibration error over equal-width bins: mean distance of what was said from what was true."""
    place = np.minimum((np.asarray(probabilities) * bins).astype(int), bins - 1)
    counts = np.bincount(place, minlength=bins)
    said = np.bincount(place, probabilities, minlength=bins)
    true = np.bincount(place, np.asarray(labels, dtype=float), minlength=bins)
    return float(np.abs(said - true).sum() / max(1, counts.sum()))


def figures(log_odds: NDArray[Any], labels: NDArray[np.bool_], calibration: Calibration) -> dict[str, float]:
    """What a classifier is worth on labels that it has not seen."""
    probability = calibration(log_odds)
    labels = np.asarray(labels, dtype=bool)
    return {
        "n": float(len(labels)),
        "positive_share": float(labels.mean()) if len(labels) else float("nan"),
        "auc": auc(log_odds, labels),
        "accuracy": float(((probability >= 0.5) == labels).mean()) if len(labels) else float("nan"),
        "calibration_error": calibration_error(probability, labels),
        "calibration_error_before": calibration_error(Calibration()(log_odds), labels),
    }
