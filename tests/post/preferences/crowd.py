"""Items with a known difference, and crowds with known faults."""

import random

from puna.core.dialog import Dialog
from puna.post.preferences.collection import Collection
from puna.post.preferences.records import Item
from puna.post.preferences.settings import CollectionSettings
from puna.post.preferences.simulate import MIXED_CROWD, PersonConfig, run, true_sides

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu"]


def make_items(n, *, seed=0, gold=0, round=1):
    """Items and their true differences; answers differ in length at random, and length says nothing."""
    rng = random.Random(f"items/{seed}")
    items, truth = [], {}
    for number in range(n + gold):
        texts = [" ".join(rng.choices(WORDS, k=rng.choice((6, 12, 24)))) + f" {side}" for side in "ab"]
        difference = rng.choice((-1, 1)) * rng.uniform(0.4, 2.5)
        is_gold = number >= n
        item = Item(
            f"r{round}-{number}", Dialog.of(("user", f"Question {number} of {seed}?")), *texts,
            model_a=rng.choice(("small", "large")), model_b="other", round=round,
            gold=("a" if difference > 0 else "b") if is_gold else None,
        )  # fmt: skip
        items.append(item)
        truth[item.id] = 3.0 * (1 if difference > 0 else -1) if is_gold else difference
    return items, truth


def labelled(path, n=240, *, seed=0, gold=24, people=MIXED_CROWD, overlap=5, **settings):
    """A collection in which the people have done all there was."""
    items, truth = make_items(n, seed=seed, gold=gold)
    chosen = CollectionSettings(**{"overlap": overlap, "gate_accuracy": 0.0, "seed": seed} | settings)
    collection = Collection.create(path, items, settings=chosen)
    run(collection, people, truth, seed=seed)
    return collection, items, truth


__all__ = ["MIXED_CROWD", "PersonConfig", "labelled", "make_items", "true_sides"]
