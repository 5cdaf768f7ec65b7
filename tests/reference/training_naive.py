"""Naive twins of the training room: one number at a time, in Python floats."""

import math


def adamw(values, gradients, *, lr, betas, eps, weight_decay):
    """AdamW over a list of numbers through a list of gradient lists (1711.05101, algorithm 2); returns the values."""
    values = list(values)
    first, second = [0.0] * len(values), [0.0] * len(values)
    for t, step_gradients in enumerate(gradients, start=1):
        for i, g in enumerate(step_gradients):
            first[i] = betas[0] * first[i] + (1 - betas[0]) * g
            second[i] = betas[1] * second[i] + (1 - betas[1]) * g * g
            m_hat = first[i] / (1 - betas[0] ** t)
            v_hat = second[i] / (1 - betas[1] ** t)
            values[i] -= lr * weight_decay * values[i]
            values[i] -= lr * m_hat / (math.sqrt(v_hat) + eps)
    return values


def clipped_mean(gradient_sums, count, limit):
    """Gradients of the mean, and no longer than the limit; returns them with the norm before."""
    means = [g / count for g in gradient_sums]
    norm = math.sqrt(sum(g * g for g in means))
    factor = min(1.0, limit / norm) if limit and norm else 1.0
    return [g * factor for g in means], norm


def cross_entropy_sum(logits, targets, ignore=-100):
    """Sum of -log softmax at the targets, over rows of numbers."""
    total, count = 0.0, 0
    for row, target in zip(logits, targets, strict=True):
        if target == ignore:
            continue
        top = max(row)
        total += math.log(sum(math.exp(x - top) for x in row)) + top - row[target]
        count += 1
    return total, count


def rate_factors(steps, *, kind, warmup, final, decay_steps=0, decay="sqrt"):
    """The whole schedule as a list, by its three phases."""
    factors = [(t + 1) / warmup for t in range(warmup)]
    rest = steps - warmup
    if kind == "constant":
        return factors + [1.0] * rest
    if kind == "cosine":
        return factors + [final + (1 - final) * 0.5 * (1 + math.cos(math.pi * i / rest)) for i in range(rest)]
    stable = rest - decay_steps
    shape = {"sqrt": lambda p: 1 - p**0.5, "linear": lambda p: 1 - p}[decay]
    return factors + [1.0] * stable + [final + (1 - final) * shape(i / decay_steps) for i in range(decay_steps)]
