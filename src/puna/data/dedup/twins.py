"""Who stays, who goes, and because of whom: from pairs of similar documents to decisions that name their reason.

Documents are asked in order of preference. One that is similar to a document that already stays goes, and that document
(the most similar of them) is its *twin*. So whatever goes has a twin in the corpus, and two documents that stay are
never similar. (Connected components, which others use, also remove what is only similar to something removed.)
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from puna.core.files import write_json
from puna.data.dedup.pairs import Edges
from puna.data.dedup.places import Places, table
from puna.data.document import record_place
from puna.data.documents import TableWriter
from puna.data.steps.step import Decision

Keep = Literal["first", "newest", "longest"]
CLUSTERS = "clusters.parquet"
SCHEMA = pa.schema(
    [
        ("kept", pa.string()),
        ("kept_url", pa.string()),
        ("kept_place", pa.string()),
        ("id", pa.string()),
        ("url", pa.string()),
        ("place", pa.string()),
        ("source", pa.string()),
        ("similarity", pa.float32()),
    ]
)


@dataclass(frozen=True)
class Choice:
    """The outcome over all documents.

    Attributes:
        keep: `[documents]`.
        twin: `[documents]` the number of the document that stays in its place, -1 for those that stay.
        score: `[documents]` similarity to the twin.
    """

    keep: NDArray[np.bool_]
    twin: NDArray[np.int64]
    score: NDArray[np.float32]


def choose(places: Places, edges: Edges, *, keep: Keep = "first", rank: NDArray[Any] | None = None) -> Choice:
    """Decide.

    Args:
        places: The documents.
        edges: Pairs that are similar.
        keep: The order of preference.
        rank: Another order, lower first; `keep` is then not looked at. Earlier data always comes first.

    Returns:
        The choice; it depends on the edges and the order alone.
    """
    n = places.n_documents
    keeps, twin, score = np.ones(n, dtype=bool), np.full(n, -1, dtype=np.int64), np.zeros(n, dtype=np.float32)
    touched = np.unique(np.concatenate([edges.first, edges.second]))
    if rank is not None:
        order = np.lexsort((touched, rank[touched], touched >= places.first_new))
    else:
        order = preference(places, touched, keep)
    turn = np.empty(len(touched), dtype=np.int64)
    turn[order] = np.arange(len(touched))
    sides = [np.searchsorted(touched, side) for side in (edges.first, edges.second)]
    turns = np.stack([turn[side] for side in sides])
    later, sooner = turns.max(axis=0), turns.min(axis=0)
    by_turn = touched[order]
    for at in np.lexsort((sooner, -edges.score, later)).tolist():  # of several that stay, the most similar is the twin
        goes, stays = int(by_turn[later[at]]), int(by_turn[sooner[at]])
        if keeps[stays] and keeps[goes] and goes >= places.first_new:
            keeps[goes], twin[goes], score[goes] = False, stays, edges.score[at]
    return Choice(keeps, twin, score)


def preference(places: Places, numbers: NDArray[np.int64], keep: Keep) -> NDArray[np.int64]:
    """The places in `numbers` in the order in which its documents are preferred; earlier data first."""
    new = numbers >= places.first_new
    if keep == "newest":
        value = np.array([-date_number(str(date or "")) for date in places.column("date", numbers)], dtype=np.int64)
    elif keep == "longest":
        value = -np.array([int(str(size)) for size in places.column("bytes", numbers)], dtype=np.int64)
    else:
        value = np.zeros(len(numbers), dtype=np.int64)
    return np.lexsort((numbers, value, new))


def date_number(date: str) -> int:
    """An ISO 8601 date as a number that sorts like it; 0 when it is unknown."""
    digits = "".join(character for character in date[:19] if character.isdigit())
    return int(digits.ljust(14, "0")) if digits else 0


def decisions(places: Places, choice: Choice, *, reason: str, earlier_reason: str) -> Iterator[Decision]:
    """The choice as the engine takes it, part by part.

    Args:
        places: The documents.
        choice: The outcome.
        reason: Why a document goes.
        earlier_reason: Why it goes when its twin is in earlier data.
    """
    for part in range(places.n_earlier, len(places.names)):
        here = slice(int(places.starts[part]), int(places.starts[part + 1]))
        keep, twin = choice.keep[here], choice.twin[here]
        gone = np.flatnonzero(~keep)
        ids = dict(zip(gone.tolist(), places.column("id", twin[gone]), strict=True))
        reasons = np.full(len(keep), "kept", dtype=object)
        reasons[gone] = np.where(twin[gone] < places.first_new, earlier_reason, reason)
        yield Decision(
            keep.copy(),
            reasons.tolist(),
            choice.score[here].astype(np.float64),
            twins=[str(ids.get(row, "")) for row in range(len(keep))],
        )


def _records(places: Places, numbers: NDArray[np.int64]) -> list[str]:
    """Where the records of documents lie, `file:offset`: two captures of one page have one id, never one place."""
    return [
        record_place(str(file or ""), int(str(offset)))
        for file, offset in zip(places.column("file", numbers), places.column("offset", numbers), strict=True)
    ]


def report(folder: Path, places: Places, choice: Choice, *, rows: Sequence[tuple[str, Any]] = ()) -> None:
    """Write `clusters.parquet` (one row for each document that goes) and `summary.json`.

    Args:
        folder: The step's report folder.
        places: The documents.
        choice: The outcome.
        rows: Further figures for the summary.
    """
    folder.mkdir(parents=True, exist_ok=True)
    alive = 0
    with TableWriter(folder / CLUSTERS, SCHEMA) as writer:
        writer.add(SCHEMA.empty_table())
        for part in range(places.n_earlier, len(places.names)):
            alive += int(np.count_nonzero(places.mask(part)))
            gone = np.flatnonzero(~choice.keep[places.starts[part] : places.starts[part + 1]])
            if not len(gone):
                continue
            numbers = gone + places.starts[part]
            index = table(places.index[part]).take(pa.array(gone))
            stays = choice.twin[numbers]
            writer.add(
                pa.table(
                    [
                        pa.array(places.column("id", stays), pa.string()),
                        pa.array(places.column("url", stays), pa.string()),
                        pa.array(_records(places, stays), pa.string()),
                        index.column("id").cast(pa.string()),
                        index.column("url").cast(pa.string()),
                        pa.array(_records(places, numbers), pa.string()),
                        index.column("source").cast(pa.string()),
                        pa.array(choice.score[numbers], pa.float32()),
                    ],
                    schema=SCHEMA,
                )
            )
    stays, sizes = np.unique(choice.twin[choice.twin >= 0], return_counts=True)
    summary = [
        ("documents", alive),
        *rows,
        ("documents that go", int(sizes.sum())),
        ("of them seen in earlier data", int(sizes[stays < places.first_new].sum())),
        ("clusters", len(sizes)),
        ("largest cluster", int(sizes.max() + 1) if len(sizes) else 0),
    ]
    write_json(folder / "summary.json", json.loads(json.dumps({"rows": [list(row) for row in summary]})))
