"""Naive twins of the packing and of the loader's promises, by lists and loops."""

from collections.abc import Sequence


def pack(lengths: Sequence[int], rows: int, capacity: int) -> list[list[tuple[int, int, int]]]:
    """For each row its `(piece, begin, length)`: best-fit decreasing, then misfits cut over the largest gaps."""
    free = [capacity] * rows
    out: list[list[tuple[int, int, int]]] = [[] for _ in range(rows)]
    misfits = []
    for piece in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fitting = [(space, row) for row, space in enumerate(free) if space >= lengths[piece]]
        if not fitting:
            misfits.append(piece)
            continue
        _, row = min(fitting)
        out[row].append((piece, 0, lengths[piece]))
        free[row] -= lengths[piece]
    gaps = sorted(((space, row) for row, space in enumerate(free) if space), reverse=True)
    for piece in misfits:
        begin = 0
        while begin < lengths[piece]:
            space, row = gaps.pop(0)
            length = min(space, lengths[piece] - begin)
            out[row].append((piece, begin, length))
            begin += length
            if space > length:
                gaps.insert(0, (space - length, row))
    assert not gaps
    return [sorted(row) for row in out]
