"""What goes through the two doors of a collection: a task to an annotator, a judgement back."""

from dataclasses import dataclass

from puna.post.preferences.records import Action, Item, Label, Role, Side

MAX_TEXT = 100_000
"""Longest edit or note, in characters."""


class RefusedError(Exception):
    """A request that cannot be carried out; the message is for the annotator.

    Args:
        reason: Short word: `paused`, `conflict`, `invalid`, `unknown`.
        message: What to say.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Annotator:
    """A person who may judge."""

    name: str
    role: Role
    paused: str | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """What an annotator sees. Which item it is, and whether it is a test, stays here.

    Attributes:
        assignment: Number of the assignment.
        revision: Number of the label that an answer will be.
        item: The item.
        left: Which answer stands on the left.
        occasion: 1 for a repeat.
        previous: The label so far, when a person goes back to change it.
        others: For an adjudicator: what annotators said.
    """

    assignment: int
    revision: int
    item: Item
    left: Side
    occasion: int
    previous: Label | None = None
    others: tuple[Label, ...] = ()


@dataclass(frozen=True, slots=True)
class Judgement:
    """An answer to a task, as it comes from the page.

    Attributes:
        action: `prefer`, `skip` or `flag`.
        value: Signed, positive when answer a is better (the caller has translated left and right).
        seconds: Active time on the task.
        edit: Better version of the preferred answer.
        reasons: Chosen reasons.
        note: Free text.
    """

    action: Action
    value: int | None = None
    seconds: float = 0.0
    edit: str | None = None
    reasons: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a person and the round are.

    Attributes:
        mine: Tasks that this person answered.
        labels: Preferences that count for the quota in this round.
        wanted: Preferences that the quota asks for.
    """

    mine: int
    labels: int
    wanted: int
