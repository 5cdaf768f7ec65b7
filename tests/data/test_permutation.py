import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from puna.data.permutation import Permutation, seed_of, shuffled


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_every_place_is_taken_once(n, seed):
    assert sorted(Permutation(n, seed)(np.arange(n)).tolist()) == list(range(n))


def test_any_part_of_the_order_can_be_computed_alone():
    permutation = Permutation(1000, 7)
    assert permutation(np.arange(400, 450)).tolist() == permutation(np.arange(1000))[400:450].tolist()


def test_seeds_and_epochs_have_their_own_order():
    orders = {tuple(Permutation(50, seed_of("epoch", "code", 0, epoch))(np.arange(50))) for epoch in range(20)}
    assert len(orders) == 20


def test_neighbours_are_torn_apart_as_in_a_random_order():
    order = Permutation(20_000, 3)(np.arange(20_000))
    # for random places the mean distance of neighbours is n/3 and its standard error n / sqrt(18 n)
    assert abs(np.abs(np.diff(order)).mean() / 20_000 - 1 / 3) < 5 / np.sqrt(18 * 20_000)
    # and no correlation with the place itself
    assert abs(np.corrcoef(order, np.arange(20_000))[0, 1]) < 5 / np.sqrt(20_000)


def test_the_order_is_the_same_on_every_machine():
    assert Permutation(10, 0)(np.arange(10)).tolist() == GOLDEN
    assert sorted(shuffled(8, 5).tolist()) == list(range(8))


GOLDEN = [3, 4, 7, 5, 9, 6, 8, 2, 1, 0]
