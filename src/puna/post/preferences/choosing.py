"""What a person gets next: a test question, a repeat, or the item that is nearest to its quota.

Test questions and repeats come by seeded chance, at a rate; they look like any other task. Items near their quota come
first, so that items are finished rather than begun. A task that was handed out counts for the quota until its lease
ends. Sides are counterbalanced: within an item first, then within a person; a repeat shows the answers the other way
round. An adjudicator gets the most disputed item.
"""

import random
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, case, func, select
from sqlalchemy.orm import Session, aliased

from puna.post.preferences.records import Side
from puna.post.preferences.settings import CollectionSettings
from puna.post.preferences.tables import AnnotatorRow, AssignmentRow, CollectionRow, ItemRow


def choose(session: Session, person: AnnotatorRow, *, settings: CollectionSettings, now: float) -> AssignmentRow | None:
    """Choose a new task for a person who has none open, and write its assignment.

    Args:
        session: In a writing transaction.
        person: Who asks.
        settings: Quotas and rates.
        now: Seconds since 1970.

    Returns:
        The assignment, or None when nothing is left.
    """
    if person.role == "adjudicator":
        item = session.scalar(
            _unseen(person.name).where(ItemRow.dispute.is_not(None)).order_by(ItemRow.dispute.desc(), ItemRow.place)
        )
        return None if item is None else _assign(session, person, item, settings=settings, now=now)
    given = session.scalar(
        select(func.count()).select_from(AssignmentRow).where(AssignmentRow.annotator == person.name)
    )
    draw = random.Random(f"{settings.seed}/{person.name}/{given}").random()
    if draw < settings.gold_rate:
        item = _gold_item(session, person.name, settings)
        if item is not None:
            return _assign(session, person, item, settings=settings, now=now)
    elif draw < settings.gold_rate + settings.repeat_rate:
        row = _repeat(session, person, settings=settings, now=now)
        if row is not None:
            return row
    item = _nearest_to_quota(session, person.name, settings, now)
    return None if item is None else _assign(session, person, item, settings=settings, now=now)


def _unseen(name: str) -> Select[Any]:
    seen = select(AssignmentRow.item_id).where(AssignmentRow.annotator == name)
    return select(ItemRow).where(ItemRow.id.not_in(seen)).limit(1)


def _gold_item(session: Session, name: str, settings: CollectionSettings) -> ItemRow | None:
    current = select(CollectionRow.round).where(CollectionRow.id == 1).scalar_subquery()
    rows = session.scalars(_unseen(name).where(ItemRow.is_gold.is_(True), ItemRow.round <= current).limit(None)).all()
    return random.Random(f"{settings.seed}/{name}/gold/{len(rows)}").choice(rows) if rows else None


def _repeat(
    session: Session, person: AnnotatorRow, *, settings: CollectionSettings, now: float
) -> AssignmentRow | None:
    done = session.scalars(
        select(AssignmentRow).where(AssignmentRow.annotator == person.name).order_by(AssignmentRow.id)
    ).all()
    repeated = {row.item_id for row in done if row.occasion == 1}
    old = done[: max(0, len(done) - settings.repeat_gap)]
    can = [row for row in old if row.occasion == 0 and row.outcome == "prefer" and row.item_id not in repeated]
    if not can:
        return None
    first = random.Random(f"{settings.seed}/{person.name}/repeat/{len(done)}").choice(can)
    return _insert(session, person, first.item_id, occasion=1, left="b" if first.left == "a" else "a", now=now)


def _nearest_to_quota(session: Session, name: str, settings: CollectionSettings, now: float) -> ItemRow | None:
    live = now - 60 * settings.lease_minutes
    taken = func.sum(
        case(
            (counts_for_quota(), 1),
            (and_(AssignmentRow.outcome.is_(None), AssignmentRow.given_at > live), 1),
            else_=0,
        )
    )
    flags = func.sum(case((AssignmentRow.outcome == "flag", 1), else_=0))
    mine = aliased(AssignmentRow)
    seen = select(mine.item_id).where(mine.annotator == name)
    current = select(CollectionRow.round).where(CollectionRow.id == 1).scalar_subquery()
    counted = (
        select(ItemRow.id)
        .outerjoin(AssignmentRow, and_(AssignmentRow.item_id == ItemRow.id, AssignmentRow.role == "annotator"))
        .where(ItemRow.round == current, ItemRow.is_gold.is_(False), ItemRow.id.not_in(seen))
        .group_by(ItemRow.id, ItemRow.place)
        .having(func.coalesce(taken, 0) < settings.overlap)
        .having(func.coalesce(flags, 0) < settings.flag_limit)
        .order_by(func.coalesce(taken, 0).desc(), ItemRow.place)
        .limit(1)
    )
    found = session.scalar(counted)
    return None if found is None else session.get(ItemRow, found)


def _assign(
    session: Session, person: AnnotatorRow, item: ItemRow, *, settings: CollectionSettings, now: float
) -> AssignmentRow:
    balance = case((AssignmentRow.left == "a", 1), else_=-1)
    within_item = session.scalar(select(func.sum(balance)).where(AssignmentRow.item_id == item.id)) or 0
    within_person = session.scalar(select(func.sum(balance)).where(AssignmentRow.annotator == person.name)) or 0
    chance = random.Random(f"{settings.seed}/{item.id}/{person.name}/side").choice((-1, 1))
    left: Side = "b" if (within_item or within_person or chance) > 0 else "a"
    return _insert(session, person, item.id, occasion=0, left=left, now=now)


def _insert(
    session: Session, person: AnnotatorRow, item: str, *, occasion: int, left: Side, now: float
) -> AssignmentRow:
    row = AssignmentRow(
        item_id=item,
        annotator=person.name,
        occasion=occasion,
        role=person.role,
        left=left,
        given_at=now,
        outcome=None,
        revision=0,
    )
    session.add(row)
    session.flush()
    return row


def counts_for_quota() -> ColumnElement[bool]:
    """The condition that an assignment counts for its item's quota."""
    return and_(AssignmentRow.outcome == "prefer", AssignmentRow.occasion == 0, AssignmentRow.role == "annotator")
