"""How far annotators agree beyond chance: Krippendorff's alpha, Cohen's and Fleiss' kappa, Gwet's AC1 and AC2.

Ratings are a matrix of items by raters with NaN where somebody did not judge. Raw agreement is always reported beside a
coefficient: when nearly all labels are of one kind, kappa and alpha fall although people agree (Feinstein and
Cicchetti 1990); Gwet's coefficients do not. Where a coefficient is not defined (one rater, no item judged twice, one
category only, so that chance agreement is 1) the value is None and the reason says so; nothing is made up.

Intervals come from resampling items, since labels of one item are not independent.

Source: Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011); Cohen 1960 and 1968; Fleiss 1971; Gwet,
"Computing inter-rater reliability and its variance in the presence of high agreement" (2008) and "Handbook of
Inter-Rater Reliability" (2014), chapters 4 and 5.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Level = Literal["nominal", "ordinal", "interval"]
Weighting = Literal["none", "linear", "quadratic"]
Ratings = NDArray[np.float64]
"""Items by raters; NaN is a missing rating."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """A coefficient with its interval.

    Attributes:
        value: The coefficient; None when it is not defined.
        low: Lower end of the interval; None without one.
        high: Upper end of the interval.
        n_items: Items that at least two people judged.
        n_labels: Labels on these items.
        reason: Why there is no value.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n_items: int = 0
    n_labels: int = 0
    reason: str = ""

    def as_json(self) -> dict[str, Any]:
        """The coefficient as JSON values."""
        return asdict(self)


class UndefinedError(Exception):
    """A coefficient has no value for these ratings; the message says why."""


Counts = NDArray[np.float64]
"""Items by categories: how many people chose it."""


def count_table(ratings: Ratings, categories: Sequence[float] | None = None) -> tuple[Counts, NDArray[np.float64]]:
    """How often each item got each category.

    Args:
        ratings: Items by raters.
        categories: All categories in order; by default those that occur.

    Returns:
        The table, and the categories.
    """
    values = np.unique(ratings[~np.isnan(ratings)]) if categories is None else np.asarray(categories, dtype=np.float64)
    return (ratings[:, :, None] == values).sum(axis=1).astype(np.float64), values


def raw_agreement(ratings: Ratings) -> Agreement:
    """Share of pairs of labels of the same item that are equal, each item with the same weight."""
    return _measure(ratings, None, lambda table, _: _observed(table, np.eye(table.shape[1])))


def krippendorff_alpha(ratings: Ratings, *, level: Level = "nominal") -> Agreement:
    """Krippendorff's alpha.

    Args:
        ratings: Items by raters, NaN where missing.
        level: What the numbers mean: names, an order, or distances.

    Returns:
        1 - observed / expected disagreement; 1 is perfect, 0 is chance.
    """
    return _measure(ratings, None, lambda table, values: _alpha(table, values, level))


def fleiss_kappa(ratings: Ratings, *, categories: Sequence[float] | None = None) -> Agreement:
    """Fleiss' kappa; items may have different numbers of labels.

    Args:
        ratings: Items by raters, NaN where missing; who judged does not matter.
        categories: All categories.

    Differs:
        Fleiss asks for the same number of labels on each item; with different numbers each item's agreement counts
        the same, as in Gwet (2014), equation 2.20.
    """
    return _measure(ratings, categories, _fleiss)


def gwet_ac(ratings: Ratings, *, categories: Sequence[float] | None = None, weighting: Weighting = "none") -> Agreement:
    """Gwet's AC1 (no weights) or AC2.

    Args:
        ratings: Items by raters, NaN where missing.
        categories: All categories of the scale; chance agreement depends on how many there are.
        weighting: How much credit a near miss gets.
    """
    return _measure(ratings, categories, lambda table, values: _gwet(table, values, weighting))


def cohen_kappa(
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    *,
    categories: Sequence[float] | None = None,
    weighting: Weighting = "none",
) -> Agreement:
    """Cohen's kappa of two raters over the items that both judged.

    Args:
        first: One rater's label of each item, NaN where missing.
        second: The other's.
        categories: All categories in order; by default those that occur.
        weighting: How much credit a near miss gets.
    """
    ratings = np.stack([np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)], axis=1)
    both = ~np.isnan(ratings).any(axis=1)
    ratings = ratings[both]
    n = len(ratings)
    if n == 0:
        return Agreement(None, reason="no item was judged by both")
    values = np.unique(ratings) if categories is None else np.asarray(categories, dtype=np.float64)
    table = (ratings[:, 0, None, None] == values[:, None]) & (ratings[:, 1, None, None] == values[None, :])
    joint = table.sum(axis=0) / n
    weights = weight_matrix(values, weighting)
    observed = (weights * joint).sum()
    expected = (weights * np.outer(joint.sum(axis=1), joint.sum(axis=0))).sum()
    if expected >= 1 - 1e-12:
        return Agreement(None, n_items=n, n_labels=2 * n, reason="both used one category only")
    return Agreement(float((observed - expected) / (1 - expected)), n_items=n, n_labels=2 * n)


def with_interval(
    measure: Callable[[Ratings], Agreement],
    ratings: Ratings,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Agreement:
    """A coefficient with a percentile interval from resampling items.

    Args:
        measure: Ratings to coefficient.
        ratings: Items by raters.
        resamples: Bootstrap samples; those for which the coefficient is not defined are left out.
        confidence: Coverage.
        seed: Of the resampling.
    """
    whole = measure(ratings)
    if whole.value is None:
        return whole
    rng = np.random.default_rng(seed)
    drawn = (measure(ratings[rng.integers(0, len(ratings), len(ratings))]).value for _ in range(resamples))
    values = [value for value in drawn if value is not None]
    if len(values) < resamples / 2:
        return Agreement(whole.value, None, None, whole.n_items, whole.n_labels, "too few items for an interval")
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Agreement(whole.value, float(low), float(high), whole.n_items, whole.n_labels)


def weight_matrix(values: NDArray[np.float64], weighting: Weighting) -> NDArray[np.float64]:
    """Agreement weights of categories: 1 on the diagonal, less the further apart, 0 at the ends of the scale."""
    if weighting == "none" or len(values) < 2:
        return np.eye(len(values))
    places = np.arange(len(values), dtype=np.float64)
    distance = np.abs(places[:, None] - places) / (len(values) - 1)
    return 1 - (distance if weighting == "linear" else distance**2)


def _measure(
    ratings: Ratings,
    categories: Sequence[float] | None,
    compute: Callable[[Counts, NDArray[np.float64]], float],
) -> Agreement:
    ratings = np.asarray(ratings, dtype=np.float64)
    assert ratings.ndim == 2, f"ratings have shape {ratings.shape}; items by raters are expected"
    table, values = count_table(ratings, categories)
    per_item = table.sum(axis=1)
    n_items, n_labels = int((per_item >= 2).sum()), int(per_item[per_item >= 2].sum())
    if n_items == 0:
        why = "only one person judged" if ratings.shape[1] < 2 else "no item was judged by two people"
        return Agreement(None, reason=why)
    try:
        return Agreement(compute(table, values), n_items=n_items, n_labels=n_labels)
    except UndefinedError as error:
        return Agreement(None, n_items=n_items, n_labels=n_labels, reason=str(error))


def _observed(table: Counts, weights: NDArray[np.float64]) -> float:
    """Mean over items of the weighted share of agreeing pairs (Gwet 2014, equation 5.11)."""
    table = table[table.sum(axis=1) >= 2]
    n = table.sum(axis=1)
    agreeing = (table * (table @ weights - 1)).sum(axis=1)
    return float((agreeing / (n * (n - 1))).mean())


def _fleiss(table: Counts, values: NDArray[np.float64]) -> float:
    usable = table[table.sum(axis=1) >= 1]
    shares = (usable / usable.sum(axis=1, keepdims=True)).mean(axis=0)
    expected = float((shares**2).sum())
    if expected >= 1 - 1e-12:
        raise UndefinedError("only one category was used")
    return (_observed(table, np.eye(len(values))) - expected) / (1 - expected)


def _gwet(table: Counts, values: NDArray[np.float64], weighting: Weighting) -> float:
    if len(values) < 2:
        raise UndefinedError("only one category was used, and the scale was not given")
    weights = weight_matrix(values, weighting)
    usable = table[table.sum(axis=1) >= 1]
    shares = (usable / usable.sum(axis=1, keepdims=True)).mean(axis=0)
    q = len(values)
    expected = float(weights.sum() / (q * (q - 1)) * (shares * (1 - shares)).sum())
    return (_observed(table, weights) - expected) / (1 - expected)


def _alpha(table: Counts, values: NDArray[np.float64], level: Level) -> float:
    n = table.sum(axis=1)
    table, n = table[n >= 2], n[n >= 2]
    # coincidences of two different labels of an item: an item with n labels has n (n - 1) pairs, each with 1 / (n - 1)
    coincidences = (table / (n - 1)[:, None]).T @ table - np.diag((table / (n - 1)[:, None]).sum(axis=0))
    marginals = coincidences.sum(axis=1)
    distance = _distance(values, marginals, level)
    expected = (np.outer(marginals, marginals) - np.diag(marginals)) * distance
    if expected.sum() <= 0:
        raise UndefinedError("only one category was used")
    return float(1 - (marginals.sum() - 1) * (coincidences * distance).sum() / expected.sum())


def _distance(values: NDArray[np.float64], marginals: NDArray[np.float64], level: Level) -> NDArray[np.float64]:
    """Squared distance of two categories."""
    if level == "nominal":
        return 1 - np.eye(len(values))
    if level == "interval":
        return (values[:, None] - values) ** 2
    # ordinal: labels between the two categories, their own counted half
    middle = np.cumsum(marginals) - marginals / 2
    return (middle[:, None] - middle) ** 2
