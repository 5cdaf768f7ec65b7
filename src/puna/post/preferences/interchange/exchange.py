"""What all forms share: what an export writes, what an import read, and what one side cannot say.

A form is a module with `write(items, labels)` and `read(path, names)`. Nothing is dropped in silence: `left_out` counts
what the other side has no place for. Names of people are not in the other tools' files, which know numbers; they stand
in `users.json` beside them.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from puna.core import files
from puna.core.errors import CorruptError, MissingError
from puna.post.dialogs import RowError, read_each
from puna.post.preferences.records import ROLES, Item, Label, Role, parse_item
from puna.post.rows import Row

USERS = "users.json"
PLAIN_STRENGTH = 3
"""Strength of a preference whose author could not say how much: `better`."""

Found = tuple[Item, list[Label]]


@dataclass(frozen=True)
class Written:
    """An export.

    Attributes:
        files: Text of each file, by its name relative to the target folder.
        left_out: What the form cannot say, with how often.
    """

    files: dict[str, str]
    left_out: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Collected:
    """An import.

    Attributes:
        items: Items, each id once.
        labels: Labels of these items.
        left_out: What was passed over, with how often.
    """

    items: list[Item]
    labels: list[Label]
    left_out: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Users:
    """Who a tool's user number stands for."""

    names: Mapping[str, str]
    roles: Mapping[str, Role]

    @classmethod
    def beside(cls, path: Path) -> "Users":
        """From the `users.json` in a file's folder; nobody is known without it.

        Raises:
            CorruptError: It is there, and is not such a file.
        """
        found = (path if path.is_dir() else path.parent) / USERS
        if not found.is_file():
            return cls({}, {})
        table = files.read_json(found)
        known = isinstance(table, dict) and all(
            isinstance(e, dict) and isinstance(e.get("name"), str) and e.get("role", "annotator") in ROLES
            for e in table.values()
        )
        if not known:
            raise CorruptError(f'{found} must be {{"number": {{"name": "...", "role": "annotator"}}}} for each user')
        return cls({k: e["name"] for k, e in table.items()}, {k: e.get("role", "annotator") for k, e in table.items()})

    def name(self, user: Any) -> str:
        """The person's name; without one, what the tool calls the user."""
        return self.names.get(str(user), str(user))

    def role(self, user: Any) -> Role:
        """Annotator, unless `users.json` says otherwise."""
        return self.roles.get(str(user), "annotator")


def users_file(labels: Sequence[Label], number: Callable[[str, int], Any]) -> tuple[dict[str, Any], str]:
    """A number for everybody, and the text of `users.json`.

    Args:
        labels: Whose.
        number: From a name and its place in the alphabet, counted from 1.
    """
    roles = {label.annotator: label.role for label in labels}
    numbers = {name: number(name, place) for place, name in enumerate(sorted(roles), 1)}
    return numbers, as_json({str(numbers[name]): {"name": name, "role": roles[name]} for name in numbers})


def as_json(value: Any) -> str:
    """Readable JSON."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def read_found(
    path: Path, parse: Callable[[Row], Sequence[Found]], *, what: str, tool: str, left_out: Counter[str]
) -> Collected:
    """Items and labels of a file; the same item in several rows is one, with the labels of all.

    Args:
        path: The file.
        parse: The items of a row, each with its labels.
        what: What the rows are, in the plural.
        tool: Who wrote them.
        left_out: What `parse` passed over. Labels are counted there that a person gave to an item before.

    Raises:
        MissingError: The file is not there.
        ConfigError: Rows that cannot be used, each with file and line (in a JSON list: entry).
    """
    if not path.is_file():
        raise MissingError(f"{path} is not there; name the file that {tool} wrote, or its folder")
    items: dict[str, Item] = {}
    labels: dict[tuple[str, str, int], Label] = {}

    def checked(row: Row) -> None:
        for item, said in parse(row):
            if items.setdefault(item.id, item) != item:
                raise RowError(f"the id {item.id!r} stands for another item in an earlier row; ids must be unique")
            for label in said:
                if labels.setdefault((label.item, label.annotator, label.occasion), label) is not label:
                    left_out["labels of a person who judged the item before"] += 1

    for _ in read_each([path], checked, what=f"{what} of {tool}", max_problems=20):
        pass
    return Collected(list(items.values()), list(labels.values()), left_out)


def file_in(path: Path, name: str) -> Path:
    """The file itself, or the one of this name in a folder."""
    return path / name if path.is_dir() else path


def item_of(values: Mapping[str, Any]) -> Item:
    """An item of the values that are there.

    Raises:
        RowError: They make no item.
    """
    return parse_item({key: value for key, value in values.items() if value not in (None, "")})


def field_of(fields: Any, name: str, names: Mapping[str, str], where: str) -> Any:
    """A field by our name, which may be called otherwise there.

    Raises:
        RowError: It is not there; the message says what is.
    """
    theirs = names.get(name, name)
    if not isinstance(fields, dict) or fields.get(theirs) is None:
        there = ", ".join(map(repr, fields)) if isinstance(fields, dict) else "no fields"
        raise RowError(f"{where} has {there}; {theirs!r} is missing. Say what it is called: --field {name}=THEIRS")
    return fields[theirs]
