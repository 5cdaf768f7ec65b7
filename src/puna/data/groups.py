"""Groups: a source packed by language, domain or a field of its records, so that a mix can weigh its parts.

Packed with `group_by = ["language"]`, the source `crawl` reads as `crawl/de`, `crawl/en`, ...: sources of their own for
weights, shares, floors, caps and the loader's state. A shard stays one file: its documents are sorted by group, and
its entry in the manifest says how many documents and tokens each group has, in that order. So a hundred languages make
no more files than one, and the way back from a token to its document is the same.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator

from puna.core.errors import PunaError
from puna.data.document import Document

UNKNOWN = "unknown"
MOST_GROUPS = 4096  # of a shard: more are titles or addresses, not groups
_FIELDS = ("language", "domain", "licence")


def _known_field(value: str) -> str:
    if value not in _FIELDS and not re.fullmatch(r"metadata\.\S+", value):
        raise ValueError(f"{value!r} is no field to group by; they are {', '.join(_FIELDS)} and metadata.NAME")
    return value


GroupField = Annotated[str, AfterValidator(_known_field)]


def group_of(document: Document, fields: Sequence[str]) -> str:
    """Name of a document's group: the values of the fields with `/` between them.

    Values are lower case, and what is not a letter, a digit or one of `+ # . _ -` becomes a dash: a name can stand in a
    glob pattern and in a recipe. An absent value is `unknown`.
    """
    values = []
    for field in fields:
        kind, _, key = field.partition(".")
        value = document.metadata.get(key) if key else getattr(document, kind)
        text = "" if value is None else str(value)
        values.append(re.sub(r"[^\w+#.]+", "-", text.lower()).strip("-") or UNKNOWN)
    return "/".join(values)


class GroupSorter:
    """Holds the documents of one shard until it is full, and gives them out group by group.

    Args:
        fields: What they are grouped by.
    """

    def __init__(self, fields: Sequence[str]) -> None:
        self._fields = fields
        self._held: dict[str, list[tuple[Document, NDArray[np.uint32]]]] = {}

    def add(self, document: Document, tokens: NDArray[np.uint32]) -> None:
        """Hold a document.

        Raises:
            PunaError: There are more groups than anybody weighs.
        """
        self._held.setdefault(group_of(document, self._fields), []).append((document, tokens))
        if len(self._held) > MOST_GROUPS:
            raise PunaError(
                f"group_by = {list(self._fields)} makes more than {MOST_GROUPS} groups of the source "
                f"{document.source!r}. Group by a field that has few values."
            )

    def sorted(self) -> list[tuple[str, list[tuple[Document, NDArray[np.uint32]]]]]:
        """Groups by name, each with its documents in the order in which they came."""
        return sorted(self._held.items())


def empty_fields(fields: Sequence[str], names: Iterable[str]) -> list[str]:
    """Fields that no document had, by the names of all groups: most likely a typing error.

    Args:
        fields: What was grouped by.
        names: Names of groups, without their source.
    """
    values = [name.split("/") for name in names]
    return [field for i, field in enumerate(fields) if values and all(parts[i] == UNKNOWN for parts in values)]


def group_names(record: dict[str, Any]) -> list[str]:
    """Names under which a shard's documents are read: its source, or the groups of its source."""
    return [f"{record['source']}/{group['name']}" for group in record.get("groups", ())] or [record["source"]]


def group_spans(record: dict[str, Any]) -> list[tuple[int, int, int]]:
    """For each of `group_names` the first document, and how many documents and tokens."""
    spans, first = [], 0
    for group in record.get("groups", ()):
        spans.append((first, group["documents"], group["tokens"]))
        first += group["documents"]
    return spans or [(0, record["documents"], record["tokens"])]
