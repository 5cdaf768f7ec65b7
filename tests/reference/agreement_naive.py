"""Agreement coefficients by their definitions: loops over pairs of labels, nothing clever."""

import math
from itertools import combinations, permutations


def labels_of(row):
    return [value for value in row if not math.isnan(value)]


def pairs_within(rows):
    """Ordered pairs of labels of the same item, each with weight 1 / (n - 1)."""
    for row in rows:
        found = labels_of(row)
        if len(found) >= 2:
            for i, j in permutations(range(len(found)), 2):
                yield found[i], found[j], 1 / (len(found) - 1)


def distance(a, b, level, values):
    if level == "nominal":
        return float(a != b)
    if level == "interval":
        return (a - b) ** 2
    low, high = min(a, b), max(a, b)
    between = sum(1.0 for v in values if low < v < high)
    ends = (sum(1.0 for v in values if v == low) + sum(1.0 for v in values if v == high)) / 2
    return 0.0 if a == b else (between + ends) ** 2


def krippendorff_alpha(rows, level):
    values = [v for row in rows if len(labels_of(row)) >= 2 for v in labels_of(row)]
    n = len(values)
    observed = sum(weight * distance(a, b, level, values) for a, b, weight in pairs_within(rows)) / n
    expected = sum(distance(a, b, level, values) for a, b in permutations(values, 2)) / (n * (n - 1))
    return 1 - observed / expected


def item_agreement(row, weight):
    found = labels_of(row)
    pairs = list(combinations(found, 2))
    return sum(weight(a, b) for a, b in pairs) / len(pairs)


def category_shares(rows, categories):
    used = [labels_of(row) for row in rows if labels_of(row)]
    return [sum(row.count(c) / len(row) for row in used) / len(used) for c in categories]


def fleiss_kappa(rows, categories):
    usable = [row for row in rows if len(labels_of(row)) >= 2]
    observed = sum(item_agreement(row, lambda a, b: float(a == b)) for row in usable) / len(usable)
    expected = sum(p * p for p in category_shares(rows, categories))
    return (observed - expected) / (1 - expected)


def gwet_ac(rows, categories, weighting):
    q = len(categories)

    def weight(a, b):
        if weighting == "none":
            return float(a == b)
        apart = abs(categories.index(a) - categories.index(b)) / (q - 1)
        return 1 - apart if weighting == "linear" else 1 - apart**2

    usable = [row for row in rows if len(labels_of(row)) >= 2]
    observed = sum(item_agreement(row, weight) for row in usable) / len(usable)
    total = sum(weight(a, b) for a in categories for b in categories)
    expected = total / (q * (q - 1)) * sum(p * (1 - p) for p in category_shares(rows, categories))
    return (observed - expected) / (1 - expected)
