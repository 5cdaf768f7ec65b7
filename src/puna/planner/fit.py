"""Fitting the constants, and judging them on sources that the fit did not see.

The fit is maximum a posteriori: log(predicted / measured) of every row, with Huber's loss, against log-normal priors. A
source with many rows counts with the square root of their number, so that one project's 78 rows do not outvote the
rest. Gauss-Newton with damping; the model is a formula over arrays, so a fit takes a fraction of a second.

Cross-validation leaves one source out, fits on the others from the prior, and predicts it. Leaving one *family* of
software out is the harder test, since a source often has siblings; both are told.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.planner.constants import FITTED, PRIOR, Constants
from puna.planner.published import Published
from puna.planner.step_time import Row, breakdown, row
from puna.planner.work import Amounts

Vector = NDArray[np.float64]

_HUBER = 0.12  # beyond this, an error in log time counts linearly
_SPREADS = {
    "product_efficiency": 0.12,
    "attention_efficiency": 0.3,
    "ultra_speed": 0.1,
    "product_roofline": 0.5,
    "narrow_heads": 0.5,
    "fused_traffic": 0.3,
    "eager_traffic": 0.3,
    "cast_traffic": 0.5,
    "score_traffic": 0.4,
    "host_seconds_per_layer": 0.7,
    "link_efficiency": 0.25,
    "network_efficiency": 0.25,
    "tensor_exposed": 0.5,
    "context_exposed": 0.5,
    "pipeline_exposed": 0.5,
    "data_exposed": 0.6,
    "hop_seconds": 0.7,
    "optimizer_traffic": 0.3,
    "step_overhead_seconds": 0.7,
    "jitter_per_doubling": 0.6,
    "family_factors": 0.07,
}
"""Standard deviation of the prior of each constant's logarithm."""


@dataclass(frozen=True)
class Score:
    """How far predictions are from measurements, |predicted / measured - 1| of the step time.

    Attributes:
        n: Rows.
        median: Their median error.
        p90: Their 90th percentile.
    """

    n: int
    median: float
    p90: float


def score(errors: Vector) -> Score:
    """Summarise relative errors."""
    if not len(errors):
        return Score(0, float("nan"), float("nan"))
    size = np.abs(errors)
    return Score(len(size), float(np.median(size)), float(np.percentile(size, 90)))


def relative_errors(rows: Sequence[Published], constants: Constants = FITTED) -> Vector:
    """Relative errors, predicted / measured - 1, of the step time, one a row."""
    if not rows:
        return np.zeros(0)
    return np.exp(_log_ratios(_stack(rows), _measured(rows), constants)) - 1


def fit(rows: Sequence[Published], *, prior: Constants = PRIOR, rounds: int = 25) -> Constants:
    """Fit all constants to rows.

    Args:
        rows: Published configurations.
        prior: Where the fit starts and what it is pulled to.
        rounds: Most Gauss-Newton steps.
    """
    data, measured, weights = _stack(rows), _measured(rows), _weights(rows)
    start, spread = _flatten(prior), _spreads(prior)
    theta, damping = start.copy(), 1e-3
    residuals = _log_ratios(data, measured, _unflatten(theta))
    best = _cost(residuals, weights, theta - start, spread)
    for _ in range(rounds):
        jacobian = np.stack(
            [
                (_log_ratios(data, measured, _unflatten(theta + step)) - residuals) / 1e-4
                for step in 1e-4 * np.eye(len(theta))
            ],
            axis=1,
        )
        robust = weights * np.minimum(1.0, _HUBER / np.maximum(np.abs(residuals), 1e-9)) / _HUBER**2
        normal = jacobian.T @ (robust[:, None] * jacobian) + np.diag(1 / spread**2)
        slope = jacobian.T @ (robust * residuals) + (theta - start) / spread**2
        moved = theta - np.linalg.solve(normal + damping * np.diag(np.diag(normal)), slope)
        new = _log_ratios(data, measured, _unflatten(moved))
        cost = _cost(new, weights, moved - start, spread)
        if cost < best:
            done = best - cost < 1e-6 * best
            theta, residuals, best, damping = moved, new, cost, damping / 4
            if done:
                break
        else:
            damping *= 8
    return _unflatten(theta)


def leave_out(rows: Sequence[Published], groups: Sequence[str]) -> Vector:
    """Relative errors of every row, predicted by a fit that saw nothing of its group."""
    errors = np.zeros(len(rows))
    for group in dict.fromkeys(groups):
        inside = [i for i, name in enumerate(groups) if name == group]
        others = [r for r, name in zip(rows, groups, strict=True) if name != group]
        errors[inside] = relative_errors([rows[i] for i in inside], fit(others))
    return errors


def sources(rows: Sequence[Published]) -> list[str]:
    """The source of every row."""
    return [r.source for r in rows]


def families(rows: Sequence[Published]) -> list[str]:
    """The software family of every row."""
    return [r.work.stack.family for r in rows]


def _cost(residuals: Vector, weights: Vector, distance: Vector, spread: Vector) -> float:
    size = np.abs(residuals)
    huber = np.where(size < _HUBER, size**2 / 2, _HUBER * (size - _HUBER / 2)) / _HUBER**2
    return float(np.sum(weights * huber) + np.sum((distance / spread) ** 2) / 2)


def _weights(rows: Sequence[Published]) -> Vector:
    count = Counter(sources(rows))
    return np.array([count[r.source] ** -0.5 for r in rows])


def _measured(rows: Sequence[Published]) -> Vector:
    return np.array([r.step_seconds for r in rows])


def _stack(rows: Sequence[Published]) -> Row:
    """All rows as arrays."""
    singles = [row(r.work) for r in rows]
    counted: dict[str, Any] = {n: np.array([getattr(s.amounts, n) for s in singles]) for n in Amounts.names()}
    rest = {f.name: np.array([getattr(s, f.name) for s in singles]) for f in fields(Row) if f.name != "amounts"}
    return Row(amounts=Amounts(**counted), **rest)


def _log_ratios(data: Row, measured: Vector, constants: Constants) -> Vector:
    return np.log(breakdown(data, constants).total / measured)


def _flatten(constants: Constants) -> Vector:
    return np.log(np.concatenate([np.atleast_1d(getattr(constants, f.name)) for f in fields(Constants)]))


def _unflatten(theta: Vector) -> Constants:
    values, at, found = np.exp(theta), 0, {}
    for field in fields(Constants):
        default: Any = getattr(PRIOR, field.name)
        n = len(default) if isinstance(default, tuple) else 1
        part = tuple(float(v) for v in values[at : at + n])
        found[field.name] = part if isinstance(default, tuple) else part[0]
        at += n
    return replace(PRIOR, **found)


def _spreads(prior: Constants) -> Vector:
    sizes = {f.name: np.atleast_1d(getattr(prior, f.name)).size for f in fields(Constants)}
    return np.concatenate([np.full(n, _SPREADS[name]) for name, n in sizes.items()])
