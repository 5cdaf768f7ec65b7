"""Who is right when people disagree: Dawid and Skene's model, fitted by expectation maximization.

Each item has one true class, each person a confusion matrix. The E-step gives every item a distribution over classes
from the labels and the confusions; the M-step counts confusions from these distributions. The beginning is the share of
votes. A person who always errs the same way still informs; one who guesses is ignored; majority vote can do neither.

With few labels a person a raw confusion matrix is noise, so `prior` adds counts to it before normalizing, more on the
diagonal; with `prior=0` this is the published algorithm, step by step that of crowd-kit. Test questions clamp
their items.

Source: Dawid and Skene 1979.

Differs:
    From crowd-kit 1.4 in when it stops: its bound adds the prior of a class once a label, ours once an item.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_TINY = 1e-10


@dataclass(frozen=True, slots=True)
class Votes:
    """Labels as index arrays.

    Attributes:
        item: Index of the item of each label.
        worker: Index of the person.
        label: Index of the class.
        n_items: Items in all.
        n_workers: People in all.
        n_classes: Classes in all.
    """

    item: NDArray[np.int64]
    worker: NDArray[np.int64]
    label: NDArray[np.int64]
    n_items: int
    n_workers: int
    n_classes: int

    def __post_init__(self) -> None:
        assert len(self.item) == len(self.worker) == len(self.label), "one item, worker and class a label"
        for name, values, size in (
            ("item", self.item, self.n_items),
            ("worker", self.worker, self.n_workers),
            ("label", self.label, self.n_classes),
        ):
            assert not len(values) or (values.min() >= 0 and values.max() < size), f"{name} index beyond {size}"


@dataclass(frozen=True, slots=True)
class DawidSkene:
    """A fitted model.

    Attributes:
        probabilities: Items by classes.
        confusion: Workers by true class by label; rows sum to 1.
        priors: Share of each class.
        n_steps: EM steps done.
        bounds: Evidence lower bound a label after each step; it never falls when `prior` is 0.
    """

    probabilities: NDArray[np.float64]
    confusion: NDArray[np.float64]
    priors: NDArray[np.float64]
    n_steps: int
    bounds: tuple[float, ...]

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """Each worker's chance to be right, over the classes as they occur."""
        return np.einsum("wkk,k->w", self.confusion, self.priors)


def majority(votes: Votes) -> NDArray[np.float64]:
    """Share of votes: items by classes. An item without labels gets equal shares."""
    counts = np.zeros((votes.n_items, votes.n_classes))
    np.add.at(counts, (votes.item, votes.label), 1.0)
    total = counts.sum(axis=1, keepdims=True)
    return np.where(total > 0, counts / np.maximum(total, 1), 1 / votes.n_classes)


def fit(
    votes: Votes,
    *,
    known: Mapping[int, int] | None = None,
    prior: float = 1.0,
    max_steps: int = 100,
    tolerance: float = 1e-5,
) -> DawidSkene:
    """Fits the model.

    Args:
        votes: The labels.
        known: True class of items whose answer is known (test questions).
        prior: Counts added to every confusion matrix: `prior` to each cell and as much again to the diagonal.
        max_steps: Most EM steps.
        tolerance: Stop when the bound a label gains less.

    Returns:
        The model. Without labels every item keeps equal shares.
    """
    added = prior * (np.ones((votes.n_classes, votes.n_classes)) + np.eye(votes.n_classes))
    probabilities = _clamp(majority(votes), known)
    priors = probabilities.mean(axis=0) if votes.n_items else np.full(votes.n_classes, 1 / votes.n_classes)
    confusion = _count(votes, probabilities, added)
    bounds: list[float] = []
    while len(bounds) < max_steps and len(votes.item):
        log_confusion = np.log(np.maximum(confusion, _TINY))
        log_joint = np.tile(np.log(np.maximum(priors, _TINY)), (votes.n_items, 1))
        np.add.at(log_joint, votes.item, log_confusion[votes.worker, :, votes.label])
        log_joint -= log_joint.max(axis=1, keepdims=True)
        probabilities = np.exp(log_joint)
        probabilities = _clamp(probabilities / probabilities.sum(axis=1, keepdims=True), known)
        priors = probabilities.mean(axis=0)
        confusion = _count(votes, probabilities, added)
        bounds.append(_bound(votes, probabilities, priors, confusion))
        if len(bounds) > 1 and bounds[-1] - bounds[-2] < tolerance:
            break
    return DawidSkene(probabilities, confusion, priors, len(bounds), tuple(bounds))


def _clamp(probabilities: NDArray[np.float64], known: Mapping[int, int] | None) -> NDArray[np.float64]:
    for item, label in (known or {}).items():
        probabilities[item] = 0.0
        probabilities[item, label] = 1.0
    return probabilities


def _count(votes: Votes, probabilities: NDArray[np.float64], added: NDArray[np.float64]) -> NDArray[np.float64]:
    counts = np.zeros((votes.n_workers, votes.n_classes, votes.n_classes))
    for true in range(votes.n_classes):
        np.add.at(counts[:, true, :], (votes.worker, votes.label), probabilities[votes.item, true])
    counts = np.maximum(counts + added, _TINY)
    return counts / counts.sum(axis=2, keepdims=True)


def _bound(
    votes: Votes, probabilities: NDArray[np.float64], priors: NDArray[np.float64], confusion: NDArray[np.float64]
) -> float:
    seen = probabilities[votes.item]
    expected = (seen * np.log(np.maximum(confusion, _TINY))[votes.worker, :, votes.label]).sum()
    expected += (probabilities * np.log(np.maximum(priors, _TINY))).sum()
    entropy = -(probabilities * np.log(np.maximum(probabilities, _TINY))).sum()
    return float((expected + entropy) / len(votes.item))
