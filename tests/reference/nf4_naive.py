"""NF4 one number at a time, from the formulas of 2305.14314 and 2110.02861."""

import math
from statistics import NormalDist


def nf4_values():
    """The sixteen values, from quantiles of the normal distribution (appendix E: offset 0.9677083)."""
    quantile, offset = NormalDist().inv_cdf, 0.9677083

    def grid(n):
        return [offset + (0.5 - offset) * i / n for i in range(n)]

    values = [quantile(p) for p in grid(8)] + [0.0] + [-quantile(p) for p in grid(7)]
    largest = max(abs(v) for v in values)
    return sorted(v / largest for v in values)


def dynamic_values():
    """The signed eight-bit float: a sign, zeros that say the power of ten, a one, and a linear fraction."""
    values = [0.0, 1.0]
    for exponent in range(7):
        n = 2**exponent
        for i in range(n):
            low, high = 0.1 + 0.9 * i / n, 0.1 + 0.9 * (i + 1) / n
            values += [sign * 10.0 ** (exponent - 6) * (low + high) / 2 for sign in (1, -1)]
    return sorted(values)


def nearest(values, x):
    return min(range(len(values)), key=lambda i: abs(values[i] - x))


def round_trip(weights, *, double):
    """A flat list of weights through packing and unpacking."""
    table, scales, codes = nf4_values(), [], []
    for start in range(0, len(weights), 64):
        block = weights[start : start + 64]
        scale = max(abs(w) for w in block)
        scales.append(scale)
        codes.append([nearest(table, w / scale if scale else 0.0) for w in block])
    if double:
        mean, own = math.fsum(scales) / len(scales), dynamic_values()
        kept = []
        for start in range(0, len(scales), 256):
            block = [s - mean for s in scales[start : start + 256]]
            step = max(abs(s) for s in block)
            kept += [own[nearest(own, s / step if step else 0.0)] * step + mean for s in block]
        scales = kept
    return [table[code] * scale for block, scale in zip(codes, scales, strict=True) for code in block]
