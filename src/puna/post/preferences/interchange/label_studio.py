"""Label Studio: a list of tasks with annotations, as its JSON export writes them and its import reads them.

    tasks.json          [{"data": {...}, "annotations": [{"result": [...], "completed_by": 1, "lead_time": 12.5}]}]
    label-config.xml    the page: a conversation, two texts, <Pairwise>, <Choices> for strength and reasons

`<Pairwise>` says left or right, so a task says which answer stands on the left; that side is the same for everybody.
Skipping is `was_cancelled`, test questions are annotations with `ground_truth`. Guidelines are the project's.

Source: Label Studio's task format (labelstud.io/guide/task_format), `PairwiseTag` of label-studio-sdk 2.1, whose region
names itself in `to_name`.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from html import escape
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
from puna.post.preferences.records import Action, Item, Label, Side, time_of
from puna.post.preferences.settings import REASONS
from puna.post.rows import Row

TASKS, CONFIG = "tasks.json", "label-config.xml"
LEVELS = tuple(name.replace("_", " ") for name in STRENGTHS)
FLAG = "something is wrong with this item"


def write(items: Sequence[Item], labels: Sequence[Label]) -> Written:
    """Tasks with the labels as annotations, and the labelling config that fits them."""
    numbers, users = users_file(labels, lambda _, place: place)
    said: dict[str, list[Label]] = defaultdict(list)
    for label in labels:
        said[label.item].append(label)
    left_out: Counter[str] = Counter()
    tasks = []
    for item in items:
        left = _left(item, said[item.id])
        other = sum(label.left != left for label in said[item.id])
        if other:
            left_out["sides: a task of Label Studio has one for everybody"] += other
        tasks.append(_task(item, left, said[item.id], numbers))
    reasons = list(dict.fromkeys([*REASONS, *(reason for label in labels for reason in label.reasons)]))
    found = {TASKS: as_json(tasks), CONFIG: label_config(reasons)}
    return Written(found | ({USERS: users} if labels else {}), left_out)


def _left(item: Item, labels: Sequence[Label]) -> Side:
    """The side that most annotators saw on the left; of an item without labels, the id decides."""
    if labels:
        return "a" if 2 * sum(label.left == "a" for label in labels) >= len(labels) else "b"
    return "a" if hashlib.sha256(item.id.encode()).digest()[0] % 2 else "b"


def _task(item: Item, left: Side, labels: Sequence[Label], numbers: Mapping[str, Any]) -> dict[str, Any]:
    right: Side = "b" if left == "a" else "a"
    data = {"item": item.id, "prompt": item.prompt.as_messages()}
    data |= {"left": item.answer(left), "right": item.answer(right), "left_is": left, "round": item.round}
    more = {"model_a": item.model_a, "model_b": item.model_b, "uncertainty": item.uncertainty}
    data |= {name: value for name, value in more.items() if value not in (None, "")}
    annotations = [_annotation(label, left, numbers[label.annotator], n) for n, label in enumerate(labels)]
    if item.gold:
        selected = "left" if item.gold == left else "right"
        result = [_region(f"{item.id}/gold", "side", "side", "pairwise", {"selected": selected})]
        annotations.append({"result": result, "was_cancelled": False, "ground_truth": True})
    return {"data": data, "annotations": annotations, "predictions": []}


def _annotation(label: Label, left: Side, number: Any, place: int) -> dict[str, Any]:
    name = f"{label.item}/{label.annotator}/{place}"
    result = []
    if label.winner is not None:
        selected = "left" if label.winner == left else "right"
        result.append(_region(name, "side", "side", "pairwise", {"selected": selected}))
        result.append(_region(name, "strength", "left", "choices", {"choices": [LEVELS[abs(label.value or 1) - 1]]}))
    if label.action == "flag":
        result.append(_region(name, "problem", "left", "choices", {"choices": [FLAG]}))
    if label.reasons:
        result.append(_region(name, "reasons", "left", "choices", {"choices": list(label.reasons)}))
    for tag, text in (("edit", label.edit), ("note", label.note)):
        if text:
            result.append(_region(name, tag, "left", "textarea", {"text": [text]}))
    found = {"result": result, "completed_by": number, "was_cancelled": label.action == "skip", "ground_truth": False}
    more = {"lead_time": label.seconds, "created_at": label.time or None}
    return found | {key: value for key, value in more.items() if value is not None}


def _region(name: str, tag: str, to: str, kind: str, value: Mapping[str, Any]) -> dict[str, Any]:
    short = hashlib.sha256(f"{name}/{tag}".encode()).hexdigest()[:10]
    return {"id": short, "from_name": tag, "to_name": to, "type": kind, "origin": "manual", "value": dict(value)}


def label_config(reasons: Sequence[str]) -> str:
    """The labelling config that `tasks.json` fits."""

    def choices(name: str, values: Sequence[str], more: str) -> str:
        inner = "".join(f'\n    <Choice value="{escape(value)}"/>' for value in values)
        return f'  <Choices name="{name}" toName="left" {more}>{inner}\n  </Choices>'

    return "\n".join(
        [
            "<View>",
            '  <Paragraphs name="prompt" value="$prompt" layout="dialogue" nameKey="role" textKey="content"/>',
            '  <Pairwise name="side" toName="left,right"/>',
            '  <View style="display: flex; gap: 1em">',
            '    <Text name="left" value="$left"/>',
            '    <Text name="right" value="$right"/>',
            "  </View>",
            choices("strength", LEVELS, 'choice="single"'),
            choices("reasons", reasons, 'choice="multiple"'),
            choices("problem", [FLAG], 'choice="multiple"'),
            '  <TextArea name="edit" toName="left" placeholder="a better version of the chosen answer"/>',
            '  <TextArea name="note" toName="left" placeholder="note"/>',
            "</View>",
            "",
        ]
    )


def read(path: Path, names: Mapping[str, str]) -> Collected:
    """Items and labels of an export in the form called JSON.

    Args:
        path: The file, or the folder that an export here made.
        names: What our `prompt`, `left` and `right` are called in the tasks' data, and `side` among the tags.

    Raises:
        ConfigError: Tasks that cannot be used, each with file and entry.
    """
    users = Users.beside(path)
    left_out: Counter[str] = Counter()
    found = file_in(path, TASKS)
    return read_found(
        found,
        lambda row: [_parse(row, names, users, left_out)],
        what="tasks",
        tool="Label Studio",
        left_out=left_out,
    )


def _parse(row: Row, names: Mapping[str, str], users: Users, left_out: Counter[str]) -> Found:
    task = row.value
    if not isinstance(task.get("data"), dict):
        raise RowError("a task must have 'data'; export from Label Studio as JSON, not as JSON-MIN or CSV")
    data = task["data"]
    given = {name: field_of(data, name, names, "'data'") for name in ("prompt", "left", "right")}
    left: Side = "b" if data.get("left_is") == "b" else "a"
    a, b = (given["left"], given["right"]) if left == "a" else (given["right"], given["left"])
    annotations = task.get("annotations") or []
    if not isinstance(annotations, list) or not all(isinstance(entry, dict) for entry in annotations):
        raise RowError("'annotations' must be a list of objects")
    gold = [_selected(entry, left, names) for entry in annotations if entry.get("ground_truth")]
    known = {name: data.get(name) for name in ("model_a", "model_b", "round", "uncertainty")}
    values = {"id": data.get("item"), "prompt": given["prompt"], "a": a, "b": b, "gold": gold[0] if gold else None}
    item = item_of(values | known)
    labels: list[Label] = []
    for entry in annotations:
        if entry.get("ground_truth"):
            continue
        user = _user(entry)
        before = sum(label.annotator == users.name(user) for label in labels)
        if before > 1:
            left_out["third and later answers of a person to an item"] += 1
            continue
        labels.append(_label(item, entry, left, names, users, occasion=before))
    return item, labels


def _user(entry: Mapping[str, Any]) -> str:
    user = entry.get("completed_by")
    if isinstance(user, dict):
        user = user.get("email") or user.get("username") or user.get("id")
    if user is None:
        raise RowError("an annotation has no 'completed_by': who was it?")
    return str(user)


def _label(
    item: Item, entry: Mapping[str, Any], left: Side, names: Mapping[str, str], users: Users, *, occasion: int
) -> Label:
    user = _user(entry)
    action: Action = "skip" if entry.get("was_cancelled") else "flag" if _values(entry, "problem") else "prefer"
    value = None
    if action == "prefer":
        side = _selected(entry, left, names)
        level = _values(entry, "strength")
        if level and level[0] not in LEVELS:
            raise RowError(f"'strength' is {level[0]!r}; allowed are {', '.join(map(repr, LEVELS))}")
        strength = LEVELS.index(level[0]) + 1 if level else PLAIN_STRENGTH
        value = strength if side == "a" else -strength
    seconds = entry.get("lead_time")
    edit = _values(entry, "edit")
    return Label(
        item.id,
        users.name(user),
        action=action,
        value=value,
        left=left,
        seconds=float(seconds) if isinstance(seconds, (int, float)) else None,
        occasion=occasion,
        round=item.round,
        edit=edit[0] if edit else None,
        reasons=tuple(_values(entry, "reasons")),
        note=" ".join(_values(entry, "note")),
        time=time_of(entry, "created_at"),
        role=users.role(user),
    )


def _selected(entry: Mapping[str, Any], left: Side, names: Mapping[str, str]) -> Side:
    tag = names.get("side", "side")
    regions = [r for r in _regions(entry) if r.get("type") == "pairwise" and r.get("from_name") == tag]
    value = regions[-1].get("value") if regions else None
    selected = value.get("selected") if isinstance(value, dict) else None
    if selected not in ("left", "right"):
        tags = ", ".join(sorted({repr(r.get("from_name")) for r in _regions(entry)})) or "nothing"
        raise RowError(
            f"an annotation chose {selected!r}; <Pairwise name={tag!r}> must say 'left' or 'right'. It has {tags}; say "
            "what the tag is called: --field side=THEIRS"
        )
    right: Side = "b" if left == "a" else "a"
    return left if selected == "left" else right


def _regions(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    result = entry.get("result") or []
    if not isinstance(result, list) or not all(isinstance(region, dict) for region in result):
        raise RowError("'result' of an annotation must be a list of objects")
    return result


def _values(entry: Mapping[str, Any], tag: str) -> list[str]:
    """Chosen values or texts of a tag."""
    found: list[str] = []
    for region in _regions(entry):
        if region.get("from_name") == tag and isinstance(region.get("value"), dict):
            given = region["value"].get("choices", region["value"].get("text", []))
            found += [given] if isinstance(given, str) else [str(value) for value in given]
    return found
