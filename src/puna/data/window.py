"""A source as an endless stream of full rows: shuffled, packed in windows, and resumable from four numbers.

The documents of an epoch come in the order of a computed permutation; epoch follows epoch without a seam. A
*window* is the next `window_rows * sequence_length` tokens of that stream. Its documents are packed into its rows
(see `packing.py`), and the rows are shuffled. A document that the window's end cuts goes on in the next window.

A cursor `(index, epoch, place, offset)` says where a window begins: its number, the epoch, the place in the epoch's
order and the tokens of that document already taken. The window is a function of the cursor, so the cursor is all
that needs to be saved. A process that wants none of a window's rows walks over its lengths and packs nothing.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.core.batch import IGNORE
from puna.data.packing import pack
from puna.data.permutation import Permutation, seed_of, shuffled
from puna.data.shards import TokenSource


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a window begins.

    Attributes:
        index: Number of the window.
        epoch: Epoch of its first token.
        place: Place in the epoch's order of its first document.
        offset: Tokens of that document that the windows before took.
    """

    index: int = 0
    epoch: int = 0
    place: int = 0
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Pieces:
    """Spans of documents, none longer than a row.

    Attributes:
        shards: `[pieces]` which of the source's shards.
        starts: `[pieces]` first token in the shard.
        stops: `[pieces]` one past the last token.
        final: `[pieces]` whether the piece ends its document.
    """

    shards: NDArray[np.int64]
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    final: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its pieces, in order.

    Attributes:
        spans: For each piece shard, first token, and one past the last.
        lengths: `[pieces]` int64; they sum to a row.
        following: `[pieces]` int64: the token after each piece in its document, or `IGNORE` where the document ends.
    """

    spans: list[tuple[int, int, int]]
    lengths: NDArray[np.int64]
    following: NDArray[np.int64]


class SourceStream:
    """The rows of one source.

    Args:
        source: The tokens.
        sequence_length: Tokens of a row.
        window_rows: Rows packed together; fewer when the source is smaller.
        seed: Seed of the order.
    """

    def __init__(self, source: TokenSource, *, sequence_length: int, window_rows: int, seed: int) -> None:
        self.source = source
        self.window_rows = max(1, min(window_rows, source.n_tokens // sequence_length))
        self._capacity = sequence_length
        self._seed = seed
        self._permutation: tuple[int, Permutation] | None = None
        self.rows_read = 0
        self._begin = self._next = Cursor()
        self._taken: list[NDArray[np.int64]] = []
        self._packed: tuple[Row, list[int]] | None = None

    @property
    def epochs(self) -> float:
        """How often the source has been read, in tokens over tokens."""
        return self.rows_read * self._capacity / self.source.n_tokens

    def state(self) -> dict[str, int]:
        """Everything that `restore` needs."""
        cursor = self._next if self.rows_read // self.window_rows == self._next.index else self._begin
        return {
            "rows": self.rows_read,
            "window": cursor.index,
            "epoch": cursor.epoch,
            "place": cursor.place,
            "offset": cursor.offset,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.rows_read = int(state["rows"])
        self._begin = self._next = Cursor(*(int(state[key]) for key in ("window", "epoch", "place", "offset")))
        self._taken, self._packed = [], None

    def skip_row(self) -> None:
        """Pass over the next row."""
        self._enter_window()
        self.rows_read += 1

    def next_row(self) -> Row:
        """The next row."""
        self._enter_window()
        if self._packed is None:
            self._packed = self._pack()
        window, row_starts = self._packed
        row = self.rows_read % self.window_rows
        self.rows_read += 1
        parts = slice(row_starts[row], row_starts[row + 1])
        return Row(window.spans[parts], window.lengths[parts], window.following[parts])

    def _enter_window(self) -> None:
        if self.rows_read // self.window_rows == self._next.index:
            self._begin = self._next
            self._walk()

    def _walk(self) -> None:
        """Take a window's tokens from the stream: documents as spans, and the cursor of the next window."""
        cursor, needed = self._begin, self.window_rows * self._capacity
        epoch, place, offset = cursor.epoch, cursor.place, cursor.offset
        mean = self.source.n_tokens / self.source.n_documents
        taken: list[NDArray[np.int64]] = []
        while needed:
            count = min(int(needed / mean) + 16, self.source.n_documents - place)
            shards, starts, stops = self.source.spans(self._order(epoch)(np.arange(place, place + count)))
            starts[0] += offset
            ends = np.cumsum(stops - starts)
            used = int(np.searchsorted(ends, needed)) + 1
            if used <= count:  # the window ends in or just after document `used - 1`
                surplus = int(ends[used - 1]) - needed
                final = np.ones(used, dtype=np.int64)
                final[-1] = surplus == 0
                cut = stops[:used].copy()
                cut[-1] -= surplus
                offset = int(cut[-1] - starts[used - 1]) + (offset if used == 1 else 0) if surplus else 0
                place += used - (surplus > 0)
                taken.append(np.stack([shards[:used], starts[:used], cut, final]))
                needed = 0
            else:
                taken.append(np.stack([shards, starts, stops, np.ones(count, dtype=np.int64)]))
                needed -= int(ends[-1])
                offset, place = 0, place + count
            if place == self.source.n_documents:
                epoch, place = epoch + 1, 0
        self._taken, self._packed = taken, None
        self._next = Cursor(cursor.index + 1, epoch, place, offset)

    def _order(self, epoch: int) -> Permutation:
        if self._permutation is None or self._permutation[0] != epoch:
            seed = seed_of("epoch", self.source.name, self._seed, epoch)
            self._permutation = epoch, Permutation(self.source.n_documents, seed)
        return self._permutation[1]

    def _pack(self) -> tuple[Row, list[int]]:
        """The parts of the window in the order in which they are read, and where each row begins among them."""
        shards, starts, stops, final = np.concatenate(self._taken, axis=1)
        pieces = split_long(Pieces(shards, starts, stops, final.astype(bool)), self._capacity)
        packing = pack(pieces.stops - pieces.starts, rows=self.window_rows, capacity=self._capacity)
        order = shuffled(self.window_rows, seed_of("rows", self.source.name, self._seed, self._begin.index))
        counts = np.diff(packing.row_starts)[order]
        row_starts = np.concatenate([[0], np.cumsum(counts)])
        parts = np.arange(row_starts[-1]) + np.repeat(packing.row_starts[order] - row_starts[:-1], counts)
        chosen = packing.pieces[parts]
        starts = pieces.starts[chosen] + packing.begins[parts]
        stops = starts + packing.lengths[parts]
        final = pieces.final[chosen] & (stops == pieces.stops[chosen])
        shards = pieces.shards[chosen]
        following = np.full(len(parts), IGNORE, dtype=np.int64)
        for part in np.flatnonzero(~final).tolist():  # few: most documents stay whole
            following[part] = self.source.tokens[shards[part]][stops[part]]
        spans = list(zip(shards.tolist(), starts.tolist(), stops.tolist(), strict=True))
        return Row(spans, stops - starts, following), row_starts.tolist()


def split_long(pieces: Pieces, capacity: int) -> Pieces:
    """Cut pieces longer than a row into full rows and a rest; only the last part of a document's end is final."""
    counts = -(-(pieces.stops - pieces.starts) // capacity)
    if counts.max() == 1:
        return pieces
    owner = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = pieces.starts[owner] + number * capacity
    stops = np.minimum(starts + capacity, pieces.stops[owner])
    return Pieces(pieces.shards[owner], starts, stops, pieces.final[owner] & (stops == pieces.stops[owner]))
