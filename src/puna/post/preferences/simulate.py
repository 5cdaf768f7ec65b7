"""Annotators that do not exist: with known skill, side bias, length bias, speed and drift, through the same two doors.

An item has a true difference d, positive when a is better. A simulated person sees `skill * d`, plus the pull of the
longer text, plus the pull of the left, plus logistic noise; the sign of the sum is the choice, its size the strength. A
share of answers may be pure clicks; a careful person skips what makes no difference. Skill falls linearly to
`skill_at_end` over the person's labels.

Time is simulated too, so that a thousand labels take seconds and the log still says who was in a hurry.
"""

import hashlib
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import Field

from puna.core.config import Config
from puna.post.preferences.collection import Collection
from puna.post.preferences.records import Item, Side
from puna.post.preferences.task import Judgement, RefusedError, Task

LEVEL_EDGES = (1.0, 2.0, 3.0)
"""Felt difference, in logits, at which the strength rises by one."""


class PersonConfig(Config):
    """A simulated annotator."""

    name: str
    """Name."""
    skill: float = 2.0
    """Weight of the true difference against the noise; 0 guesses, below 0 does the opposite."""
    skill_at_end: float | None = None
    """Skill at the last label; none keeps it."""
    left_pull: float = 0.0
    """Added in favour of the left answer, in logits."""
    length_pull: float = 0.0
    """Added in favour of the longer answer for each factor of two, in logits."""
    undecided: float = Field(default=0.0, ge=0.0)
    """Skips an item whose true difference is smaller than this."""
    clicks: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of answers given without looking."""
    words_per_second: float = Field(default=4.0, gt=0)
    """Reading speed."""
    bad: bool = False
    """Whether the checks should find this person; for the figures alone."""


MIXED_CROWD = (
    PersonConfig(name="ada", undecided=0.2, skill=2.2),
    PersonConfig(name="ben", undecided=0.2, skill=1.8),
    PersonConfig(name="cleo", undecided=0.2, skill=1.5),
    PersonConfig(name="dan", undecided=0.2, skill=1.2),
    PersonConfig(name="eve", undecided=0.2, skill=2.0, words_per_second=6.0),
    PersonConfig(name="fay", undecided=0.2, skill=1.4, left_pull=0.3),
    PersonConfig(name="spammer", skill=0.0, clicks=1.0, words_per_second=100.0, bad=True),
    PersonConfig(name="lefty", skill=0.6, left_pull=4.0, bad=True),
    PersonConfig(name="longer", skill=0.3, length_pull=4.0, bad=True),
    PersonConfig(name="guesser", skill=0.05, bad=True),
)
"""Six careful people and four that should be found."""


@dataclass
class _Person:
    config: PersonConfig
    rng: random.Random
    n_done: int = 0


def answer(task: Task, difference: float, person: PersonConfig, *, rng: random.Random, progress: float) -> Judgement:
    """What a simulated person says to a task.

    Args:
        task: From `Collection.next_task`.
        difference: True difference of the item, positive when a is better.
        person: Who.
        rng: This person's source of chance.
        progress: 0 at the first label, 1 at the last.
    """
    item = task.item
    words = len(item.a.split()) + len(item.b.split()) + sum(len(m.content.split()) for m in item.prompt.messages)
    seconds = max(0.2, words / person.words_per_second * math.exp(rng.gauss(0.0, 0.3)) + rng.random() * 0.2)
    if rng.random() < person.clicks:
        return Judgement("prefer", rng.choice((-4, -3, -2, -1, 1, 2, 3, 4)), seconds)
    if person.undecided and abs(difference) < person.undecided:
        return Judgement("skip", None, seconds)
    end = person.skill if person.skill_at_end is None else person.skill_at_end
    skill = person.skill + (end - person.skill) * progress
    longer = math.log2(max(len(item.a), 1) / max(len(item.b), 1))
    uniform = min(max(rng.random(), 1e-12), 1 - 1e-12)
    felt = skill * difference + person.length_pull * max(-1.5, min(1.5, longer))
    felt += person.left_pull * (1 if task.left == "a" else -1) + math.log(uniform / (1 - uniform))
    strength = 1 + sum(abs(felt) > edge for edge in LEVEL_EDGES)
    return Judgement("prefer", strength if felt > 0 else -strength, seconds)


def run(
    collection: Collection,
    people: Sequence[PersonConfig],
    truth: Mapping[str, float],
    *,
    seed: int = 0,
    adjudicators: Sequence[PersonConfig] = (),
) -> int:
    """Lets simulated people work until nothing is left for any of them.

    Args:
        collection: Where they work.
        people: Annotators.
        truth: True difference by item id; an item that is not named has 0.
        seed: Of their chance.
        adjudicators: People who work on the adjudication queue instead.

    Returns:
        Labels given.
    """
    working = []
    for person in (*people, *adjudicators):
        collection.invite(person.name, role="adjudicator" if person in adjudicators else "annotator")
        working.append(_Person(person, random.Random(f"{seed}/{person.name}")))
    expected = max(1, len(truth) * collection.settings.overlap // max(len(people), 1))
    n = 0
    while working:
        for person in list(working):
            try:
                task = collection.next_task(person.config.name)
            except RefusedError:  # the gate closed on this person
                task = None
            if task is None:
                working.remove(person)
                continue
            progress = min(1.0, person.n_done / expected)
            known = truth.get(task.item.id, _from_gold(task.item.gold))
            judgement = answer(task, known, person.config, rng=person.rng, progress=progress)
            submission = _submission(person.config.name, task)
            collection.submit(person.config.name, task.assignment, task.revision, submission, judgement)
            person.n_done += 1
            n += 1
    return n


def _submission(name: str, task: Task) -> str:
    """A name that is another one in every round, although assignments are counted anew in each."""
    told = f"{name}/{task.item.id}/{task.occasion}/{task.revision}"
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def _from_gold(gold: Side | None) -> float:
    return 0.0 if gold is None else 2.0 if gold == "a" else -2.0


def true_sides(items: Sequence[Item], truth: Mapping[str, float]) -> dict[str, Side]:
    """The better answer of each item whose difference is not 0."""
    return {item.id: "a" if truth[item.id] > 0 else "b" for item in items if truth.get(item.id)}
