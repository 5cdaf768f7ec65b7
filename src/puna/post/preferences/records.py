"""The two nouns of a collection: an item (a prompt with two answers) and a label (what somebody said about it).

Both have one JSON form, one object a line, whoever made them: the annotation page, a judge model, a simulator, or
another tool. All statistics, verdicts and exports start from these two lists and know no database.

A label's value is signed: +4 says that answer a is significantly better, -1 that b is marginally better. There is no
zero, as in Llama 3's scale; who cannot decide skips. Which answer stood on the left is kept beside it, so that a value
never depends on what was shown where, and a bias to one side can still be measured.

Source: The Llama 3 Herd of Models (2407.21783), section 4.2.1 (two models, four levels, optional edit).
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from puna.core.dialog import Dialog, Message
from puna.core.files import atomic_open
from puna.post.dialogs import RowError, check_turns, openai_messages, read_each, text_of
from puna.post.rows import Row, kind_of

Side = Literal["a", "b"]
Action = Literal["prefer", "skip", "flag"]
Role = Literal["annotator", "adjudicator"]
ACTIONS: tuple[Action, ...] = get_args(Action)
ROLES: tuple[Role, ...] = get_args(Role)
VALUES = (-4, -3, -2, -1, 1, 2, 3, 4)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Item:
    """Two answers to compare.

    Attributes:
        id: Unique name within a collection.
        prompt: Ends with a user or a tool.
        a: One answer.
        b: The other answer.
        model_a: Who wrote a; never shown to annotators.
        model_b: Who wrote b.
        round: Round of collection, counted from 1.
        gold: The better answer when it is known for certain; such an item is a test question.
        uncertainty: How unsure a model is which one is better, 0 to 1; sorts the adjudication queue.
    """

    id: str
    prompt: Dialog
    a: str
    b: str
    model_a: str = ""
    model_b: str = ""
    round: int = 1
    gold: Side | None = None
    uncertainty: float | None = None

    def answer(self, side: Side) -> str:
        """The text of one answer."""
        return self.a if side == "a" else self.b

    def as_row(self) -> dict[str, Any]:
        """The item as a JSON row that `read_items` gives back."""
        row = {"id": self.id, "prompt": self.prompt.as_messages(), "a": self.a, "b": self.b}
        row |= {"model_a": self.model_a, "model_b": self.model_b, "round": self.round}
        return row | {k: v for k in ("gold", "uncertainty") if (v := getattr(self, k)) is not None}


@dataclass(frozen=True, slots=True)
class Label:
    """One judgement of one person about one item.

    Attributes:
        item: Id of the item.
        annotator: Who.
        action: `prefer`, or `skip` (cannot decide) or `flag` (something is wrong with the item).
        value: For `prefer`: -4 to 4 without 0, positive when a is better.
        left: Which answer stood on the left.
        seconds: Time on the task while the page was visible.
        occasion: 0 for the first time, 1 for a repeat by the same person.
        round: Round of the item.
        edit: A better version of the preferred answer.
        reasons: Chosen reasons.
        note: Free text.
        guideline: Version of the guidelines that were shown.
        time: When, ISO 8601 in UTC.
        role: `annotator`, or `adjudicator` who decides a disputed item.
        id: Unique name of the submission.
    """

    item: str
    annotator: str
    action: Action = "prefer"
    value: int | None = None
    left: Side = "a"
    seconds: float | None = None
    occasion: int = 0
    round: int = 1
    edit: str | None = None
    reasons: tuple[str, ...] = ()
    note: str = ""
    guideline: str = ""
    time: str = ""
    role: Role = "annotator"
    id: str = ""

    @property
    def winner(self) -> Side | None:
        """The preferred answer, or None for a skip or a flag."""
        return None if self.value is None else "a" if self.value > 0 else "b"

    def as_row(self) -> dict[str, Any]:
        """The label as a JSON row that `read_labels` gives back."""
        row = {name: getattr(self, name) for name in self.__slots__}
        row["reasons"] = list(self.reasons)
        return {name: value for name, value in row.items() if value not in (None, "", [])}


def item_id(prompt: Dialog, a: str, b: str) -> str:
    """A name that depends on the content alone."""
    text = json.dumps([prompt.as_messages(), a, b], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_items(paths: Sequence[Path | str]) -> list[Item]:
    """Reads items; ids must be unique over all files.

    Raises:
        MissingError: A file is not there.
        ConfigError: Rows that cannot be used, each with file and line.
    """
    seen: set[str] = set()

    def parse(row: Row) -> Item:
        item = parse_item(row.value)
        if item.id in seen:
            raise RowError(f"the id {item.id!r} occurs twice; ids must be unique")
        seen.add(item.id)
        return item

    return list(read_each(paths, parse, what="items", max_problems=20))


def read_labels(paths: Sequence[Path | str], *, items: Iterable[Item] | None = None) -> list[Label]:
    """Reads labels; nobody's judgement may come twice, in one file or over several.

    Args:
        paths: JSON lines, or JSON lists.
        items: What was judged; a label of anything else is refused. None does not look.

    Raises:
        MissingError: A file is not there.
        ConfigError: Rows that cannot be used, each with file and line.
    """
    known = None if items is None else {item.id for item in items}
    by_id: dict[str, str] = {}
    by_person: dict[tuple[str, str, int], str] = {}

    def parse(row: Row) -> Label:
        label = _label(row.value)
        if known is not None and label.item not in known:
            near = get_close_matches(label.item, known, n=1)
            asked = f" Did you mean {near[0]!r}?" if near else ""
            raise RowError(f"'item' is {label.item!r}, which is not among the items.{asked}".rstrip("."))
        if label.id in by_id:
            raise RowError(f"the id {label.id!r} stands at {by_id[label.id]} already; name each file and label once")
        judged = (label.item, label.annotator, label.occasion)
        if judged in by_person:
            raise RowError(
                f"{label.annotator!r} judged {label.item!r} at {by_person[judged]} already; keep the label that counts "
                "(a log without --every-revision has it alone), or give a repeat 'occasion': 1"
            )
        if label.id:
            by_id[label.id] = row.where
        by_person[judged] = row.where
        return label

    return list(read_each(paths, parse, what="labels", max_problems=20))


def write_rows(path: Path | str, records: Iterable[Item | Label]) -> None:
    """Writes items or labels as JSON lines, whole or not at all."""
    with atomic_open(path) as file:
        file.writelines(json.dumps(record.as_row(), ensure_ascii=False) + "\n" for record in records)


def parse_item(value: dict[str, Any]) -> Item:
    """The item of a JSON row.

    Raises:
        RowError: It cannot be used.
    """
    for key in ("prompt", "a", "b"):
        if key not in value:
            raise RowError(f"has the keys {', '.join(map(repr, value))}; an item must have 'prompt', 'a' and 'b'")
    prompt = _prompt(value["prompt"])
    a, b = text_of(value["a"], "'a'"), text_of(value["b"], "'b'")
    if a.strip() == b.strip():
        raise RowError("the two answers are the same; there is nothing to compare")
    gold = value.get("gold")
    if gold not in (None, "a", "b"):
        raise RowError(f"'gold' is {gold!r}; it must be 'a' or 'b', the better answer")
    uncertainty = _number(value, "uncertainty", low=0.0, high=1.0)
    return Item(
        id=str(value.get("id") or item_id(prompt, a, b)),
        prompt=prompt,
        a=a,
        b=b,
        model_a=str(value.get("model_a", "")),
        model_b=str(value.get("model_b", "")),
        round=_round(value),
        gold=gold,
        uncertainty=uncertainty,
    )


def _prompt(value: Any) -> Dialog:
    if isinstance(value, str):
        return Dialog((Message("user", text_of(value, "'prompt'")),))
    if not isinstance(value, list):
        raise RowError(f"'prompt' is {kind_of(value)}; it must be text or a list of messages")
    messages = openai_messages(value)
    check_turns(messages, ends_with=("user", "tool"))
    return Dialog(messages)


def _label(value: dict[str, Any]) -> Label:
    for key in ("item", "annotator"):
        if not isinstance(value.get(key), str) or not value[key]:
            raise RowError(f"{key!r} is {value.get(key)!r}; it must be a text")
    action: Action = _one_of(value, "action", ACTIONS, "prefer")
    given = value.get("value")
    if action == "prefer" and (type(given) is not int or given not in VALUES):
        raise RowError(f"'value' is {given!r}; allowed are -4 to 4 without 0, positive when a is better")
    if action != "prefer" and given is not None:
        raise RowError(f"'value' is {given!r} although the action is {action!r}")
    occasion = value.get("occasion", 0)
    if type(occasion) is not int or occasion not in (0, 1):
        raise RowError(f"'occasion' is {occasion!r}; it must be 0, or 1 for a repeat")
    texts = {key: str(value.get(key, "")) for key in ("note", "guideline", "id")}
    return Label(
        item=value["item"],
        annotator=value["annotator"],
        action=action,
        value=given,
        left=_one_of(value, "left", ("a", "b"), "a"),
        seconds=_number(value, "seconds", low=0.0, high=float("inf")),
        occasion=occasion,
        round=_round(value),
        edit=text_of(value["edit"], "'edit'") if value.get("edit") else None,
        reasons=tuple(str(reason) for reason in value.get("reasons") or ()),
        role=_one_of(value, "role", ROLES, "annotator"),
        time=time_of(value, "time"),
        **texts,
    )


def _round(value: dict[str, Any]) -> int:
    got = value.get("round", 1)
    if type(got) is not int or got < 1:
        raise RowError(f"'round' is {got!r}; it must be a whole number from 1")
    return got


def time_of(value: Mapping[str, Any], key: str) -> str:
    """A time of a row as it stands there, empty where it has none.

    Raises:
        RowError: It is not ISO 8601.
    """
    got = value.get(key) or ""
    try:
        if got:
            datetime.fromisoformat(got)
    except (TypeError, ValueError):
        raise RowError(f"{key!r} is {got!r}; it must be ISO 8601, for example '2026-01-02T03:04:05+00:00'") from None
    return got


def _one_of(value: dict[str, Any], key: str, allowed: Sequence[_T], default: Any) -> _T:
    got = value.get(key, default)
    if got not in allowed:
        raise RowError(f"{key!r} is {got!r}; allowed are {', '.join(map(repr, allowed))}")
    return got


def _number(value: dict[str, Any], key: str, *, low: float, high: float) -> float | None:
    got = value.get(key)
    if got is None:
        return None
    if isinstance(got, bool) or not isinstance(got, (int, float)) or not low <= got <= high:
        raise RowError(f"{key!r} is {got!r}; it must be a number from {low:g} to {high:g}")
    return float(got)
