"""The tables of a collection, for SQLite and PostgreSQL.

`labels` is the log: rows are only ever added, which triggers in the database hold (`migrations/`). Everything that a
later look may want to doubt is in the row: side, time, guideline version, revision. `assignments` is what was handed to
whom; its `outcome` repeats the last label's action so that quotas are counted without reading the log.
"""

from typing import Any

from sqlalchemy import JSON, ForeignKey, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """Base of the tables."""

    type_annotation_map = {dict[str, Any]: JSON, list[str]: JSON}  # noqa: RUF012


class CollectionRow(Base):
    """The one row of settings; locking it makes handing out tasks one at a time."""

    __tablename__ = "collection"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    guideline: Mapped[str]
    guideline_version: Mapped[str]
    round: Mapped[int]
    settings: Mapped[dict[str, Any]]


class ItemRow(Base):
    """An item; `content` is its JSON row."""

    __tablename__ = "items"
    id: Mapped[str] = mapped_column(primary_key=True)
    place: Mapped[int] = mapped_column(index=True)
    round: Mapped[int] = mapped_column(index=True)
    is_gold: Mapped[bool]
    content: Mapped[dict[str, Any]]
    dispute: Mapped[float | None] = mapped_column(index=True)
    """Priority in the adjudication queue; none when the item is not disputed."""


class AnnotatorRow(Base):
    """A person with a token, of which only the hash is kept."""

    __tablename__ = "annotators"
    name: Mapped[str] = mapped_column(primary_key=True)
    token_sha256: Mapped[str] = mapped_column(unique=True)
    role: Mapped[str]
    paused: Mapped[str | None]
    """Why this person gets no more tasks."""


class AssignmentRow(Base):
    """An item handed to an annotator, with the side on which its answers stood."""

    __tablename__ = "assignments"
    __table_args__ = (UniqueConstraint("item_id", "annotator", "occasion"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    item_id: Mapped[str] = mapped_column(ForeignKey("items.id"), index=True)
    annotator: Mapped[str] = mapped_column(ForeignKey("annotators.name"), index=True)
    occasion: Mapped[int]
    role: Mapped[str]
    left: Mapped[str]
    given_at: Mapped[float]
    outcome: Mapped[str | None]
    revision: Mapped[int]
    """Labels that this assignment has; the next one gets this number."""


class LabelRow(Base):
    """One line of the log."""

    __tablename__ = "labels"
    __table_args__ = (UniqueConstraint("assignment_id", "revision"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    submission: Mapped[str] = mapped_column(unique=True)
    assignment_id: Mapped[int] = mapped_column(ForeignKey("assignments.id"))
    revision: Mapped[int]
    action: Mapped[str]
    value: Mapped[int | None]
    edit: Mapped[str | None]
    reasons: Mapped[list[str]]
    note: Mapped[str]
    seconds: Mapped[float]
    guideline_version: Mapped[str]
    time: Mapped[str]
