"""Amounts against counting by hand."""

import pytest

from puna.planner.layout import STACKS, Degrees
from puna.planner.work import amounts, stage_layers
from tests.planner.rows import work


def test_products_and_head_are_six_flops_a_weight_and_token():
    given = work(micro_batch=2)
    found, shape = amounts(given), given.shape
    assert found.product_flops + found.head_flops == 6 * 2 * 8192 * shape.matmul_parameters()


def test_attention_is_the_causal_half_times_three_and_a_half():
    found, shape = amounts(given := work()), given.shape
    forward = 2 * shape.n_layers * shape.query_dim * 8192 * 8192
    assert found.attention_flops == 3.5 * forward


def test_tensor_parallel_ranks_share_all_flops():
    whole, half = amounts(work()), amounts(work(degrees=Degrees(dp_shard=4, tp=2)))
    assert half.product_flops == whole.product_flops / 2
    assert half.attention_flops == whole.attention_flops / 2


def test_full_recomputation_is_one_more_forward_pass():
    found = amounts(work(recompute="full"))
    assert found.repeat_product_flops == found.product_flops / 3


def test_a_gather_over_a_node_takes_the_weights_twice_and_the_gradients_once():
    given = work()
    bandwidth, weights = given.cluster.gpu.link_bandwidth, given.shape.parameters()
    expected = 7 / 8 * weights * (2 + 2 + 4) / bandwidth
    assert amounts(given).fsdp_seconds == pytest.approx(expected, rel=0.001)


def test_a_group_with_one_member_a_node_has_one_port():
    inside, across = (
        amounts(work("70B", "64xH100", Degrees(dp_shard=8, tp=8), zero=1, global_batch=64)),
        amounts(work("70B", "64xH100", Degrees(dp_shard=64), zero=1)),
    )
    gpu = work("70B", "64xH100").cluster.gpu
    assert inside.step_seconds == pytest.approx(
        7 / 8 * work("70B").shape.parameters() / 8 * 6 / gpu.network_bandwidth, rel=0.001
    )
    assert across.step_seconds > inside.step_seconds


@pytest.mark.parametrize(
    ("size", "pp", "pieces", "layers", "head"),
    [
        ("405B", 16, 8, 8, 0.0),
        ("405B", 16, 1, 8, 0.0),
        ("70B", 8, 5, 10, 1.0),
        ("8B", 1, 1, 32, 1.0),
        ("8B", 5, 1, 7, 0.0),
    ],
)
def test_the_fullest_pipeline_rank(size, pp, pieces, layers, head):
    given = work(size, "16384xH100", Degrees(dp_shard=1, pp=pp), stages_per_rank=pieces)
    assert stage_layers(given) == (layers, head)


def test_the_bubble_shrinks_with_interleaving():
    plain, woven = (
        amounts(work("70B", "64xH100", Degrees(dp_shard=8, pp=8), stages_per_rank=v, micro_batch=1)) for v in (1, 5)
    )
    assert (plain.bubble, woven.bubble) == (7, 1.4)
    assert woven.pp_seconds == pytest.approx(5 * plain.pp_seconds)


def test_scores_go_through_memory_only_without_a_fused_kernel():
    assert amounts(work()).score_bytes == 0
    assert amounts(work(stack=STACKS["megatron-2021"])).score_bytes > 0


def test_torch_moves_keys_of_every_query_head_and_others_those_that_there_are():
    layout = Degrees(dp_shard=1, cp=8)
    ours, theirs = (amounts(work(degrees=layout, stack=STACKS[name])) for name in ("puna", "torch-compile"))
    assert theirs.cp_seconds == pytest.approx(4 * ours.cp_seconds)  # 8B has 4 query heads a key head


def test_a_scale_from_the_values_reads_them_once_more():
    once, twice = (amounts(work(precision="fp8", stack=STACKS[name])) for name in ("nvidia", "torch-compile"))
    assert twice.cast_bytes == pytest.approx(1.5 * once.cast_bytes)
