"""Repeated passages: whatever run of at least 50 words was there before is cut; its first occurrence stays.

A *window* is a run of `words` words (characters where a script has no spaces). Every window that occurs twice is found,
whatever texts it is in, and every occurrence but the first in the corpus's order is cut. The exact answer would need
the hash of every window of the corpus on disk. Winnowing gives the same answer for a thirteenth of that:

1. Of each window the half-window with the least hash is its anchor; neighbouring windows mostly share one. Equal
   windows have equal anchors, so a window is repeated only if its anchor is.
2. Only windows whose anchor occurs twice are hashed, sorted and compared. Hashes have 64 bits.
3. What the repeated windows cover is cut, from the first word to the beginning of the word after the last.

Differs: Lee et al. use a suffix array and remove some or all copies; here the first stays, and no suffix array is held.

Source: Lee et al., Deduplicating Training Data Makes Language Models Better (2107.06499), section 4.1; Schleimer,
Wilkerson, Aiken, Winnowing, SIGMOD 2003.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from puna.core.files import write_json
from puna.data.dedup import earlier
from puna.data.dedup.places import Places
from puna.data.dedup.twins import Choice
from puna.data.document import Document
from puna.data.documents import list_column, numpy_column, read_arrow
from puna.data.steps.step import Barrier, Decision, Question, StepConfig
from puna.data.word_hashes import batches, mix, words_of

_BASE = 0xD6E8FEB86659FD93  # odd
_BYTES_PER_ROW = 72  # of a bucket while it is sorted
_ROW = np.dtype([("hash", "<u8"), ("document", "<i8"), ("place", "<i8")])
_WORDS_AT_ONCE = 1 << 20


class SubstringConfig(StepConfig):
    """Repeated passages, cut but for their first occurrence."""

    kind: Literal["substring"] = "substring"
    """Which kind of step this is."""
    words: int = Field(default=50, ge=4)
    """Least length of a passage, in words (characters in Chinese, Japanese, Thai ...)."""
    against: Path | None = None
    """A corpus made before with `save_index`, or a folder of such: its passages count as the first occurrence."""
    save_index: bool = False
    """Keep the words of what stays as hashes, for a later `against`: eight bytes a word."""
    memory_mib: int = Field(default=512, ge=1)
    """Memory for one bucket of hashes."""


def features(documents: Sequence[Document], config: SubstringConfig) -> Mapping[str, Any]:
    """`words`: a hash of each word; `starts`: where each begins, in characters.

    The text is not normalised, since places must fit it.
    """
    hashes: list[NDArray[np.uint32]] = []
    starts: list[NDArray[np.uint32]] = []
    for batch in batches([d.text if config.applies(d) else "" for d in documents]):
        words = words_of(batch)
        short = (words.hashes >> np.uint64(32)).astype(np.uint32)
        for low, high in zip(words.first[:-1], words.first[1:], strict=True):
            hashes.append(short[low:high])
            starts.append(words.starts[low:high].astype(np.uint32))
    lengths = np.array([len(d.text) for d in documents], dtype=np.uint32)
    return {"words": hashes, "starts": starts, "length": lengths}


def run_hashes(words: NDArray[np.uint32], n: int) -> NDArray[np.uint64]:
    """`[words - n + 1]` hash of each run of `n` words: prefix sums of `word * B^place`, divided by `B^start`."""
    if len(words) < n:
        return np.empty(0, dtype=np.uint64)
    size = len(words)
    powers = np.full(size, _BASE, dtype=np.uint64)
    inverses = np.full(size, pow(_BASE, -1, 1 << 64), dtype=np.uint64)
    powers[0] = inverses[0] = 1
    sums = np.zeros(size + 1, dtype=np.uint64)
    np.cumsum((words.astype(np.uint64) + np.uint64(1)) * np.cumprod(powers), out=sums[1:])
    return mix((sums[n:] - sums[:-n]) * np.cumprod(inverses)[: size - n + 1])


def anchors(words: NDArray[np.uint32], n: int) -> NDArray[np.int64]:
    """`[words - n + 1]` for each window of `n` words the place of its anchor, a half-window; rising."""
    half = n // 2
    hashes = run_hashes(words, half)
    if len(words) < n:
        return np.empty(0, dtype=np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(hashes, n - half + 1)
    return np.argmin(windows, axis=1) + np.arange(len(windows))


@dataclass(frozen=True)
class _PartTask:
    places: Places
    part: int
    n: int
    repeated: Path | None  # folder of repeated anchors by part; None while looking for them
    out: Path
    n_buckets: int


@dataclass(frozen=True)
class _BucketTask:
    folder: Path
    parts: int
    bucket: int
    starts: NDArray[np.int64]
    out: Path
    all_copies: bool


def decide(question: Question[SubstringConfig]) -> Iterator[Decision]:
    """Anchors, then windows, then spans."""
    config = question.config
    settings = earlier.parameters(config, ("kind",))
    places = Places.of(question.parts, question.scratch, earlier.open_indexes(config.against, "substring", settings))
    repeated = _repeats(question, places, "anchors", None)
    windows = _repeats(question, places, "windows", repeated)
    n_cut = n_documents = n_characters = 0
    for part in range(places.n_earlier, len(places.names)):
        decision = _cut(places, part, windows, config.words)
        spans = [span for span in decision.cuts or () if span is not None]
        n_documents += len(spans)
        n_cut += sum(len(span) for span in spans)
        n_characters += sum(int((span[:, 1] - span[:, 0]).sum()) for span in spans)
        yield decision
    question.report.mkdir(parents=True, exist_ok=True)
    rows = [["documents with a repeated passage", n_documents], ["passages cut", n_cut]]
    write_json(question.report / "summary.json", {"rows": [*rows, ["characters cut", n_characters]]})
    if config.save_index:
        n = places.n_documents
        choice = Choice(np.ones(n, dtype=bool), np.full(n, -1), np.zeros(n, dtype=np.float32))
        earlier.save_index(question.report / "index", question.parts, choice, places, settings)


def _repeats(question: Question[SubstringConfig], places: Places, name: str, repeated: Path | None) -> Path:
    """A folder with, for each part, the (document, place) of each anchor or window that occurs more than once."""
    folder = places.scratch / name
    folder.mkdir(parents=True, exist_ok=True)
    config, parts = question.config, len(places.names)
    words = sum(path.stat().st_size for path in places.features) // 8
    n_buckets = max(1, -(-words // 10 * _BYTES_PER_ROW // (config.memory_mib << 20)))
    tasks = [_PartTask(places, part, config.words, repeated, folder, n_buckets) for part in range(parts)]
    for _ in question.run(_hash_part, tasks):
        pass
    buckets = [
        _BucketTask(folder, parts, bucket, places.starts, folder, repeated is None) for bucket in range(n_buckets)
    ]
    for _ in question.run(_sort_bucket, buckets):
        pass
    for part in range(parts):
        found = [np.load(folder / f"repeated-{part:05d}-{bucket:04d}.npy") for bucket in range(n_buckets)]
        rows = np.concatenate(found)
        np.save(folder / f"repeated-{part:05d}.npy", rows[np.lexsort((rows[:, 1], rows[:, 0]))])
    return folder


def _hash_part(task: _PartTask) -> None:
    table = read_arrow(task.places.features[task.part])
    words, offsets = list_column(table, "words")
    documents = np.flatnonzero(task.places.mask(task.part) & (np.diff(offsets) >= task.n))
    marked = None
    if task.repeated is not None:
        marked = np.load(task.repeated / f"repeated-{task.part:05d}.npy")
        documents = np.intersect1d(documents, marked[:, 0] - task.places.starts[task.part])
    rows = [np.empty(0, dtype=_ROW)]
    for document in documents.tolist():
        text = words[offsets[document] : offsets[document + 1]]
        at = anchors(text, task.n)
        number = document + int(task.places.starts[task.part])
        if marked is None:
            at = np.unique(at)
            hashes = run_hashes(text, task.n // 2)[at]
        else:
            low, high = np.searchsorted(marked[:, 0], [number, number + 1])
            at = np.flatnonzero(np.isin(at, marked[low:high, 1]))
            hashes = run_hashes(text, task.n)[at]
        found = np.empty(len(at), dtype=_ROW)
        found["hash"], found["document"], found["place"] = hashes, number, at
        rows.append(found)
    all_rows = np.concatenate(rows)
    bucket = all_rows["hash"] % np.uint64(task.n_buckets)
    for number in range(task.n_buckets):
        np.save(task.out / f"hashes-{task.part:05d}-{number:04d}.npy", all_rows[bucket == number])


def _sort_bucket(task: _BucketTask) -> None:
    """Which hashes occur more than once: all places of them, or all but the first."""
    files = [task.folder / f"hashes-{part:05d}-{task.bucket:04d}.npy" for part in range(task.parts)]
    rows = np.concatenate([np.load(path) for path in files])
    rows = rows[np.argsort(rows["hash"], kind="stable")]  # parts, documents and places already rise
    same = np.zeros(len(rows) + 1, dtype=bool)
    same[1:-1] = rows["hash"][1:] == rows["hash"][:-1]
    chosen = rows[same[:-1] | same[1:] if task.all_copies else same[:-1]]
    part = np.searchsorted(task.starts, chosen["document"], side="right") - 1
    for number in range(task.parts):
        here = chosen[part == number]
        pairs = np.stack([here["document"], here["place"]], axis=1)
        np.save(task.out / f"repeated-{number:05d}-{task.bucket:04d}.npy", pairs)
    for path in files:
        path.unlink()


def _cut(places: Places, part: int, windows: Path, n: int) -> Decision:
    """Spans of characters for each document of a part."""
    table = read_arrow(places.features[part])
    starts, offsets = list_column(table, "starts")
    lengths = numpy_column(table, "length").astype(np.int64)
    count = table.num_rows
    rows = np.load(windows / f"repeated-{part:05d}.npy")
    rows[:, 0] -= places.starts[part]
    cuts: list[NDArray[np.int64] | None] = [None] * count
    values = np.zeros(count)
    documents, begins = np.unique(rows[:, 0], return_index=True)
    for document, begin, end in zip(documents.tolist(), begins, [*begins[1:], len(rows)], strict=False):
        places_here = rows[begin:end, 1]
        own = starts[offsets[document] : offsets[document + 1]].astype(np.int64)
        breaks = np.flatnonzero(np.diff(places_here) > n) + 1
        spans = np.array([(run[0], run[-1] + n) for run in np.split(places_here, breaks)])
        ends = np.append(own, lengths[document])  # past the last word: to the end of the text
        cuts[document] = np.stack([own[spans[:, 0]], ends[spans[:, 1]]], axis=1)
        values[document] = float((spans[:, 1] - spans[:, 0]).sum()) / len(own)
    return Decision(np.ones(count, dtype=bool), ["kept"] * count, values, cuts=cuts)


SUBSTRING = Barrier(
    config=SubstringConfig,
    features=features,
    decide=decide,
    cuts=True,
    judged_by=("words", "against", "save_index", "memory_mib"),
)
