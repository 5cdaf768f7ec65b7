"""Quality checks of preferences: are bad annotators found, and what does Dawid-Skene give over a majority vote?

    python benchmarks/preferences.py --quick --json

Crowds are simulated: six careful people and four bad ones (a clicker, one who takes the left, one who takes the longer,
a guesser) judge items whose true difference is known. Precision and recall are those of the people whose labels are not
used. Values and speed of Dawid-Skene are compared with crowd-kit's on the same labels, in turns in one process.
"""

import argparse
import json
import random
import time
import warnings
from statistics import mean, median

import numpy as np

from puna.core.dialog import Dialog
from puna.post.preferences import dawid_skene
from puna.post.preferences.quality import QualityConfig, check, first_preferences
from puna.post.preferences.records import Item, Label
from puna.post.preferences.simulate import MIXED_CROWD, answer, true_sides
from puna.post.preferences.task import Task
from puna.stages.annotate_qa import against_truth


def crowd(seed: int, n: int, *, gold: int = 24, overlap: int = 5) -> tuple[list[Item], list[Label], dict[str, float]]:
    """Items, labels and true differences; people are drawn for each item, sides alternate."""
    rng = random.Random(seed)
    people = {p.name: (p, random.Random(f"{seed}/{p.name}")) for p in MIXED_CROWD}
    items, labels, truth = [], [], {}
    for number in range(n + gold):
        texts = [" ".join(["word"] * rng.choice((6, 12, 24))) + f" {side}{number}" for side in "ab"]
        difference = rng.choice((-1, 1)) * (3.0 if number >= n else rng.uniform(0.4, 2.5))
        side = "a" if difference > 0 else "b"
        prompt = Dialog.of(("user", f"Question {number}?"))
        item = Item(f"i{number}", prompt, *texts, gold=side if number >= n else None)
        items.append(item)
        truth[item.id] = difference
        for k, name in enumerate(rng.sample(sorted(people), overlap)):
            person, chance = people[name]
            left = "a" if (number + k) % 2 else "b"
            task = Task(number, 0, item, left, 0)
            said = answer(task, difference, person, rng=chance, progress=number / n)
            labels.append(Label(item.id, name, value=said.value, left=left, seconds=said.seconds))
    return items, labels, truth


def votes_of(items: list[Item], labels: list[Label]) -> dawid_skene.Votes:
    """The labels as index arrays."""
    places = {item.id: n for n, item in enumerate(items)}
    workers = {name: n for n, name in enumerate(sorted({x.annotator for x in labels}))}
    columns = [[places[x.item] for x in labels], [workers[x.annotator] for x in labels]]
    columns.append([0 if x.winner == "a" else 1 for x in labels])
    return dawid_skene.Votes(*map(np.array, columns), len(places), len(workers), 2)


def accuracy(probabilities: np.ndarray, items: list[Item], truth: dict[str, float]) -> float:
    """Share of items with the right side."""
    sides = true_sides(items, truth)
    return mean(("a" if p[0] >= 0.5 else "b") == sides[i.id] for p, i in zip(probabilities, items, strict=True))


def against_crowd_kit(votes: dawid_skene.Votes, turns: int) -> dict[str, float] | None:
    """Largest difference of a probability, and their time over ours; None without crowd-kit."""
    try:
        import pandas
        from crowdkit.aggregation import DawidSkene
    except ImportError:
        print("crowd-kit is not installed: left out (pip install crowd-kit)")
        return None
    warnings.simplefilter("ignore")
    frame = pandas.DataFrame({"task": votes.item, "worker": votes.worker, "label": votes.label})
    ours, theirs = [], []
    for _ in range(turns):
        start = time.perf_counter()
        mine = dawid_skene.fit(votes, prior=0.0, max_steps=30, tolerance=-1.0)
        ours.append(time.perf_counter() - start)
        start = time.perf_counter()
        other = DawidSkene(n_iter=30, tol=-1.0).fit(frame)
        theirs.append(time.perf_counter() - start)
    table = other.probas_.sort_index()[[0, 1]].to_numpy()
    return {
        "largest_difference": float(np.abs(mine.probabilities - table).max()),
        "speed_ratio": median(theirs) / median(ours),
    }


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under 50 s")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    arguments = parser.parse_args()
    seeds, n = (5, 240) if arguments.quick else (20, 400)
    found = []
    for seed in range(seeds):
        items, labels, truth = crowd(seed, n)
        checks = check(items, labels, QualityConfig(resamples=0))
        votes = votes_of(items, first_preferences(labels))
        row = against_truth(checks, items, labels, truth)
        row["dawid_skene_over_majority"] = (row["dawid_skene_over_majority"] or {}).get("difference")
        row["plain_majority"] = accuracy(dawid_skene.majority(votes), items, truth)
        row["plain_dawid_skene"] = accuracy(dawid_skene.fit(votes).probabilities, items, truth)
        found.append(row)
        shown = " ".join(f"{key} {value:.3f}" for key, value in row.items() if value is not None)
        print(f"crowd {seed}: {shown}")
    result = {key: mean(row[key] or 0.0 for row in found) for key in found[0]}
    items, labels, _ = crowd(99, 2000 if arguments.quick else 10_000)
    peer = against_crowd_kit(votes_of(items, labels), 3 if arguments.quick else 7)
    if peer:
        result |= {f"crowd_kit_{key}": value for key, value in peer.items()}
        print(
            f"crowd-kit: largest difference {peer['largest_difference']:.1e}, ours {peer['speed_ratio']:.1f}x as fast"
        )
    print("mean: " + " ".join(f"{key} {value:.3g}" for key, value in result.items()))
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
