import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.core.errors import UsageError
from puna.post.packing import RowStream, best_fit_decreasing

LENGTHS = st.lists(st.integers(1, 64), min_size=1, max_size=60)


def naive_best_fit(lengths, capacity):
    rows = []
    for piece in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fitting = [row for row in rows if sum(lengths[i] for i in row) + lengths[piece] <= capacity]
        if fitting:
            max(fitting, key=lambda row: sum(lengths[i] for i in row)).append(piece)
        else:
            rows.append([piece])
    return rows


@given(LENGTHS)
def test_packing_uses_as_many_rows_as_the_naive_twin_and_loses_no_piece(lengths):
    rows, naive = best_fit_decreasing(lengths, 64), naive_best_fit(lengths, 64)
    assert sorted(piece for row in rows for piece in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 64 for row in rows)
    assert sorted(sum(lengths[i] for i in row) for row in rows) == sorted(sum(lengths[i] for i in row) for row in naive)


def test_many_short_pieces_leave_next_to_no_padding():
    lengths = np.random.default_rng(0).integers(20, 120, 4096)
    rows = best_fit_decreasing(lengths.tolist(), 512)
    assert lengths.sum() / (512 * len(rows)) > 0.99


def stream(lengths, **changes):
    return RowStream(lengths, **({"capacity": 64, "rows": 2, "window": 16, "seed": 1} | changes))


@given(LENGTHS, st.integers(1, 5), st.integers(1, 20))
def test_an_epoch_holds_every_piece_once(lengths, rows, window):
    packed = stream(lengths, rows=1, window=window)
    drawn = [packed.next_rows()[0] for _ in range(packed.rows_in_epoch())]
    assert sorted(piece for row in drawn for piece in row) == list(range(len(lengths)))
    assert packed.epoch == 1


def test_epochs_differ_and_seeds_differ_and_equal_seeds_agree():
    lengths = list(range(1, 61))
    first, again, other = stream(lengths, rows=1), stream(lengths, rows=1), stream(lengths, rows=1, seed=2)
    n = first.rows_in_epoch()
    epochs = [[first.next_rows() for _ in range(n)] for _ in range(2)]
    assert epochs[0] != epochs[1]
    assert [again.next_rows() for _ in range(n)] == epochs[0] != [other.next_rows() for _ in range(n)]


@given(LENGTHS, st.integers(0, 40))
def test_restoring_a_state_goes_on_with_the_same_rows(lengths, skipped):
    packed = stream(lengths)
    for _ in range(skipped):
        packed.next_rows()
    state = packed.state()
    entered = stream(lengths)
    entered.restore(state)
    assert [packed.next_rows() for _ in range(8)] == [entered.next_rows() for _ in range(8)]


def test_ranks_share_the_rows_that_one_process_would_see():
    lengths = list(range(1, 61))
    alone = stream(lengths, rows=4)
    ranks = [stream(lengths, rows=2, rank=rank, world=2) for rank in range(2)]
    for _ in range(12):
        assert alone.next_rows() == [row for rank in ranks for row in rank.next_rows()]
    assert alone.state() == ranks[0].state() == ranks[1].state()


def test_a_state_of_other_data_is_refused():
    with pytest.raises(UsageError, match="belongs to"):
        stream([1, 2, 4]).restore(stream([1, 2, 3]).state())
