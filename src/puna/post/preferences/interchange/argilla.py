"""Argilla 2: a dataset folder as `rg.Dataset.to_disk` writes it and `rg.Dataset.from_disk` reads it.

    .argilla/settings.json   the questions: preference, reasons, edit, note
    .argilla/dataset.json    the dataset's name
    records.json             a list of records: fields, metadata, and responses by question, each with a user

A response in `records.json` has a value and a user, no status and no time. So skipping and flagging are answers of
their own here, a person has one answer to an item (repeats are left out), and sides and seconds are not said.

Source: argilla 2.8, `datasets/_io/_disk.py`, `records/_resource.py` (`Record.to_dict`, `Record.from_dict`).
"""

import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from puna.post.dialogs import RowError
from puna.post.preference_rows import STRENGTHS
from puna.post.preferences.interchange.exchange import (
    PLAIN_STRENGTH,
    USERS,
    Collected,
    Found,
    Users,
    Written,
    as_json,
    field_of,
    file_in,
    item_of,
    read_found,
    users_file,
)
from puna.post.preferences.records import Action, Item, Label
from puna.post.preferences.settings import GUIDELINE, REASONS
from puna.post.rows import Row

RECORDS = "records.json"
_METADATA = ("round", "model_a", "model_b", "gold", "uncertainty")
_PEOPLE = uuid.UUID("5b5fd5c8-3c1f-5a0e-9d55-6a4f2f0f7f11")
"""Namespace of the user ids that are made of names."""


def write(items: Sequence[Item], labels: Sequence[Label], *, overlap: int = 3) -> Written:
    """A dataset of items with the labels as responses.

    Args:
        items: The items.
        labels: The labels; those of adjudicators are responses like others, `users.json` tells them apart.
        overlap: Different people who judge each item.
    """
    left_out: Counter[str] = Counter()
    numbers, users = users_file(labels, lambda name, _: str(uuid.uuid5(_PEOPLE, name)))
    said: dict[str, dict[str, Label]] = {}
    for label in labels:
        if label.annotator in said.setdefault(label.item, {}):
            left_out["repeats: Argilla keeps one answer of a person to an item"] += 1
            continue
        said[label.item][label.annotator] = label
        left_out["times, sides and the guideline's version of labels"] += 1
    records = [_record(item, list(said.get(item.id, {}).values()), numbers) for item in items]
    reasons = list(dict.fromkeys([*REASONS, *(reason for label in labels for reason in label.reasons)]))
    found = {
        RECORDS: as_json(records),
        ".argilla/settings.json": as_json(_settings(reasons, overlap)),
        ".argilla/dataset.json": as_json({"name": "preferences", "status": "draft"}),
    }
    return Written(found | ({USERS: users} if labels else {}), left_out)


def _record(item: Item, labels: Sequence[Label], numbers: Mapping[str, Any]) -> dict[str, Any]:
    responses: dict[str, list[dict[str, Any]]] = {}
    for label in labels:
        answers = {"preference": _answer(label), "reasons": list(label.reasons), "edit": label.edit, "note": label.note}
        for question, value in answers.items():
            if value:
                responses.setdefault(question, []).append({"value": value, "user_id": numbers[label.annotator]})
    metadata = {name: getattr(item, name) for name in _METADATA}
    return {
        "id": item.id,
        "fields": {"prompt": item.prompt.as_messages(), "a": item.a, "b": item.b},
        "metadata": {name: value for name, value in metadata.items() if value not in (None, "")},
        "suggestions": {},
        "responses": responses,
        "vectors": {},
        "status": "pending",
        "_server_id": None,
    }


def _answer(label: Label) -> str:
    return label.action if label.winner is None else f"{label.winner}-{abs(label.value or 0)}"


def _settings(reasons: Sequence[str], overlap: int) -> dict[str, Any]:
    levels = [(f"a-{n}", f"a is {STRENGTHS[n - 1].replace('_', ' ')}") for n in (4, 3, 2, 1)]
    levels += [(f"b-{n}", f"b is {STRENGTHS[n - 1].replace('_', ' ')}") for n in (1, 2, 3, 4)]
    levels += [("skip", "I cannot decide"), ("flag", "something is wrong with this item")]
    choices = [{"value": value, "text": text} for value, text in levels]
    ticks = [{"value": reason, "text": reason} for reason in reasons]
    return {
        "guidelines": GUIDELINE,
        "questions": [
            _question("preference", "Which answer is better?", {"type": "label_selection", "options": choices}, True),
            _question(
                "reasons",
                "Why?",
                {"type": "multi_label_selection", "options": ticks, "options_order": "natural"},
                False,
            ),
            _question("edit", "A better version of it", {"type": "text", "use_markdown": False}, False),
            _question("note", "Note", {"type": "text", "use_markdown": False}, False),
        ],
        "fields": [
            _field("prompt", "Conversation", {"type": "chat", "use_markdown": False}),
            _field("a", "Answer a", {"type": "text", "use_markdown": False}),
            _field("b", "Answer b", {"type": "text", "use_markdown": False}),
        ],
        "vectors": [],
        "metadata": [
            _metadata("round", "integer"),
            *(_metadata(name, "terms") for name in ("model_a", "model_b", "gold")),
            _metadata("uncertainty", "float"),
        ],
        "allow_extra_metadata": False,
        "distribution": {"strategy": "overlap", "min_submitted": overlap},
        "mapping": None,
    }


def _question(name: str, title: str, settings: Mapping[str, Any], required: bool) -> dict[str, Any]:
    return {"name": name, "title": title, "required": required, "type": settings["type"], "settings": dict(settings)}


def _field(name: str, title: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": name, "title": title, "required": True, "type": settings["type"], "settings": dict(settings)}


def _metadata(name: str, kind: str) -> dict[str, Any]:
    hidden = {"visible_for_annotators": False}  # who wrote an answer would bias whoever judges it
    return {"name": name, "title": name, **hidden, "settings": {"type": kind, **hidden}}


def read(path: Path, names: Mapping[str, str]) -> Collected:
    """Items and labels of a dataset's records.

    Args:
        path: `records.json`, or its folder.
        names: What our `prompt`, `a`, `b` and `preference` are called there.

    Raises:
        ConfigError: Records that cannot be used, each with file and entry.
    """
    users = Users.beside(path)
    return read_found(
        file_in(path, RECORDS),
        lambda row: [_parse(row, names, users)],
        what="records",
        tool="Argilla",
        left_out=Counter(),
    )


def _parse(row: Row, names: Mapping[str, str], users: Users) -> Found:
    fields, metadata = row.value.get("fields"), row.value.get("metadata") or {}
    given = {name: field_of(fields, name, names, "'fields'") for name in ("prompt", "a", "b")}
    known = {name: metadata.get(name) for name in _METADATA}
    item = item_of({"id": row.value.get("id"), **given, **known})
    responses = row.value.get("responses") or {}
    if not isinstance(responses, dict):
        raise RowError("'responses' must be an object of lists, one for each question")
    answers: dict[str, dict[str, Any]] = {}
    for question, said in responses.items():
        for response in said or ():
            if not isinstance(response, dict) or "value" not in response or not response.get("user_id"):
                raise RowError(f"a response to {question!r} is {response!r}; it must have 'value' and 'user_id'")
            answers.setdefault(str(response["user_id"]), {})[question] = response["value"]
    asked = names.get("preference", "preference")
    return item, [_label(item, user, said, asked, users) for user, said in answers.items() if asked in said]


def _label(item: Item, user: str, said: Mapping[str, Any], asked: str, users: Users) -> Label:
    value, action = _value(said[asked])
    return Label(
        item.id,
        users.name(user),
        action=action,
        value=value,
        round=item.round,
        edit=str(said["edit"]) if said.get("edit") else None,
        reasons=tuple(map(str, said.get("reasons") or ())),
        note=str(said.get("note") or ""),
        role=users.role(user),
    )


def _value(answer: Any) -> tuple[int | None, Action]:
    if answer in ("skip", "flag"):
        return None, answer
    side, _, level = str(answer).partition("-")
    if side not in ("a", "b") or (level and level not in ("1", "2", "3", "4")):
        raise RowError(
            f"the preference is {answer!r}; allowed are 'a' or 'b', with a strength as in 'a-4', and 'skip' and 'flag'"
        )
    strength = int(level) if level else PLAIN_STRENGTH
    return (strength if side == "a" else -strength), "prefer"
