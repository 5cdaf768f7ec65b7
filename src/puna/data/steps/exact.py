"""Exact deduplication: the first of several equal texts stays.

Equal means equal after Unicode NFC and with every run of white space as one space. Texts are compared by 128 bits of
BLAKE2b. The first in the corpus's own order stays, so the result does not depend on the number of workers. Hashes are
looked at in buckets by their leading bits, so memory is bounded by `memory_mib` plus a few bytes a document.
"""

import hashlib
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from puna.data.document import Document
from puna.data.documents import numpy_column, read_arrow
from puna.data.steps.step import Barrier, Decision, Question, StepConfig

_BYTES_PER_HASH = 96  # of a bucket while it is sorted: hashes, places, sorting order and their copies


class ExactConfig(StepConfig):
    """The first of equal texts."""

    kind: Literal["exact"] = "exact"
    """Which kind of step this is."""
    memory_mib: int = Field(default=512, ge=1)
    """Memory for one bucket of hashes; the result does not depend on it."""


def text_hash(text: str) -> bytes:
    """16 bytes that equal texts share."""
    normal = " ".join((text if text.isascii() else unicodedata.normalize("NFC", text)).split())
    return hashlib.blake2b(normal.encode("utf-8"), digest_size=16).digest()


def _features(documents: Sequence[Document], config: ExactConfig) -> Mapping[str, Any]:
    hashes = b"".join(text_hash(document.text) for document in documents)
    return {"hash": np.frombuffer(hashes, dtype="<u8").reshape(-1, 2)}


def _decide(question: Question[ExactConfig]) -> Iterator[Decision]:
    alive = [part.alive for part in question.parts]
    starts = np.concatenate([[0], np.cumsum([len(mask) for mask in alive])]).astype(np.int64)
    n_buckets = max(1, -(-int(starts[-1]) * _BYTES_PER_HASH // (question.config.memory_mib << 20)))
    twin_of = np.full(int(starts[-1]), -1, dtype=np.int64)
    for bucket in range(n_buckets):
        hashes, places = _bucket(question, starts, bucket, n_buckets)
        order = np.lexsort((places, hashes[:, 1], hashes[:, 0]))
        ordered = hashes[order]
        repeats = np.flatnonzero((ordered[1:] == ordered[:-1]).all(axis=1)) + 1
        # of a run of equal hashes the first, in corpus order, is every other one's twin
        first = np.arange(len(order))
        first[repeats] = 0
        first = np.maximum.accumulate(first)
        twin_of[places[order[repeats]]] = places[order[first[repeats]]]
    ids = _ids(question, np.unique(twin_of[twin_of >= 0]), starts)
    for k, mask in enumerate(alive):
        twins = twin_of[starts[k] : starts[k + 1]].tolist()
        keep = np.array([twin < 0 for twin in twins])
        reasons = ["exact: duplicate"] * len(mask)
        yield Decision(keep, reasons, (~keep).astype(np.float64), [ids.get(twin, "") for twin in twins])


def _bucket(
    question: Question[ExactConfig], starts: NDArray[np.int64], bucket: int, n_buckets: int
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    hashes, places = [np.empty((0, 2), np.uint64)], [np.empty(0, np.int64)]
    for part, start in zip(question.parts, starts[:-1], strict=True):
        values = numpy_column(read_arrow(part.features), "hash")
        here = np.flatnonzero(part.alive & (values[:, 0] % np.uint64(n_buckets) == bucket))
        hashes.append(values[here])
        places.append(here + start)
    return np.concatenate(hashes), np.concatenate(places)


def _ids(question: Question[ExactConfig], wanted: NDArray[np.int64], starts: NDArray[np.int64]) -> dict[int, str]:
    """Ids of documents by their places in the whole corpus."""
    found: dict[int, str] = {}
    for k, part in enumerate(question.parts):
        mine = wanted[(wanted >= starts[k]) & (wanted < starts[k + 1])]
        if len(mine):
            column = read_arrow(part.index).column("id").combine_chunks()
            found |= dict(zip(mine.tolist(), column.take(mine - starts[k]).to_pylist(), strict=True))
    return found


EXACT = Barrier(ExactConfig, _features, _decide, judged_by=("memory_mib",))
