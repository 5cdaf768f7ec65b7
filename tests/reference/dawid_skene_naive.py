"""Dawid and Skene's EM as their paper tells it, with dictionaries and plain products."""

from collections import defaultdict


def fit(votes, items, workers, classes, steps):
    """`votes` are (item, worker, label). Returns class probabilities of each item after `steps` EM steps."""
    given = defaultdict(list)
    for item, worker, label in votes:
        given[item].append((worker, label))
    t = {i: {k: sum(label == k for _, label in given[i]) / len(given[i]) for k in classes} for i in items}
    for _ in range(steps):
        priors = {k: sum(t[i][k] for i in items) / len(items) for k in classes}
        errors = {}
        for w in workers:
            for true in classes:
                counts = {k: sum(t[i][true] for i, u, label in votes if u == w and label == k) for k in classes}
                counts = {k: max(c, 1e-10) for k, c in counts.items()}
                total = sum(counts.values())
                errors[w, true] = {k: c / total for k, c in counts.items()}
        for i in items:
            joint = {}
            for k in classes:
                joint[k] = max(priors[k], 1e-10)
                for worker, label in given[i]:
                    joint[k] *= max(errors[worker, k][label], 1e-10)
            total = sum(joint.values())
            t[i] = {k: joint[k] / total for k in classes}
    return t
