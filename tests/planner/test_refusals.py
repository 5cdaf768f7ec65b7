"""What the planner says no to, each with what may be."""

import pytest

from puna.core.errors import UsageError
from puna.planner.goodput import best_interval_seconds, expected_goodput
from puna.planner.hardware import read_cluster
from puna.planner.layout import Degrees, Workload
from puna.planner.published import SkipRow, read_row
from puna.planner.search import search, smaller_micro_batches
from puna.planner.shape import named_shape

ROW = {
    "model": "llama3-8b",
    "n_gpus": "8",
    "gpu": "H100",
    "seq_len": "8192",
    "global_batch_seqs": "16",
    "act_ckpt": "none",
    "tok_s_gpu": "9000",
}


@pytest.mark.parametrize(("fixed", "allowed"), [({"tp": 3}, "1, 2, 4, 8"), ({"pp": 64}, "1, 2, 4, 8")])
def test_a_degree_that_cannot_be_says_what_can(fixed, allowed):
    shape = named_shape("llama3-8b")
    assert shape is not None
    with pytest.raises(UsageError, match=rf"{next(iter(fixed))} \d+ cannot be on 8xH100.*it may be {allowed}"):
        search(shape, read_cluster("8xH100"), seq_len=8192, batch_tokens=2**22, fixed=fixed)


def test_a_cluster_has_a_largest_size():
    assert read_cluster("8XH100").n_gpus == 8
    with pytest.raises(UsageError, match="more than 1,048,576 GPUs"):
        read_cluster("999999999999xH100")


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"act_ckpt": "whatever"}, "'whatever' is not understood"),
        ({"global_batch_seqs": "12"}, "no multiple of the data-parallel ranks"),
        ({"tok_s_gpu": "1e30"}, "above the card's peak"),
        ({"tok_s_gpu": "-9000"}, "no positive number"),
        ({"tok_s_gpu": "nan"}, "no positive number"),
    ],
)
def test_a_row_that_is_not_understood_is_skipped_with_its_reason(cells, reason):
    assert read_row(ROW, 2).tokens_per_second == 9000
    with pytest.raises(SkipRow, match=reason):
        read_row(ROW | cells, 2)


def test_checkpoints_do_not_follow_each_other_faster_than_they_are_written():
    assert best_interval_seconds(0.015, 2.8, write_seconds=1.1) == pytest.approx((2 * 0.015 * 2.8 * 3600) ** 0.5)
    assert best_interval_seconds(0.015, 2.8, write_seconds=60) == 60
    given = expected_goodput(16_384, stall=0.015, interval_seconds=3600)
    assert given.interval_seconds == 3600
    assert given.share < expected_goodput(16_384, stall=0.015).share


def test_smaller_micro_batches_are_the_first_thing_to_try():
    shape = named_shape("llama3-8b")
    assert shape is not None
    work = Workload(shape, read_cluster("8xH100"), Degrees(dp_shard=8), 8192, global_batch=2048, micro_batch=128)
    found = smaller_micro_batches(work)
    assert found is not None
    smaller, needed = found
    assert needed < 80
    assert smaller.micro_batch < 128
    assert smaller.global_batch == work.global_batch
