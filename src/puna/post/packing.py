"""Packing: put pieces of different lengths into rows of one length, with nearly no padding.

Best-fit decreasing: the longest piece first, each into the row whose free space is the smallest that still holds it.
For dialogs, which are many and mostly short, this leaves less than one position in a hundred empty. Sorting alone would
make rows of a kind follow each other, so the order of a data set is shuffled first and cut into windows, each window is
packed for itself, and the rows of a window are shuffled again. Everything is a function of the seed, so a place in the
stream is three small numbers.

Rows with equal free space are found through one big integer used as a bitmap (bit `s` set = some row has `s` free
positions): the smallest fitting space is the lowest set bit at or above the piece's length.

Source: D. S. Johnson, "Near-optimal bin packing algorithms", 1973 (best-fit decreasing); its use for language models:
Ding et al., "Fewer truncations improve language modeling", 2024, arXiv:2404.10830, section 3.
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.core.errors import UsageError


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Packs pieces into as few rows as best-fit decreasing finds.

    Args:
        lengths: length of each piece in tokens, 1..capacity.
        capacity: length of a row in tokens.

    Returns:
        One list per row with the indices of its pieces. Every index occurs exactly once.
    """
    rows: list[list[int]] = []
    rows_with_space: list[list[int]] = [[] for _ in range(capacity + 1)]
    spaces = 0
    for piece in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        length = int(lengths[piece])
        assert 1 <= length <= capacity, f"piece {piece} has {length} tokens, a row holds 1..{capacity}"
        fitting = spaces >> length
        if fitting:
            space = length + (fitting & -fitting).bit_length() - 1
            row = rows_with_space[space].pop()
            if not rows_with_space[space]:
                spaces ^= 1 << space
            rows[row].append(piece)
        else:
            space, row = capacity, len(rows)
            rows.append([piece])
        left = space - length
        if left:
            rows_with_space[left].append(row)
            spaces |= 1 << left
    return rows


class RowStream:
    """An endless stream of packed rows, epoch after epoch, that can be left and entered at any row.

    Args:
        lengths: tokens of every piece of the data set, each 1..capacity.
        capacity: length of a row in tokens.
        rows: rows that `next_rows` gives to this process.
        window: pieces that are shuffled and packed together. Larger wastes less.
        seed: seed of the order.
        rank: number of this process.
        world: number of processes; together they see every row once, whatever their number.
    """

    def __init__(
        self,
        lengths: Sequence[int] | NDArray[np.int64],
        *,
        capacity: int,
        rows: int,
        window: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._lengths = np.asarray(lengths, dtype=np.int64)
        assert self._lengths.size > 0, "a stream needs at least one piece"
        assert 0 <= rank < world, f"rank {rank} of {world}"
        self._capacity, self._rows, self._size, self._seed = capacity, rows, window, seed
        self._rank, self._world = rank, world
        self._epoch = self._window = self._row = 0
        self._packed: tuple[int, int, list[list[int]]] | None = None

    @property
    def n_windows(self) -> int:
        """Windows of an epoch."""
        return -(-len(self._lengths) // self._size)

    @property
    def epoch(self) -> int:
        """The epoch of the next row, counted from 0."""
        return self._epoch

    def rows_in_epoch(self, epoch: int = 0) -> int:
        """How many rows an epoch has (epochs differ by a row or two, since other pieces meet)."""
        return sum(len(self._pack(epoch, window)) for window in range(self.n_windows))

    def next_rows(self) -> list[list[int]]:
        """This process's next rows, each a list of indices of pieces."""
        mine = range(self._rank * self._rows, (self._rank + 1) * self._rows)
        drawn = [self._next_row() for _ in range(self._rows * self._world)]
        return [drawn[index] for index in mine]

    def state(self) -> dict[str, Any]:
        """Where the stream stands: small, in JSON types, and the same on every rank."""
        return {"epoch": self._epoch, "window": self._window, "row": self._row, "data": self._identity()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes to a place that `state` named.

        Raises:
            UsageError: The place belongs to other data or other settings.
        """
        if state["data"] != self._identity():
            raise UsageError(
                f"the checkpoint's place in the data belongs to {state['data']}, this data is {self._identity()}. "
                "Go on with the same data and settings, or start a new run folder."
            )
        self._epoch, self._window, self._row = state["epoch"], state["window"], state["row"]

    def _identity(self) -> dict[str, int]:
        pieces = zlib.crc32(self._lengths.tobytes())
        return {"pieces": len(self._lengths), "crc32": pieces, "capacity": self._capacity} | {
            "window": self._size,
            "seed": self._seed,
        }

    def _next_row(self) -> list[int]:
        row = self._pack(self._epoch, self._window)[self._row]
        self._row += 1
        if self._row == len(self._pack(self._epoch, self._window)):
            self._row, self._window = 0, self._window + 1
        if self._window == self.n_windows:
            self._window, self._epoch = 0, self._epoch + 1
        return row

    def _pack(self, epoch: int, window: int) -> list[list[int]]:
        if self._packed is None or self._packed[:2] != (epoch, window):
            order = np.random.default_rng([self._seed, epoch]).permutation(len(self._lengths))
            pieces = order[window * self._size : (window + 1) * self._size]
            rows = best_fit_decreasing(self._lengths[pieces].tolist(), self._capacity)
            rng = np.random.default_rng([self._seed, epoch, window + 1])
            shuffled = [rows[row] for row in rng.permutation(len(rows))]
            packed = [[int(pieces[row[place]]) for place in rng.permutation(len(row))] for row in shuffled]
            self._packed = (epoch, window, packed)
        return self._packed[2]
