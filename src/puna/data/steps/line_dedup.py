"""Llama 3's line deduplication: a line seen more than six times in a bucket of 30 million documents goes, everywhere.

Lines are compared as ccNet does: lower case, no accents, digits as 0, no punctuation; 64 bits of a hash. Documents fall
into buckets in the corpus's order, within their language. Menus, cookie notices and sharing buttons go, and, as the
paper says of its own result, some frequent good lines too.

Source: "The Llama 3 Herd of Models" (arXiv:2407.21783), section 3.1.1; Wenzek et al. 2020 (ccNet) for the normal form.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from puna.data.document import Document
from puna.data.documents import list_column, read_arrow
from puna.data.steps.step import Barrier, Decision, Part, Question, StepConfig

_NOT_WORDS = re.compile(r"[^\w\s]|_")
_DIGIT = re.compile(r"\d")


class LineDedupConfig(StepConfig):
    """Cuts lines that occur too often."""

    kind: Literal["line_dedup"] = "line_dedup"
    """Which kind of step this is."""
    max_copies: int = Field(default=6, ge=1)
    """Lines that occur more often in a bucket are cut from all its documents."""
    bucket_documents: int = Field(default=30_000_000, ge=1)
    """Documents of a bucket."""
    min_characters: int = Field(default=1, ge=1)
    """Shorter lines (in the normal form) are left alone: lists of numbers, brackets of code."""


def normal_form(line: str) -> str:
    """A line as it is compared: ccNet's normal form."""
    text = line.strip().lower()
    if not text.isascii():
        text = "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))
    return " ".join(_NOT_WORDS.sub("", _DIGIT.sub("0", text)).split())


def _features(documents: Sequence[Document], config: LineDedupConfig) -> Mapping[str, Any]:
    hashes, starts = [], []
    for document in documents:
        mine, places, at = [], [], 0
        for line in document.text.split("\n"):
            form = normal_form(line)
            if len(form) >= config.min_characters:
                mine.append(int.from_bytes(hashlib.sha1(form.encode()).digest()[:8], "little"))
                places.append((at, at + len(line) + 1))
            at += len(line) + 1
        hashes.append(np.array(mine, dtype=np.uint64))
        starts.append(np.array(places, dtype=np.int64).reshape(-1))
    return {"hash": hashes, "place": starts, "length": np.array([len(d.text) for d in documents], dtype=np.int64)}


def _buckets(question: Question[LineDedupConfig]) -> Iterator[tuple[str, list[tuple[int, NDArray[np.bool_]]]]]:
    """Groups of documents by language and bucket, as masks over the parts they lie in."""
    languages = sorted({str(code) for part in question.parts for code in _languages(part)})
    for language in languages:
        bucket: list[tuple[int, NDArray[np.bool_]]] = []
        left = question.config.bucket_documents
        for k, part in enumerate(question.parts):
            places = np.flatnonzero(part.alive & (_languages(part) == language))
            while len(places):
                chosen = np.zeros(len(part.alive), dtype=bool)
                chosen[places[:left]] = True
                bucket.append((k, chosen))
                taken = min(left, len(places))
                places, left = places[taken:], left - taken
                if not left:
                    yield language, bucket
                    bucket, left = [], question.config.bucket_documents
        if bucket:
            yield language, bucket


def _languages(part: Part) -> NDArray[Any]:
    return np.array(read_arrow(part.index).column("language").to_pylist(), dtype=object)


def _decide(question: Question[LineDedupConfig]) -> Iterator[Decision]:
    frequent: list[list[NDArray[np.uint64]]] = [[] for _ in question.parts]
    members: list[list[NDArray[np.bool_]]] = [[] for _ in question.parts]
    for _, bucket in _buckets(question):
        hashes = [_hashes_of(question.parts[k], mask) for k, mask in bucket]
        values, counts = np.unique(np.concatenate(hashes), return_counts=True)
        often = values[counts > question.config.max_copies]
        for k, mask in bucket:
            frequent[k].append(often)
            members[k].append(mask)
    for k, part in enumerate(question.parts):
        yield _cut(part, members[k], frequent[k])


def _hashes_of(part: Part, mask: NDArray[np.bool_]) -> NDArray[np.uint64]:
    values, offsets = list_column(read_arrow(part.features), "hash")
    return values[np.repeat(mask, np.diff(offsets))].astype(np.uint64)


def _cut(part: Part, members: Sequence[NDArray[np.bool_]], frequent: Sequence[NDArray[np.uint64]]) -> Decision:
    table = read_arrow(part.features)
    values, offsets = list_column(table, "hash")
    places, _ = list_column(table, "place")
    places = places.reshape(-1, 2)
    lengths = table.column("length").to_numpy()
    goes = np.zeros(len(values), dtype=bool)
    per_document = np.diff(offsets)
    for mask, often in zip(members, frequent, strict=True):
        goes |= np.repeat(mask, per_document) & np.isin(values, often)
    n = len(part.alive)
    cuts: list[NDArray[np.int64] | None] = [None] * n
    for i in np.flatnonzero(np.diff(np.concatenate([[0], np.cumsum(goes)])[offsets])).tolist():
        mine = slice(offsets[i], offsets[i + 1])
        spans = places[mine][goes[mine]]
        cuts[i] = np.minimum(spans, lengths[i])
    return Decision(np.ones(n, dtype=bool), [""] * n, np.zeros(n), cuts=cuts)


LINE_DEDUP = Barrier(LineDedupConfig, _features, _decide, cuts=True, judged_by=("max_copies", "bucket_documents"))
