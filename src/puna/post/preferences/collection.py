"""A collection of preferences in a database: who may judge, what comes next, what was said.

`next_task` and `submit` are the two doors, the same for the web page, for a judge model and for the simulator. Handing
out is one transaction at a time, so that two people at once never overfill a quota. A task that was handed out and not
answered is handed out again to the same person, the same way round: a page that is reloaded, or a server that was
killed, loses nothing. A submission has a name of its own; sending it twice is answered twice and counted once.

What comes next is `choosing.py`'s business.
"""

import hashlib
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Engine, and_, func, select, update
from sqlalchemy.orm import Session

from puna.core import config as configs
from puna.core.errors import MissingError, UsageError
from puna.post.preferences import choosing
from puna.post.preferences.database import connect
from puna.post.preferences.records import VALUES, Action, Item, Label, Role, Side, parse_item
from puna.post.preferences.settings import GUIDELINE, CollectionSettings
from puna.post.preferences.tables import AnnotatorRow, AssignmentRow, CollectionRow, ItemRow, LabelRow
from puna.post.preferences.task import MAX_TEXT, Annotator, Judgement, Progress, RefusedError, Task


class Collection:
    """A collection in an open database.

    Args:
        engine: From `database.connect`.
        now: The clock, in seconds since 1970.
    """

    def __init__(self, engine: Engine, *, now: Callable[[], float] = time.time) -> None:
        self._engine, self._now = engine, now
        with self._read() as session:
            row = session.get(CollectionRow, 1)
            if row is None:
                raise UsageError("the database holds no collection. Type: puna annotate init DATABASE ITEMS.jsonl")
            self.title, self.guideline, self.guideline_version = row.title, row.guideline, row.guideline_version
            self.settings = CollectionSettings.model_validate(row.settings)

    @classmethod
    def create(
        cls,
        where: str | Path,
        items: Sequence[Item],
        *,
        settings: CollectionSettings | None = None,
        title: str = "Which answer is better?",
        guideline: str = GUIDELINE,
        now: Callable[[], float] = time.time,
        durable: bool = True,
    ) -> "Collection":
        """Make a new collection; `durable` as for `database.connect`.

        Raises:
            UsageError: The database holds one already.
        """
        engine = connect(where, create=True, durable=durable)
        version = hashlib.sha256(guideline.encode()).hexdigest()[:8]
        with Session(engine) as session, session.begin():
            if session.get(CollectionRow, 1) is not None:
                raise UsageError(
                    f"{where} holds a collection already. Add to it: puna annotate add {where} ITEMS.jsonl"
                )
            values = configs.as_dict(settings or CollectionSettings())
            session.add(
                CollectionRow(
                    id=1, title=title, guideline=guideline, guideline_version=version, round=1, settings=values
                )
            )
        collection = cls(engine, now=now)
        collection.add(items)
        return collection

    @classmethod
    def open(cls, where: str | Path, *, now: Callable[[], float] = time.time) -> "Collection":
        """Open an existing collection."""
        return cls(connect(where), now=now)

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    @contextmanager
    def _read(self) -> Iterator[Session]:
        with Session(self._engine) as session:
            yield session

    @contextmanager
    def _write(self) -> Iterator[Session]:
        """One writer at a time: SQLite by BEGIN IMMEDIATE, PostgreSQL by this row's lock."""
        with Session(self._engine, expire_on_commit=False) as session, session.begin():
            session.execute(select(CollectionRow.id).where(CollectionRow.id == 1).with_for_update())
            yield session

    # --- items and people ---

    def add(self, items: Sequence[Item]) -> int:
        """Add items; the collection's round becomes the largest round in it.

        Returns:
            How many were new; an item that is there already with the same content is passed over.

        Raises:
            UsageError: An id is there with another content.
        """
        with self._write() as session:
            place = session.scalar(select(func.max(ItemRow.place))) or 0
            known = {row.id: row for row in session.scalars(select(ItemRow))}
            added = 0
            for item in items:
                content = item.as_row()
                if item.id in known:
                    if known[item.id].content != content:
                        raise UsageError(
                            f"item {item.id!r} is in the collection with another content; give it a new id"
                        )
                    continue
                place, added = place + 1, added + 1
                row = ItemRow(
                    id=item.id,
                    place=place,
                    round=item.round,
                    is_gold=item.gold is not None,
                    content=content,
                    dispute=None,
                )
                known[item.id] = row
                session.add(row)
            session.flush()
            newest = session.scalar(select(func.max(ItemRow.round))) or 1
            session.execute(update(CollectionRow).values(round=newest))
        return added

    def invite(self, name: str, *, role: Role = "annotator", token: str | None = None) -> str:
        """Let a person in, or give a known one a new token.

        Args:
            name: Whom; appears in the data.
            role: `annotator` or `adjudicator`.
            token: The token; a random one by default.

        Returns:
            The token. Only its hash is kept: it cannot be shown again.

        Raises:
            UsageError: The name cannot be used, or belongs to somebody with another role.
        """
        if not name.strip() or len(name) > 100 or name != name.strip():
            raise UsageError(f"annotator {name!r} cannot be a name; give 1 to 100 characters without space at the ends")
        token = token or secrets.token_urlsafe(18)
        digest = _digest(token)
        with self._write() as session:
            row = session.get(AnnotatorRow, name)
            if row is None:
                session.add(AnnotatorRow(name=name, token_sha256=digest, role=role, paused=None))
            elif row.role != role:
                raise UsageError(f"{name!r} is an {row.role}; choose another name for the {role}")
            else:
                row.token_sha256 = digest
        return token

    def pause(self, name: str, reason: str | None) -> None:
        """Give a person no more tasks, or (reason None) tasks again.

        Raises:
            MissingError: There is no such person.
        """
        with self._write() as session:
            row = session.get(AnnotatorRow, name)
            if row is None:
                there = session.scalars(select(AnnotatorRow.name).order_by(AnnotatorRow.name))
                raise MissingError(f"there is no annotator {name!r}; there are {', '.join(there) or 'none'}")
            row.paused = reason

    def names(self) -> list[str]:
        """Everybody who was let in."""
        with self._read() as session:
            return list(session.scalars(select(AnnotatorRow.name).order_by(AnnotatorRow.name)))

    def enter(self, token: str) -> Annotator | None:
        """Who a token belongs to."""
        with self._read() as session:
            row = session.scalar(select(AnnotatorRow).where(AnnotatorRow.token_sha256 == _digest(token)))
            return None if row is None else Annotator(row.name, row.role, row.paused)  # type: ignore[arg-type]

    # --- the two doors ---

    def next_task(self, name: str) -> Task | None:
        """The task that a person shall do now, or None when there is none left.

        Raises:
            RefusedError: The person is paused or unknown.
        """
        with self._write() as session:
            person = self._person(session, name)
            open_row = session.scalar(
                select(AssignmentRow)
                .where(AssignmentRow.annotator == name, AssignmentRow.outcome.is_(None))
                .order_by(AssignmentRow.id)
            )
            if open_row is None:
                open_row = choosing.choose(session, person, settings=self.settings, now=self._now())
            return None if open_row is None else self._task(session, open_row)

    def submit(self, name: str, assignment: int, revision: int, submission: str, judgement: Judgement) -> bool:
        """Record an answer.

        Args:
            name: Who.
            assignment: Number of the task's assignment.
            revision: Number that the task said.
            submission: A name that the sender made up; the same one again is the same submission.
            judgement: What was said.

        Returns:
            True when it was recorded now, False when this submission was recorded before.

        Raises:
            RefusedError: It cannot be recorded: not this person's task, answered in another window, or a submission
                whose name was used for another answer.
        """
        self._check(judgement, submission)
        with self._write() as session:
            row = session.get(AssignmentRow, assignment)
            if row is None or row.annotator != name:
                raise RefusedError("unknown", "this task is not yours")
            known = session.scalar(select(LabelRow).where(LabelRow.submission == submission))
            if known is not None:
                if (known.assignment_id, known.revision) != (assignment, revision) or _said(known) != judgement:
                    raise RefusedError("conflict", "this submission's name was used for another answer")
                return False
            if row.revision != revision:
                raise RefusedError("conflict", "this task was answered in another window")
            session.add(
                LabelRow(
                    submission=submission,
                    assignment_id=assignment,
                    revision=revision,
                    action=judgement.action,
                    value=judgement.value,
                    edit=judgement.edit,
                    reasons=list(judgement.reasons),
                    note=judgement.note,
                    seconds=judgement.seconds,
                    guideline_version=self.guideline_version,
                    time=datetime.fromtimestamp(self._now(), UTC).isoformat(timespec="milliseconds"),
                )
            )
            row.outcome, row.revision = judgement.action, revision + 1
            if row.role == "adjudicator":
                session.execute(update(ItemRow).where(ItemRow.id == row.item_id).values(dispute=None))
            else:
                session.flush()
                self._gate(session, name)
        return True

    def left_of(self, name: str, assignment: int) -> Side:
        """Which answer of a task stood on the left.

        Raises:
            RefusedError: It is not this person's task.
        """
        with self._read() as session:
            row = session.get(AssignmentRow, assignment)
            if row is None or row.annotator != name:
                raise RefusedError("unknown", "this task is not yours")
            return "a" if row.left == "a" else "b"

    def last_task(self, name: str) -> Task | None:
        """The task that a person answered last, to change the answer."""
        with self._read() as session:
            row = session.scalar(
                select(AssignmentRow)
                .join(LabelRow, LabelRow.assignment_id == AssignmentRow.id)
                .where(AssignmentRow.annotator == name)
                .order_by(LabelRow.id.desc())
                .limit(1)
            )
            return None if row is None else self._task(session, row)

    def progress(self, name: str) -> Progress:
        """How far a person and the round are."""
        with self._read() as session:
            round_ = session.scalar(select(CollectionRow.round)) or 1
            mine = session.scalar(
                select(func.count())
                .select_from(AssignmentRow)
                .where(AssignmentRow.annotator == name, AssignmentRow.outcome.is_not(None))
            )
            counts = session.scalars(
                select(func.count(AssignmentRow.id))
                .select_from(ItemRow)
                .outerjoin(AssignmentRow, and_(AssignmentRow.item_id == ItemRow.id, choosing.counts_for_quota()))
                .where(ItemRow.round == round_, ItemRow.is_gold.is_(False))
                .group_by(ItemRow.id)
            ).all()
        quota = self.settings.overlap
        return Progress(mine or 0, sum(min(n, quota) for n in counts), quota * len(counts))

    # --- what was said ---

    def items(self, *, round: int | None = None) -> list[Item]:
        """All items, or those of one round, in their order."""
        with self._read() as session:
            query = select(ItemRow).order_by(ItemRow.place)
            if round is not None:
                query = query.where(ItemRow.round == round)
            return [parse_item(row.content) for row in session.scalars(query)]

    def labels(self, *, round: int | None = None, every_revision: bool = False) -> list[Label]:
        """The labels that count: of each assignment the last one, in the order of time.

        Args:
            round: Those of one round only.
            every_revision: The whole log instead.
        """
        query = (
            select(LabelRow, AssignmentRow, ItemRow.round)
            .join(AssignmentRow, LabelRow.assignment_id == AssignmentRow.id)
            .join(ItemRow, AssignmentRow.item_id == ItemRow.id)
            .order_by(LabelRow.id)
        )
        if round is not None:
            query = query.where(ItemRow.round == round)
        if not every_revision:
            query = query.where(LabelRow.revision == AssignmentRow.revision - 1)
        with self._read() as session:
            return [_label(label, given, n) for label, given, n in session.execute(query)]

    def set_disputes(self, priorities: dict[str, float]) -> None:
        """Fill the adjudication queue: priority by item id; items that are not named leave it."""
        with self._write() as session:
            session.execute(update(ItemRow).values(dispute=None))
            for item, priority in priorities.items():
                session.execute(update(ItemRow).where(ItemRow.id == item).values(dispute=priority))

    # --- inside ---

    def _person(self, session: Session, name: str) -> AnnotatorRow:
        row = session.get(AnnotatorRow, name)
        if row is None:
            raise RefusedError("unknown", f"there is no annotator {name!r}")
        if row.paused:
            raise RefusedError("paused", row.paused)
        return row

    def _check(self, judgement: Judgement, submission: str) -> None:
        problem = None
        if not 8 <= len(submission) <= 100:
            problem = "a submission's name has 8 to 100 characters"
        elif (judgement.action == "prefer") != (judgement.value in VALUES):
            problem = f"value {judgement.value!r} does not fit the action {judgement.action!r}"
        elif not 0 <= judgement.seconds < 1e6:
            problem = f"seconds are {judgement.seconds!r}"
        elif max(len(judgement.edit or ""), len(judgement.note)) > MAX_TEXT:
            problem = f"a text is longer than {MAX_TEXT} characters"
        elif judgement.edit is not None and judgement.action != "prefer":
            problem = "only a preferred answer can be improved"
        elif strange := [reason for reason in judgement.reasons if reason not in self.settings.reasons]:
            problem = f"{strange[0]!r:.80} is not among the reasons; allowed are {self.settings.reasons!r}"
        elif len(set(judgement.reasons)) < len(judgement.reasons):
            problem = "a reason is given twice"
        if problem:
            raise RefusedError("invalid", problem)

    def _task(self, session: Session, row: AssignmentRow) -> Task:
        item = session.get(ItemRow, row.item_id)
        assert item is not None, row.item_id
        labels = session.execute(
            select(LabelRow, AssignmentRow)
            .join(AssignmentRow, LabelRow.assignment_id == AssignmentRow.id)
            .where(AssignmentRow.item_id == row.item_id, LabelRow.revision == AssignmentRow.revision - 1)
            .order_by(LabelRow.id)
        ).all()
        own = [_label(label, given, item.round) for label, given in labels if given.id == row.id]
        others = [_label(label, given, item.round) for label, given in labels if given.id != row.id]
        return Task(
            assignment=row.id,
            revision=row.revision,
            item=parse_item(item.content),
            left="a" if row.left == "a" else "b",
            occasion=row.occasion,
            previous=own[0] if own else None,
            others=tuple(others) if row.role == "adjudicator" else (),
        )

    def _gate(self, session: Session, name: str) -> None:
        """Pause a person who fails the test questions."""
        rows = session.execute(
            select(LabelRow.value, ItemRow.content)
            .join(AssignmentRow, LabelRow.assignment_id == AssignmentRow.id)
            .join(ItemRow, AssignmentRow.item_id == ItemRow.id)
            .where(
                AssignmentRow.annotator == name,
                ItemRow.is_gold.is_(True),
                LabelRow.revision == AssignmentRow.revision - 1,
                LabelRow.action == "prefer",
            )
            .order_by(LabelRow.id.desc())
            .limit(self.settings.gate_window)
        ).all()
        if len(rows) < self.settings.gate_min_gold:
            return
        right = sum((value > 0) == (content["gold"] == "a") for value, content in rows if value is not None)
        if right < self.settings.gate_accuracy * len(rows):
            reason = f"{right} of the last {len(rows)} test questions were right; please speak to whoever invited you"
            session.execute(update(AnnotatorRow).where(AnnotatorRow.name == name).values(paused=reason))


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _said(label: LabelRow) -> Judgement:
    action: Action = label.action  # type: ignore[assignment]
    return Judgement(action, label.value, label.seconds, label.edit, tuple(label.reasons), label.note)


def _label(label: LabelRow, given: AssignmentRow, round_: int) -> Label:
    return Label(
        item=given.item_id,
        annotator=given.annotator,
        action=label.action,  # type: ignore[arg-type]
        value=label.value,
        left="a" if given.left == "a" else "b",
        seconds=label.seconds,
        occasion=given.occasion,
        round=round_,
        edit=label.edit,
        reasons=tuple(label.reasons),
        note=label.note,
        guideline=label.guideline_version,
        time=label.time,
        role=given.role,  # type: ignore[arg-type]
        id=label.submission,
    )
