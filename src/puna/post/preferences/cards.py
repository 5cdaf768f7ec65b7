"""A card for every annotator: how often right, which side, how long, how steady; and whether to use the labels.

"Right" is measured twice. On test questions against what is known; elsewhere against the others: their labels of the
item, weighed by what the Dawid-Skene model fits of each, and only where they are nearly sure. A reason to
exclude must hold with its 95 % interval, so that nobody is dropped for a handful of hard items.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any, Literal

from pydantic import Field

from puna.core.config import Config
from puna.evaluate.statistics import Estimate, wilson
from puna.post.preferences.dawid_skene import DawidSkene
from puna.post.preferences.records import Item, Label

Status = Literal["ok", "unjudged", "watch", "exclude"]
MIN_JUDGED = 10
"""Labels, or comparisons with others, below which nothing is said about a person: of fewer, chance decides."""


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
    min_labels: int = Field(default=MIN_JUDGED, ge=1)
    """With fewer labels nobody is judged; with fewer items to compare, nobody for the agreement with the others."""


@dataclass(frozen=True, slots=True)
class Card:
    """What is known about one annotator.

    Attributes:
        name: Who.
        status: `ok`, `unjudged` (too few labels), `watch`, or `exclude`.
        reasons: Why not `ok`, and what cannot be judged.
        n_labels: Preferences given, without repeats.
        n_skipped: Items skipped.
        n_flagged: Items flagged.
        gold: Share of right test questions.
        agreement: Share of items on which the person sides with the others, where there are others and they are sure.
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
    workers: Mapping[str, int],
    config: CardConfig,
) -> list[Card]:
    """Makes the card of every annotator.

    Args:
        items: Items by id.
        labels: All labels in the order of time.
        model: Fitted on the labels, classes 0 (a better) and 1 (b better).
        workers: Index of each person in the model.
        config: Thresholds.
    """
    names = sorted({label.annotator for label in labels if label.role == "annotator"})
    said: dict[str, list[Label]] = defaultdict(list)
    for label in labels:
        if label.action == "prefer" and label.occasion == 0 and label.role == "annotator":
            said[label.item].append(label)
    return [_card(name, items, labels, model, workers, said, config) for name in names]


def _card(
    name: str,
    items: Mapping[str, Item],
    labels: Sequence[Label],
    model: DawidSkene,
    workers: Mapping[str, int],
    said: Mapping[str, Sequence[Label]],
    config: CardConfig,
) -> Card:
    own = [label for label in labels if label.annotator == name]
    first = [label for label in own if label.action == "prefer" and label.occasion == 0]
    gold = [items[label.item].gold == label.winner for label in first if items[label.item].gold]
    worker = workers.get(name)
    asked = ((label, _by_others(label, items, said[label.item], model, workers)) for label in first)
    compared = [(label, p) for label, p in asked if p is not None]
    sure = [
        (p >= 0.5) == (label.winner == "a")
        for label, p in compared
        if max(p, 1 - p) >= config.sure and items[label.item].gold is None
    ]
    half = len(sure) // 2
    excess, excess_z = _length_excess(compared, items)
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
    if card.n_labels < config.min_labels:
        told = f"too few to judge: {card.n_labels} of {config.min_labels} labels"
        return replace(card, status="unjudged", reasons=(told,))
    hard, soft, told_only = [], [], []
    n_compared = card.agreement.n if card.agreement is not None else 0
    if n_compared < config.min_labels:
        told_only.append(f"agreement with the others: too few to judge ({n_compared} of {config.min_labels})")
    agreement = card.agreement if n_compared >= config.min_labels else None
    for what, share in (("test questions", card.gold), ("agreement with the others", agreement)):
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
    if agreement is not None and first is not None and second is not None and second.high < first.low:
        told = f"drifts: {first.value:.0%} in the first half, {second.value:.0%} in the second"
        (hard if second.value < config.min_accuracy else soft).append(told)
    status: Status = "exclude" if hard else "watch" if soft else "ok"
    return replace(card, status=status, reasons=(*hard, *soft, *told_only))


def _share(right: Sequence[bool]) -> Estimate | None:
    return wilson(sum(right), len(right)) if right else None


def _by_others(
    label: Label, items: Mapping[str, Item], said: Sequence[Label], model: DawidSkene, workers: Mapping[str, int]
) -> float | None:
    """P(a is better) by everybody else's labels of the item alone, both answers equally likely before; None without."""
    gold = items[label.item].gold
    if gold is not None:
        return 1.0 if gold == "a" else 0.0
    votes = [
        model.confusion[workers[other.annotator], :, 0 if other.winner == "a" else 1]
        for other in said
        if other.annotator != label.annotator
    ]
    if not votes:
        return None
    odds = sum(math.log(max(c[0], 1e-9) / max(c[1], 1e-9)) for c in votes)
    return 1 / (1 + math.exp(-max(-500.0, min(500.0, odds))))


def _length_excess(compared: Sequence[tuple[Label, float]], items: Mapping[str, Item]) -> tuple[float | None, float]:
    """How much more often the longer answer is chosen than the others find it better, and how many deviations."""
    chosen, expected, variance = 0, 0.0, 0.0
    n = 0
    for label, p in compared:
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
