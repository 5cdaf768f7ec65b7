"""Packing pieces of documents into rows that are full to the last token.

The pieces of a window hold exactly as many tokens as its rows, so nothing needs padding: best-fit decreasing lays
each piece, longest first, into the fullest row that still holds it, and the few pieces for which no row has space
are cut to fill the gaps that are left. Most documents stay whole; every token has a place.

Source: Ding et al., "Fewer Truncations Improve Language Modeling", 2024, arXiv:2404.10830, section 3.
Differs: the rows are fixed in number and full; a piece that fits nowhere is cut instead of opening another row.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Packing:
    """Where the parts of pieces lie: part i is `lengths[i]` tokens of piece `pieces[i]` from its token `begins[i]` on.

    Attributes:
        pieces: `[parts]` int64, sorted by row, and in a row by piece.
        begins: `[parts]` int64.
        lengths: `[parts]` int64.
        row_starts: `[rows + 1]` int64: row r holds the parts `row_starts[r] : row_starts[r + 1]`.
    """

    pieces: NDArray[np.int64]
    begins: NDArray[np.int64]
    lengths: NDArray[np.int64]
    row_starts: NDArray[np.int64]


def pack(lengths: NDArray[np.int64], *, rows: int, capacity: int) -> Packing:
    """Fill `rows` rows of `capacity` tokens with pieces.

    Args:
        lengths: `[pieces]` int64, each in `1 ... capacity`; their sum is `rows * capacity`.
        rows: Number of rows.
        capacity: Tokens of a row.

    Returns:
        The parts; a piece that was not cut is one part.
    """
    assert int(lengths.sum()) == rows * capacity, f"{lengths.sum()} tokens do not fill {rows} rows of {capacity}"
    order = np.argsort(-lengths, kind="stable")
    n_full = int(np.count_nonzero(lengths == capacity))
    whole, whole_rows, free, misfits = _best_fit(order[n_full:].tolist(), lengths, range(n_full, rows), capacity)
    cut = _fill_gaps(misfits, lengths, free)
    pieces = np.array([*order[:n_full].tolist(), *whole, *(part[0] for part in cut)], dtype=np.int64)
    in_row = np.array([*range(n_full), *whole_rows, *(part[3] for part in cut)], dtype=np.int64)
    begins = np.zeros(len(pieces), dtype=np.int64)
    sizes = lengths[pieces]
    if cut:
        begins[-len(cut) :] = [part[1] for part in cut]
        sizes[-len(cut) :] = [part[2] for part in cut]
    by_row = np.lexsort((begins, pieces, in_row))
    row_starts = np.searchsorted(in_row[by_row], np.arange(rows + 1))
    return Packing(pieces[by_row], begins[by_row], sizes[by_row], row_starts.astype(np.int64))


def _best_fit(
    order: list[int], lengths: NDArray[np.int64], rows: range, capacity: int
) -> tuple[list[int], list[int], list[tuple[int, int]], list[int]]:
    """Lay pieces, given longest first, into rows. Returns placed pieces, their rows, `(free, row)` left, misfits."""
    # One sorted list of `free * scale + row`: a bisection finds the tightest row, and there are few rows in a window.
    scale = rows.stop + 1
    spaces = [capacity * scale + row for row in rows]
    placed: list[int] = []
    placed_rows: list[int] = []
    misfits: list[int] = []
    sizes = lengths[order].tolist() if order else []
    for piece, size in zip(order, sizes, strict=True):
        need = size * scale
        at = bisect_left(spaces, need)
        if at == len(spaces):
            misfits.append(piece)
            continue
        space = spaces.pop(at)
        placed.append(piece)
        placed_rows.append(space % scale)
        if space - need >= scale:
            insort(spaces, space - need)
    return placed, placed_rows, [divmod(space, scale) for space in spaces], misfits


def _fill_gaps(
    misfits: list[int], lengths: NDArray[np.int64], free: list[tuple[int, int]]
) -> list[tuple[int, int, int, int]]:
    """Cut the misfits, in order, over the gaps, largest first. Returns `(piece, begin, length, row)`."""
    parts: list[tuple[int, int, int, int]] = []
    gaps = sorted(free, reverse=True)
    at = 0
    space, row = gaps[0] if gaps else (0, 0)
    for piece in misfits:
        begin, size = 0, int(lengths[piece])
        while begin < size:
            length = min(space, size - begin)
            parts.append((piece, begin, length, row))
            begin += length
            space -= length
            if not space and at + 1 < len(gaps):
                at += 1
                space, row = gaps[at]
    return parts
