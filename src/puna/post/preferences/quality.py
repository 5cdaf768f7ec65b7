"""From raw labels to checked ones: who is trusted, how far people agree, what each item's label is worth.

Two passes. The first fits everybody and makes the cards; the second fits again without those whose labels are not used.
Every item then gets a verdict with its reason:

    accept    the answer is clear (or an adjudicator decided)
    soft      likely; kept with its probability and a smaller weight
    relabel   too few usable labels
    drop      flagged, or undecided although enough people looked

What is disputed goes to the adjudication queue, sorted by disagreement times uncertainty. Originals are never changed.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field

from puna.core.config import Config
from puna.core.errors import UsageError
from puna.post.preferences import agreement, bradley_terry, dawid_skene
from puna.post.preferences.agreement import Agreement
from puna.post.preferences.cards import Card, CardConfig, make_cards
from puna.post.preferences.dawid_skene import DawidSkene, Votes
from puna.post.preferences.records import Item, Label, Side

Decision = Literal["accept", "soft", "relabel", "drop"]


class QualityConfig(Config):
    """What is asked of annotators and of items."""

    annotators: CardConfig = CardConfig()
    """When an annotator's labels are not used."""
    min_labels: int = Field(default=2, ge=1)
    """Usable labels that an item needs."""
    enough_labels: int = Field(default=3, ge=1)
    """With this many usable labels an undecided item is dropped, not labelled again."""
    accept: float = Field(default=0.9, gt=0.5, le=1.0)
    """Probability from which a label is accepted."""
    soft: float = Field(default=0.65, gt=0.5, le=1.0)
    """Probability from which a label is kept as a soft one."""
    flags: int = Field(default=2, ge=1)
    """An item that this many people flagged is dropped."""
    adjudicator_accuracy: float = Field(default=0.98, gt=0.5, le=1.0)
    """Probability of an adjudicated label."""
    resamples: int = Field(default=500, ge=0)
    """Bootstrap samples of the agreement's intervals; 0 leaves them out."""
    seed: int = 0
    """Seed of the resampling."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of an item.

    Attributes:
        item: Its id.
        decision: `accept`, `soft`, `relabel` or `drop`.
        reason: Why.
        chosen: The better answer; None without a label.
        probability: That the chosen answer is the better one.
        strength: Llama 3's levels, 1 to 4: the median of those who preferred it.
        weight: How much a training row shall count, 0 to 1: certainty above chance.
        edit: A better version of the chosen answer, from the most trusted person who wrote one.
        adjudicated: Whether an adjudicator decided.
        priority: Place in the adjudication queue; 0 is not disputed.
        n_labels: Usable labels.
    """

    item: str
    decision: Decision
    reason: str
    chosen: Side | None
    probability: float
    strength: int | None
    weight: float
    edit: str | None
    adjudicated: bool
    priority: float
    n_labels: int


@dataclass(frozen=True, slots=True)
class Quality:
    """Everything that the checks found.

    Attributes:
        cards: One an annotator.
        verdicts: One an item that is no test question, in the order of the items.
        coefficients: Agreement coefficients by name, over all annotators.
        trusted: The same over those whose labels are used.
        models: Each model's noisy Bradley-Terry score.
        strengths: Share of each level, 1 to 4, among all preferences.
    """

    cards: tuple[Card, ...]
    verdicts: tuple[Verdict, ...]
    coefficients: Mapping[str, Agreement]
    trusted: Mapping[str, Agreement]
    models: Mapping[str, float]
    strengths: tuple[float, ...]

    @property
    def excluded(self) -> tuple[str, ...]:
        """Whose labels are not used."""
        return tuple(card.name for card in self.cards if card.status == "exclude")

    @property
    def queue(self) -> dict[str, float]:
        """Disputed items by id, the most urgent first."""
        disputed = [v for v in self.verdicts if v.priority > 0]
        return {v.item: v.priority for v in sorted(disputed, key=lambda v: (-v.priority, v.item))}

    def counts(self) -> dict[str, int]:
        """Items by decision."""
        found: dict[str, int] = {"accept": 0, "soft": 0, "relabel": 0, "drop": 0}
        for verdict in self.verdicts:
            found[verdict.decision] += 1
        return found

    def as_json(self) -> dict[str, Any]:
        """The findings as JSON values, without the items."""
        return {
            "items": self.counts(),
            "adjudicated": sum(v.adjudicated for v in self.verdicts),
            "queue": len(self.queue),
            "excluded": list(self.excluded),
            "agreement": {k: v.as_json() for k, v in self.coefficients.items()},
            "agreement_trusted": {k: v.as_json() for k, v in self.trusted.items()},
            "models": dict(self.models),
            "strengths": list(self.strengths),
            "annotators": [card.as_json() for card in self.cards],
        }


def check(items: Sequence[Item], labels: Sequence[Label], config: QualityConfig | None = None) -> Quality:
    """Checks the labels of a round.

    Args:
        items: All items, test questions among them.
        labels: All labels that count, in the order of time.
        config: Thresholds.

    Raises:
        UsageError: A label names an item that is not there, or there are no preferences.
    """
    config = config or QualityConfig()
    by_id = {item.id: item for item in items}
    lost = sorted({label.item for label in labels} - by_id.keys())
    if lost:
        raise UsageError(f"{len(lost)} labelled items are not among the items, the first is {lost[0]!r}")
    usable = first_preferences(labels)
    if not usable:
        raise UsageError("there are no preferences to check; skips and flags alone say nothing")
    places = {item.id: n for n, item in enumerate(items)}
    known = {places[item.id]: 0 if item.gold == "a" else 1 for item in items if item.gold}
    everyone = fit_labels(usable, places, known)
    workers = worker_places(usable)
    cards = make_cards(by_id, labels, everyone, workers, config.annotators)
    bad = {card.name for card in cards if card.status == "exclude"}
    trusted = [label for label in usable if label.annotator not in bad]
    model = fit_labels(trusted, places, known) if bad else everyone
    skill = dict(zip(worker_places(trusted), model.accuracy.tolist(), strict=True))
    said = _by_item(labels)
    verdicts = [
        _verdict(item, said[item.id], float(model.probabilities[places[item.id], 0]), bad, skill, config)
        for item in items
        if item.gold is None
    ]
    levels = np.bincount([abs(label.value or 1) for label in usable], minlength=5)[1:]
    return Quality(
        cards=tuple(cards),
        verdicts=tuple(verdicts),
        coefficients=coefficients(usable, places, config),
        trusted=coefficients(trusted, places, config),
        models=rank_models(by_id, trusted),
        strengths=tuple((levels / max(levels.sum(), 1)).tolist()),
    )


def first_preferences(labels: Sequence[Label]) -> list[Label]:
    """The labels that statistics rest on: preferences of annotators, each item once a person."""
    return [x for x in labels if x.action == "prefer" and x.occasion == 0 and x.role == "annotator"]


def worker_places(labels: Sequence[Label]) -> dict[str, int]:
    """Index of each person, by name."""
    return {name: n for n, name in enumerate(sorted({label.annotator for label in labels}))}


def fit_labels(labels: Sequence[Label], places: Mapping[str, int], known: Mapping[int, int]) -> DawidSkene:
    """Dawid-Skene over preferences: class 0 says that a is better."""
    workers = worker_places(labels)
    votes = Votes(
        np.array([places[label.item] for label in labels], dtype=np.int64),
        np.array([workers[label.annotator] for label in labels], dtype=np.int64),
        np.array([0 if label.winner == "a" else 1 for label in labels], dtype=np.int64),
        len(places),
        len(workers),
        2,
    )
    return dawid_skene.fit(votes, known=known)


def coefficients(labels: Sequence[Label], places: Mapping[str, int], config: QualityConfig) -> dict[str, Agreement]:
    """Agreement on the better answer, and on how much better it is."""
    workers = worker_places(labels)
    signed = np.full((len(places), max(len(workers), 1)), np.nan)
    for label in labels:
        signed[places[label.item], workers[label.annotator]] = label.value or 0
    signed = signed[~np.isnan(signed).all(axis=1)]
    if not len(signed):
        signed = np.full((1, 1), np.nan)
    sides, scale = (-1.0, 1.0), (-4.0, -3.0, -2.0, -1.0, 1.0, 2.0, 3.0, 4.0)
    measures = {
        "raw agreement": (np.sign(signed), agreement.raw_agreement),
        "Krippendorff alpha, side": (np.sign(signed), agreement.krippendorff_alpha),
        "Krippendorff alpha, strength": (signed, lambda r: agreement.krippendorff_alpha(r, level="ordinal")),
        "Fleiss kappa": (np.sign(signed), lambda r: agreement.fleiss_kappa(r, categories=sides)),
        "Gwet AC1": (np.sign(signed), lambda r: agreement.gwet_ac(r, categories=sides)),
        "Gwet AC2, strength": (signed, lambda r: agreement.gwet_ac(r, categories=scale, weighting="quadratic")),
    }
    return {
        name: agreement.with_interval(measure, ratings, resamples=config.resamples, seed=config.seed)
        if config.resamples
        else measure(ratings)
        for name, (ratings, measure) in measures.items()
    }


def rank_models(items: Mapping[str, Item], labels: Sequence[Label]) -> dict[str, float]:
    """Noisy Bradley-Terry scores of the models that wrote the answers, the best first."""
    named = [x for x in labels if items[x.item].model_a != items[x.item].model_b and items[x.item].gold is None]
    models = sorted({m for x in named for m in (items[x.item].model_a, items[x.item].model_b)})
    if len(models) < 2:
        return {}
    workers = worker_places(named)

    def player(label: Label, side: Side) -> int:
        item = items[label.item]
        return models.index(item.model_a if side == "a" else item.model_b)

    found = bradley_terry.fit(
        bradley_terry.Comparisons(
            np.array([player(x, x.left) for x in named]),
            np.array([player(x, "b" if x.left == "a" else "a") for x in named]),
            np.array([x.winner == x.left for x in named]),
            np.array([workers[x.annotator] for x in named]),
            len(models),
            len(workers),
        )
    )
    return dict(sorted(zip(models, found.scores.tolist(), strict=True), key=lambda pair: -pair[1]))


def _by_item(labels: Sequence[Label]) -> dict[str, list[Label]]:
    found: dict[str, list[Label]] = defaultdict(list)
    for label in labels:
        if label.occasion == 0:
            found[label.item].append(label)
    return found


def _verdict(
    item: Item, said: Sequence[Label], p_a: float, bad: set[str], skill: Mapping[str, float], config: QualityConfig
) -> Verdict:
    good = [x for x in said if x.role == "annotator" and x.annotator not in bad]
    votes = [x for x in good if x.action == "prefer"]
    final = [x for x in said if x.role == "adjudicator" and x.action == "prefer"]
    if final:
        p_a = config.adjudicator_accuracy if final[-1].winner == "a" else 1 - config.adjudicator_accuracy
    chosen: Side | None = None if not (votes or final) else "a" if p_a >= 0.5 else "b"
    sure = max(p_a, 1 - p_a)
    backing = [x for x in (final or votes) if x.winner == chosen]
    levels = sorted(abs(x.value or 0) for x in backing)
    edits = sorted(
        (x for x in [*votes, *final] if x.edit and x.winner == chosen),
        key=lambda x: (x.role == "adjudicator", skill.get(x.annotator, 0.0)),
    )
    share = sum(x.winner == "a" for x in votes) / len(votes) if votes else 0.5
    disagreement = 1 - abs(2 * share - 1)
    uncertainty = item.uncertainty if item.uncertainty is not None else _entropy(p_a)
    decision, reason = _decide(said, votes, bool(final), sure, bad, config)
    return Verdict(
        item=item.id,
        decision=decision,
        reason=reason,
        chosen=chosen,
        probability=sure if chosen else 0.5,
        strength=levels[len(levels) // 2] if levels else None,
        weight=round(2 * sure - 1, 6) if chosen else 0.0,
        edit=edits[-1].edit if edits else None,
        adjudicated=bool(final),
        priority=0.0 if final else disagreement * uncertainty,
        n_labels=len(votes),
    )


def _decide(
    said: Sequence[Label], votes: Sequence[Label], final: bool, sure: float, bad: set[str], config: QualityConfig
) -> tuple[Decision, str]:
    if any(x.role == "adjudicator" and x.action == "flag" for x in said):
        return "drop", "flagged by an adjudicator"
    if final:
        return "accept", "adjudicated"
    flags = sum(x.action == "flag" for x in said if x.annotator not in bad)
    if flags >= config.flags:
        return "drop", f"flagged by {flags}"
    if len(votes) < config.min_labels:
        return "relabel", f"{len(votes)} usable labels of {config.min_labels}"
    if sure >= config.accept:
        return "accept", f"sure at {sure:.0%}"
    if sure >= config.soft:
        return "soft", f"likely at {sure:.0%}"
    if len(votes) < config.enough_labels:
        return "relabel", f"undecided at {sure:.0%} with {len(votes)} labels"
    return "drop", f"undecided at {sure:.0%} with {len(votes)} labels"


def _entropy(p: float) -> float:
    """Binary entropy in bits, 0 to 1."""
    if p <= 0 or p >= 1:
        return 0.0
    return -p * math.log2(p) - (1 - p) * math.log2(1 - p)


def verdict_row(verdict: Verdict, labels: Sequence[Label]) -> dict[str, Any]:
    """A verdict as a JSON row, with the original labels of its item beside it."""
    return asdict(verdict) | {"labels": [label.as_row() for label in labels if label.item == verdict.item]}
