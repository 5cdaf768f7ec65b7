"""A card for every annotator: how often right, which side, how long, how steady; and whether to use the labels.

"Right" is measured twice. On test questions against what is known; elsewhere against the others, who are asked through
the fitted Dawid-Skene model with this person's own label taken out, and only where they are nearly sure. A reason to
exclude must hold with its 95 % interval, so that nobody is dropped for a handful of hard items.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Literal

import numpy as np
from pydantic import Field

from puna.core.config import Config
from puna.evaluate.statistics import Estimate, wilson
from puna.post.preferences.dawid_skene import DawidSkene
from puna.post.preferences.records import Item, Label

Status = Literal["ok", "watch", "exclude"]


class CardConfig(Config):
    """When an annotator's labels are not used."""

    min_accuracy: float = Field(default=0.7, ge=0.0, le=1.0)
    """Excluded when the upper end of the interval of the share of right answers is below this."""
    sure: float = Field(default=0.85, ge=0.5, le=1.0)
    """An item counts for accuracy when the others are this sure without the person."""
    max_side: float = Field(default=0.65, ge=0.5, le=1.0)
    """Excluded when the share of one side is above this with its whole interval."""
    max_length_excess: float = Field(default=0.2, ge=0.0, le=1.0)
    """Excluded when the longer answer is chosen this much more often than the others find it better, beyond chance."""
    fast_share: float = Field(default=0.5, ge=0.0, le=1.0)
    """Excluded when more than this share of labels came faster than the texts can be read."""
    words_per_second: float = Field(default=12.0, gt=0)
    """Faster than this is not reading; fast readers manage 5 to 8."""
    min_seconds: float = Field(default=1.0, ge=0)
    """No label takes less."""
    min_labels: int = Field(default=8, ge=1)
    """With fewer labels nobody is excluded, only watched."""


@dataclass(frozen=True, slots=True)
class Card:
    """What is known about one annotator.

    Attributes:
        name: Who.
        status: `ok`, `watch`, or `exclude`.
        reasons: Why not `ok`.
        n_labels: Preferences given, without repeats.
        n_skipped: Items skipped.
        n_flagged: Items flagged.
        gold: Share of right test questions.
        agreement: Share of sure items on which the person sides with the others.
        accuracy: Accuracy that the Dawid-Skene model fits.
        confusion: Fitted chances, true class (a, b) by label (a, b).
        left: Share of choices of the left answer.
        longer_excess: Share of choices of the longer answer, less what the others give it.
        seconds: Median seconds a label.
        too_fast: Share of labels that came faster than the texts can be read.
        repeats: Share of repeated items judged the same way.
        first_half: Agreement in the first half of the labels.
        second_half: Agreement in the second half.
    """

    name: str
    status: Status
    reasons: tuple[str, ...]
    n_labels: int
    n_skipped: int
    n_flagged: int
    gold: Estimate | None
    agreement: Estimate | None
    accuracy: float
    confusion: tuple[tuple[float, ...], ...]
    left: Estimate | None
    longer_excess: float | None
    seconds: float | None
    too_fast: float | None
    repeats: Estimate | None
    first_half: Estimate | None
    second_half: Estimate | None

    def as_json(self) -> dict[str, Any]:
        """The card as JSON values."""
        return asdict(self)


def make_cards(
    items: Mapping[str, Item],
    labels: Sequence[Label],
    model: DawidSkene,
    places: Mapping[str, int],
    workers: Mapping[str, int],
    config: CardConfig,
) -> list[Card]:
    """Makes the card of every annotator.

    Args:
        items: Items by id.
        labels: All labels in the order of time.
        model: Fitted on the labels, classes 0 (a better) and 1 (b better).
        places: Index of each item in the model.
        workers: Index of each person in the model.
        config: Thresholds.
    """
    names = sorted({label.annotator for label in labels if label.role == "annotator"})
    return [_card(name, items, labels, model, places, workers.get(name), config) for name in names]


def _card(
    name: str,
    items: Mapping[str, Item],
    labels: Sequence[Label],
    model: DawidSkene,
    places: Mapping[str, int],
    worker: int | None,
    config: CardConfig,
) -> Card:
    own = [label for label in labels if label.annotator == name]
    first = [label for label in own if label.action == "prefer" and label.occasion == 0]
    gold = [items[label.item].gold == label.winner for label in first if items[label.item].gold]
    others = [_without_own(label, items, model, places, worker) for label in first]
    sure = [
        (p >= 0.5) == (label.winner == "a")
        for label, p in zip(first, others, strict=True)
        if max(p, 1 - p) >= config.sure and items[label.item].gold is None
    ]
    half = len(sure) // 2
    excess, excess_z = _length_excess(first, others, items)
    timed = [label for label in first if label.seconds is not None]
    fast = [(label.seconds or 0.0) < _least_seconds(items[label.item], config) for label in timed]
    card = Card(
        name=name,
        status="ok",
        reasons=(),
        n_labels=len(first),
        n_skipped=sum(label.action == "skip" for label in own),
        n_flagged=sum(label.action == "flag" for label in own),
        gold=_share(gold),
        agreement=_share(sure),
        accuracy=float(model.accuracy[worker]) if worker is not None else math.nan,
        confusion=tuple(map(tuple, model.confusion[worker].round(4).tolist())) if worker is not None else (),
        left=_share([label.winner == label.left for label in first]),
        longer_excess=excess,
        seconds=median(label.seconds or 0.0 for label in timed) if timed else None,
        too_fast=sum(fast) / len(fast) if fast else None,
        repeats=_share(_repeats(own)),
        first_half=_share(sure[:half]),
        second_half=_share(sure[half:]),
    )
    return _judged(card, excess_z, config)


def _judged(card: Card, excess_z: float, config: CardConfig) -> Card:
    hard, soft = [], []
    for what, share in (("test questions", card.gold), ("agreement with the others", card.agreement)):
        if share is not None and share.value < config.min_accuracy:
            told = f"{what}: {share.value:.0%} of {share.n}"
            (hard if share.high < config.min_accuracy else soft).append(told)
    if card.left is not None:
        side, share = ("left", card.left.value) if card.left.value >= 0.5 else ("right", 1 - card.left.value)
        if max(card.left.low, 1 - card.left.high) > config.max_side:
            hard.append(f"takes the {side} answer in {share:.0%}")
        elif max(card.left.low, 1 - card.left.high) > 0.5:
            soft.append(f"takes the {side} answer in {share:.0%}")
    if card.longer_excess is not None and excess_z > 2.6:
        told = f"takes the longer answer {card.longer_excess:+.0%} beyond the others"
        (hard if card.longer_excess > config.max_length_excess else soft).append(told)
    if card.too_fast is not None and card.too_fast > config.fast_share:
        hard.append(f"{card.too_fast:.0%} of labels faster than reading")
    if card.repeats is not None and card.repeats.high < config.min_accuracy:
        hard.append(f"repeats an answer in {card.repeats.value:.0%} of {card.repeats.n}")
    first, second = card.first_half, card.second_half
    if first is not None and second is not None and second.high < first.low:
        told = f"drifts: {first.value:.0%} in the first half, {second.value:.0%} in the second"
        (hard if second.value < config.min_accuracy else soft).append(told)
    few = card.n_labels < config.min_labels
    status: Status = "exclude" if hard and not few else "watch" if hard or soft else "ok"
    return Card(**{**{f: getattr(card, f) for f in card.__slots__}, "status": status, "reasons": (*hard, *soft)})


def _share(right: Sequence[bool]) -> Estimate | None:
    return wilson(sum(right), len(right)) if right else None


def _without_own(
    label: Label, items: Mapping[str, Item], model: DawidSkene, places: Mapping[str, int], worker: int | None
) -> float:
    """P(a is better) by everybody else."""
    gold = items[label.item].gold
    if gold is not None:
        return 1.0 if gold == "a" else 0.0
    if worker is None:  # the model was fitted without this person
        return float(model.probabilities[places[label.item], 0])
    p = np.clip(model.probabilities[places[label.item]], 1e-9, 1 - 1e-9)
    c = np.clip(model.confusion[worker, :, 0 if label.winner == "a" else 1], 1e-9, None)
    odds = math.log(p[0] / p[1]) - math.log(c[0] / c[1])
    return 1 / (1 + math.exp(-max(-500.0, min(500.0, odds))))


def _length_excess(
    labels: Sequence[Label], others: Sequence[float], items: Mapping[str, Item]
) -> tuple[float | None, float]:
    """How much more often the longer answer is chosen than the others find it better, and how many deviations."""
    chosen, expected, variance = 0, 0.0, 0.0
    n = 0
    for label, p in zip(labels, others, strict=True):
        a, b = len(items[label.item].a), len(items[label.item].b)
        if max(a, b) < 1.2 * min(a, b):
            continue
        p_longer = p if a > b else 1 - p
        p_longer = 0.1 + 0.8 * p_longer  # nobody is certain: a careful person differs now and then
        chosen += (label.winner == "a") == (a > b)
        expected, variance, n = expected + p_longer, variance + p_longer * (1 - p_longer), n + 1
    if n == 0:
        return None, 0.0
    return (chosen - expected) / n, (chosen - expected) / math.sqrt(max(variance, 1e-9))


def _least_seconds(item: Item, config: CardConfig) -> float:
    return max(config.min_seconds, (len(item.a.split()) + len(item.b.split())) / config.words_per_second)


def _repeats(own: Sequence[Label]) -> list[bool]:
    before = {label.item: label.winner for label in own if label.occasion == 0 and label.action == "prefer"}
    return [
        before[label.item] == label.winner
        for label in own
        if label.occasion == 1 and label.action == "prefer" and label.item in before
    ]
