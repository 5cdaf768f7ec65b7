"""The formula: adds up, moves the right way, and is the same for one row and for many."""

from dataclasses import replace

import numpy as np
import pytest

from puna.planner.constants import FITTED, PRIOR
from puna.planner.fit import _stack
from puna.planner.layout import Degrees
from puna.planner.published import Published
from puna.planner.step_time import Breakdown, breakdown, row, step_seconds
from tests.planner.rows import work


def total(**changes):
    return float(step_seconds(work(**changes)).total)


def test_the_parts_add_up():
    spent = step_seconds(work("70B", "64xH100", Degrees(dp_shard=2, tp=4, pp=8), stages_per_rank=5))
    assert float(spent.total) == pytest.approx(
        sum(float(getattr(spent, name)) for name in Breakdown.__dataclass_fields__)
    )
    assert all(float(getattr(spent, name)) >= 0 for name in Breakdown.__dataclass_fields__ if name != "jitter")


def test_twice_the_batch_takes_nearly_twice_as_long():
    assert 1.9 < total(global_batch=128) / total(global_batch=64) <= 2.0


def test_recomputation_and_longer_sequences_cost():
    assert total(recompute="full") > total(recompute="selective") > total()
    assert total(seq_len=16384, global_batch=32) > total()


def test_eight_bits_are_faster_and_a_slower_card_is_slower():
    assert total(precision="fp8") < total()
    assert total(cluster="8xA100") > total() > total(cluster="8xB200") > total(cluster="8xB300")
    assert total(cluster="8xH100-96GB") > total()


def test_less_network_is_never_faster():
    fast = work(cluster="64xH100")
    slow = replace(fast, cluster=fast.cluster.with_network(200))
    assert float(step_seconds(slow).total) > float(step_seconds(fast).total)


def test_an_unseen_family_has_the_factor_one():
    given = row(work())
    unseen = replace(given, family=-1)
    ones = replace(FITTED, family_factors=(1.0,) * len(FITTED.family_factors))
    assert breakdown(unseen, FITTED).total == breakdown(given, ones).total


def test_many_rows_at_once_give_the_same_as_one_by_one():
    works = [work(), work("70B", "64xH100", Degrees(dp_shard=8, tp=8), recompute="full"), work(precision="fp8")]
    rows = [Published(1, "x", "y", w, 1.0, None) for w in works]
    together = breakdown(_stack(rows), PRIOR).total
    assert together == pytest.approx(np.array([float(step_seconds(w, PRIOR).total) for w in works]))
