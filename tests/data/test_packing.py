from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from puna.data.packing import pack
from tests.reference import full_row_packing as naive


@st.composite
def _windows(draw):
    rows, capacity = draw(st.integers(1, 6)), draw(st.integers(2, 40))
    left, lengths = rows * capacity, []
    while left:
        lengths.append(min(left, draw(st.integers(1, capacity))))
        left -= lengths[-1]
    return rows, capacity, lengths


@given(_windows())
def test_packing_equals_its_naive_twin(window):
    rows, capacity, lengths = window
    packing = pack(np.array(lengths), rows=rows, capacity=capacity)
    parts = list(zip(packing.pieces.tolist(), packing.begins.tolist(), packing.lengths.tolist(), strict=True))
    starts = packing.row_starts.tolist()
    ours = [parts[a:b] for a, b in pairwise(starts)]
    theirs = naive.pack(lengths, rows, capacity)
    # full rows are laid first by us; which row a piece of full length gets does not matter
    assert sorted(ours) == sorted(theirs)


@given(_windows())
def test_every_token_has_one_place_and_every_row_is_full(window):
    rows, capacity, lengths = window
    packing = pack(np.array(lengths), rows=rows, capacity=capacity)
    assert np.add.reduceat(packing.lengths, packing.row_starts[:-1]).tolist() == [capacity] * rows
    covered = [
        (piece, begin + k)
        for piece, begin, length in zip(packing.pieces, packing.begins, packing.lengths, strict=True)
        for k in range(length)
    ]
    assert sorted(covered) == [(piece, k) for piece, length in enumerate(lengths) for k in range(length)]


def test_few_documents_are_cut():
    lengths = np.minimum(np.random.default_rng(0).geometric(1 / 60, 2000) + 1, 512)
    rows = int(lengths.sum()) // 512
    lengths[-1] -= lengths.sum() - rows * 512 if lengths[-1] > lengths.sum() - rows * 512 else 0
    surplus = int(lengths.sum()) - rows * 512
    while surplus:  # shorten documents until the rows are exactly full
        at = int(lengths.argmax())
        taken = min(surplus, int(lengths[at]) - 1)
        lengths[at] -= taken
        surplus -= taken
    packing = pack(lengths, rows=rows, capacity=512)
    cut = len(packing.pieces) - len(lengths)
    assert cut < len(lengths) * 0.02  # cutting the stream at each row's end would cut one in nine
