"""A mixing law: what a data mix does to the loss, fitted on many small runs with random mixes.

    L_i(w) = c_i + exp(b_i + t_i . f(w))     for each validation domain i and mix w, shares of the training domains

Small models rank mixes as large ones do, so a law fitted on runs of a million parameters picks the mix for a large one.
`f(w) = w ** power`: 1 is the published log-linear law, less says that the first per cent of a domain brings more than
the fiftieth. `choose_power` picks it by cross-validation on the small runs alone; runs that are to test the law must
not choose its form (`benchmarks/mixing_law.py` does both on RegMix's runs). A start with `c` just under the least loss
and a least-squares fit of `log(L - c)` is followed by Levenberg-Marquardt steps on the losses with Huber weights. `c`
is free: held under the least loss of noisy runs, it sticks there and the fit is bad.

`best_mix` minimises a weighted sum of predicted losses with a pull towards a prior and caps on how often a domain may
be repeated.

Source: Ye et al., Data Mixing Laws (2403.16952), equation 6; Liu et al., RegMix (2407.01492); OLMix for the prior and
the cap.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.core.errors import UsageError

POWERS = (1.0, 0.75, 0.5, 0.35, 0.25)
"""Forms of the law that `choose_power` compares."""

_START_FLOOR = 0.99  # of the least loss
_STEPS = 200
_HUBER = 0.05  # nats; larger residuals count linearly
_RIDGE = 1e-6  # shares sum to 1: without it there is no one answer
_LEAST = 1e-8  # damping: shares sum to 1, so the undamped system has no one answer


@dataclass(frozen=True)
class MixingLaw:
    """A fitted law.

    Attributes:
        domains: Names of the training domains, `D` of them.
        targets: Names of the validation losses, `T` of them.
        floor: `[T]` c, in nats.
        intercept: `[T]` b.
        slope: `[T, D]` t.
        power: Shares enter the exponent to this power.
    """

    domains: tuple[str, ...]
    targets: tuple[str, ...]
    floor: NDArray[np.float64]
    intercept: NDArray[np.float64]
    slope: NDArray[np.float64]
    power: float = 0.5

    def predict(self, mixes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Losses of mixes: `[n, D]` to `[n, T]`."""
        return self.floor + np.exp(self.intercept + np.atleast_2d(mixes) ** self.power @ self.slope.T)


def fit_mixing_law(
    mixes: NDArray[np.float64],
    losses: NDArray[np.float64],
    *,
    domains: Sequence[str],
    targets: Sequence[str],
    power: float = 0.5,
) -> MixingLaw:
    """Fit the law of every target.

    Args:
        mixes: `[n, D]` shares; each row sums to 1.
        losses: `[n, T]` in nats.
        domains: Names of the columns of `mixes`.
        targets: Names of the columns of `losses`.
        power: Shares enter the exponent to this power; see `choose_power`.

    Raises:
        UsageError: Fewer runs than the law has numbers, or losses that are no losses.
    """
    mixes, losses = np.asarray(mixes, dtype=float), np.asarray(losses, dtype=float)
    if len(mixes) != len(losses) or mixes.shape[1] != len(domains) or losses.shape[1] != len(targets):
        raise UsageError(f"{mixes.shape} shares and {losses.shape} losses do not fit {len(domains)} x {len(targets)}")
    if len(mixes) < mixes.shape[1] + 2:
        raise UsageError(f"{len(mixes)} runs cannot fix {mixes.shape[1] + 2} numbers; make more small runs")
    if not np.isfinite(losses).all() or (losses <= 0).any():
        raise UsageError("a loss is not finite and positive; leave that run out")
    design = np.column_stack([np.ones(len(mixes)), mixes**power])
    fits = [_fit_one(design, losses[:, target]) for target in range(losses.shape[1])]
    floor, intercept, slope = (np.array([fit[i] for fit in fits]) for i in range(3))
    return MixingLaw(tuple(domains), tuple(targets), floor, intercept, slope, power)


@dataclass(frozen=True)
class Trial:
    """How well a form of the law foretells small runs that it was not fitted on.

    Attributes:
        power: The form.
        rank: `[T]` Spearman correlation of predicted and true losses of the held-out runs.
        error: `[T]` root mean square of predicted minus true, in nats.
    """

    power: float
    rank: NDArray[np.float64]
    error: NDArray[np.float64]


def choose_power(
    mixes: NDArray[np.float64],
    losses: NDArray[np.float64],
    *,
    powers: Sequence[float] = POWERS,
    folds: int = 8,
    seed: int = 0,
) -> tuple[float, list[Trial]]:
    """The form of the law that foretells held-out runs best: largest median rank correlation over the targets.

    Args:
        mixes: `[n, D]` shares.
        losses: `[n, T]` in nats.
        powers: The forms to compare.
        folds: Parts; each is foretold by laws fitted on the others.
        seed: Of the parts.

    Returns:
        The power, and the trial of each.
    """
    parts = np.random.default_rng(seed).permutation(len(mixes)) % folds
    names, targets = [str(i) for i in range(mixes.shape[1])], [str(i) for i in range(losses.shape[1])]
    trials = []
    for power in powers:
        predicted = np.empty_like(losses)
        for part in range(folds):
            seen = parts != part
            law = fit_mixing_law(mixes[seen], losses[seen], domains=names, targets=targets, power=power)
            predicted[~seen] = law.predict(mixes[~seen])
        rank = np.array([spearman(predicted[:, t], losses[:, t]) for t in range(losses.shape[1])])
        trials.append(Trial(power, rank, np.sqrt(np.mean((predicted - losses) ** 2, axis=0))))
    return max(trials, key=lambda trial: float(np.median(trial.rank))).power, trials


def _fit_one(design: NDArray[np.float64], loss: NDArray[np.float64]) -> tuple[float, float, NDArray[Any]]:
    normal = design.T @ design + _RIDGE * np.eye(design.shape[1])
    floor = _START_FLOOR * float(loss.min())
    weights = np.linalg.solve(normal, design.T @ np.log(loss - floor))
    error, damping = _huber(loss - floor - np.exp(design @ weights)), 1e-2
    for _ in range(_STEPS):
        value = np.exp(np.minimum(design @ weights, 30))
        residual = loss - floor - value
        jacobian = np.column_stack([np.ones(len(loss)), value[:, None] * design])
        scaled = jacobian * np.minimum(1, _HUBER / np.maximum(np.abs(residual), 1e-12))[:, None]
        square = scaled.T @ jacobian
        step = np.linalg.solve(square + damping * np.diag(np.diag(square) + _RIDGE), scaled.T @ residual)
        new_error = _huber(loss - floor - step[0] - np.exp(np.minimum(design @ (weights + step[1:]), 30)))
        if new_error < error:
            error, floor, weights, damping = (
                new_error,
                floor + float(step[0]),
                weights + step[1:],
                max(damping / 3, _LEAST),
            )
        else:
            damping *= 4
    return floor, float(weights[0]), weights[1:]


def _huber(residual: NDArray[np.float64]) -> float:
    size = np.abs(residual)
    return float(np.where(size < _HUBER, 0.5 * size**2, _HUBER * (size - 0.5 * _HUBER)).sum())


@dataclass(frozen=True)
class BestMix:
    """What `best_mix` found.

    Attributes:
        weights: `[D]` shares.
        loss: Predicted weighted loss.
        prior_loss: The same of the prior.
    """

    weights: NDArray[np.float64]
    loss: float
    prior_loss: float


def best_mix(
    law: MixingLaw,
    *,
    prior: NDArray[np.float64],
    importance: NDArray[np.float64] | None = None,
    caps: NDArray[np.float64] | None = None,
    kl: float = 0.1,
    steps: int = 3000,
    rate: float = 0.2,
) -> BestMix:
    """The mix of least predicted loss.

    Args:
        law: The law.
        prior: `[D]` shares to stay near, for example by size.
        importance: `[T]` weight of each target; all the same by default.
        caps: `[D]` largest share of each domain, for example tokens it has times most epochs over tokens to train on.
        kl: Strength of the pull: nats of loss for each nat of KL(mix || prior).
        steps: Of exponentiated gradient descent.
        rate: Its step size.

    Raises:
        UsageError: The caps leave no mix.
    """
    prior = np.maximum(np.asarray(prior, dtype=float), 1e-9)
    prior = prior / prior.sum()
    importance = np.full(len(law.targets), 1 / len(law.targets)) if importance is None else np.asarray(importance)
    limit = np.ones_like(prior) if caps is None else np.minimum(np.asarray(caps, dtype=float), 1)
    if limit.sum() < 1:
        raise UsageError(f"the caps add up to {limit.sum():.2f}; they must leave room for 1. Allow more epochs.")
    weights = _within_caps(prior, limit)
    rate = min(rate, 0.5 / kl) if kl > 0 else rate  # longer steps along a strong pull would swing
    for _ in range(steps):
        reducible = np.exp(law.intercept + law.slope @ weights**law.power)
        entering = law.power * np.maximum(weights, 1e-6) ** (law.power - 1)
        gradient = entering * (law.slope.T @ (importance * reducible)) + kl * (
            np.log(np.maximum(weights, 1e-12) / prior) + 1
        )
        weights = _within_caps(weights * np.exp(-rate * (np.clip(gradient - gradient.min(), 0, 50))), limit)

    def value(mix: NDArray[np.float64]) -> float:
        return float(law.predict(mix)[0] @ importance)

    return BestMix(weights, value(weights), value(prior))


def _within_caps(weights: NDArray[np.float64], limit: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale to sum 1 with no share over its limit: what is over goes to the others in proportion."""
    weights = np.maximum(weights, 1e-15)
    capped = np.zeros(len(weights), dtype=bool)
    for _ in range(len(weights)):
        free = 1 - limit[capped].sum()
        scaled = np.where(capped, limit, weights * free / max(weights[~capped].sum(), 1e-300))
        over = ~capped & (scaled > limit)
        if not over.any():
            return scaled
        capped |= over
    return limit / limit.sum()


def spearman(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Rank correlation; ties share their mean rank."""
    ranks = []
    for values in (np.asarray(one), np.asarray(other)):
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        last = np.cumsum(counts)
        ranks.append((last - (counts - 1) / 2)[inverse])
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])
