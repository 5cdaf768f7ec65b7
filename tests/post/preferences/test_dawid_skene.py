"""Dawid-Skene: equal to crowd-kit and the naive twin, better than majority where people differ, and safe at its edges."""

import itertools

import numpy as np
import pytest

from puna.post.preferences.dawid_skene import Votes, fit, majority
from tests.reference import dawid_skene_naive as naive


def crowd(seed, *, items=120, accuracies=(0.9, 0.8, 0.7, 0.55, 0.3), classes=2, share=0.8):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, items)
    rows = []
    for worker, accuracy in enumerate(accuracies):
        for item in range(items):
            if rng.random() < share:
                wrong = (truth[item] + rng.integers(1, classes)) % classes
                rows.append((item, worker, truth[item] if rng.random() < accuracy else wrong))
    item, worker, label = np.array(rows).T
    return Votes(item, worker, label, items, len(accuracies), classes), truth


@pytest.mark.filterwarnings("ignore:The .* keyword")  # crowd-kit on a newer pandas
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_probabilities_and_confusions_equal_crowd_kits(seed, classes):
    """After equal numbers of steps: crowd-kit's bound adds the prior once a label, not once an item, so it stops elsewhere."""
    aggregation = pytest.importorskip("crowdkit.aggregation")
    pandas = pytest.importorskip("pandas")
    votes, _ = crowd(seed, classes=classes)
    data = pandas.DataFrame({"task": votes.item, "worker": votes.worker, "label": votes.label})
    theirs = aggregation.DawidSkene(n_iter=30, tol=-1.0).fit(data)
    ours = fit(votes, prior=0.0, max_steps=30, tolerance=-1.0)
    table = theirs.probas_.sort_index()[sorted(theirs.probas_.columns)].to_numpy()
    seen = np.unique(votes.item)
    assert np.abs(ours.probabilities[seen] - table).max() < 1e-8  # crowd-kit clips probabilities at 1e-10 in place
    for (worker, label), row in theirs.errors_.iterrows():
        for true, value in row.items():
            assert ours.confusion[worker, true, label] == pytest.approx(value, abs=1e-8)


def test_it_equals_the_naive_twin():
    votes, _ = crowd(5, items=25, classes=3)
    triples = list(zip(votes.item.tolist(), votes.worker.tolist(), votes.label.tolist(), strict=True))
    items = sorted({i for i, _, _ in triples})
    theirs = naive.fit(triples, items, range(5), range(3), steps=6)
    dense = Votes(np.array([items.index(i) for i in votes.item]), votes.worker, votes.label, len(items), 5, 3)
    ours = fit(dense, prior=0.0, max_steps=6, tolerance=-1.0).probabilities
    table = np.array([[theirs[i][k] for k in range(3)] for i in items])
    assert np.abs(ours - table).max() < 1e-8  # crowd-kit clips probabilities at 1e-10 in place


def test_the_bound_never_falls():
    votes, _ = crowd(3)
    bounds = fit(votes, prior=0.0, tolerance=-1.0, max_steps=40).bounds
    assert all(later >= earlier - 1e-12 for earlier, later in itertools.pairwise(bounds))


def test_it_beats_majority_where_skills_differ():
    ours, theirs = [], []
    for seed in range(10):
        votes, truth = crowd(seed, items=300, accuracies=(0.95, 0.9, 0.55, 0.5, 0.5))
        ours.append((fit(votes).probabilities.argmax(axis=1) == truth).mean())
        theirs.append((majority(votes).argmax(axis=1) == truth).mean())
    assert np.mean(ours) > np.mean(theirs) + 0.05


def test_it_recovers_confusions():
    votes, _ = crowd(0, items=4000)
    assert fit(votes).accuracy == pytest.approx([0.9, 0.8, 0.7, 0.55, 0.3], abs=0.04)


def test_known_items_are_clamped_and_turn_a_mirrored_crowd_round():
    votes, truth = crowd(0, items=200, accuracies=(0.2, 0.2, 0.2), share=1.0)
    known = {i: int(truth[i]) for i in range(40)}
    found = fit(votes, known=known)
    assert (found.probabilities.argmax(axis=1)[:40] == truth[:40]).all()
    assert (found.probabilities.argmax(axis=1) == truth).mean() > 0.85


def test_edges():
    none = Votes(*[np.array([], dtype=np.int64)] * 3, 3, 2, 2)
    assert fit(none).probabilities == pytest.approx(np.full((3, 2), 0.5))
    one = Votes(np.array([0]), np.array([0]), np.array([1]), 2, 1, 2)
    found = fit(one)
    assert np.isfinite(found.probabilities).all()
    assert found.probabilities[0].argmax() == 1
    with pytest.raises(AssertionError, match="label index"):
        Votes(np.array([0]), np.array([0]), np.array([2]), 1, 1, 2)
