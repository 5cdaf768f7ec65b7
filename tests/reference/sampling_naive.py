"""Sampling as a definition: plain Python over one row, in float64, nothing clever."""

import math


def distribution(logits, *, temperature, top_k, top_p):
    """Probabilities `{token: p}` that a token is drawn from, likeliest first."""
    if temperature == 0:
        return {max(range(len(logits)), key=lambda t: logits[t]): 1.0}
    order = sorted(range(len(logits)), key=lambda t: -logits[t])  # stable: ties by id
    if top_k:
        order = order[:top_k]
    largest = max(logits)
    weights = {t: math.exp((logits[t] - largest) / temperature) for t in order}
    total = sum(weights.values())
    kept, mass = {}, 0.0
    for token in order:
        if kept and mass >= top_p * total:
            break
        kept[token] = weights[token]
        mass += weights[token]
    return {t: w / mass for t, w in kept.items()}


def draw(logits, number, *, temperature, top_k, top_p):
    """Invert the cumulative distribution, in likelihood order when it was cut and in id order when it was not."""
    found = distribution(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    order = list(found) if top_k or top_p < 1 else sorted(found)
    sum_so_far = 0.0
    for token in order:
        sum_so_far += found[token]
        if sum_so_far > number:
            return token
    return order[-1]


def log_softmax(logits):
    """Natural log-probabilities."""
    largest = max(logits)
    norm = largest + math.log(sum(math.exp(x - largest) for x in logits))
    return [x - norm for x in logits]
