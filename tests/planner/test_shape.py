"""Shapes and their FLOPs: exact for ours, the published counts for theirs, None for what is not dense."""

import pytest

from puna.model.config import SIZES
from puna.planner.shape import from_config, proportioned, read_shape


@pytest.mark.parametrize("size", SIZES)
def test_our_sizes_have_the_counts_of_the_model_config(size):
    shape, config = from_config(SIZES[size]), SIZES[size]
    assert shape.parameters() == config.parameters()
    assert shape.matmul_parameters() == config.matmul_parameters()
    for convention in ("full", "causal"):
        assert shape.flops_per_token(8192, convention=convention) == config.flops_per_token(8192, convention=convention)


def test_llama3_8b_has_the_published_flops_per_token():
    shape = from_config(SIZES["8B"])
    assert shape.flops_per_token(8192, convention="full") / 1e12 == pytest.approx(0.0579, abs=1e-4)
    assert shape.flops_per_token(8192, convention="causal") / 1e12 == pytest.approx(0.0515, abs=1e-4)


def test_recompute_counts_the_forward_pass_of_the_blocks_twice():
    shape = from_config(SIZES["8B"])
    full, again = (shape.flops_per_token(2048, convention=c) for c in ("full", "recompute"))
    head = 6 * shape.head_parameters
    assert again - full == pytest.approx((full - head) / 3)


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("LLAMA3.1_405B", 405.9), ("LLAMA3_70B", 70.6), ("llama2-34b", 33.7), ("GPT3-175B", 174.6),
        ("nanotron-llama-80.0B", 80.0), ("nanotron-llama-8.86B", 8.86), ("nanotron-llama-3.57B", 3.57),
        ("nanotron-llama-1.34B", 1.34), ("mpt-7b L32 d4096 N=6658859008", 6.65), ("Nemotron-340B", 341),
        ("megatron-gpt-530B L105 d20480 h128 v51200", 530), ("Nemotron-15B", 15.6), ("OLMo-2-32B", 32.2),
    ],
)  # fmt: skip
def test_published_names_give_the_published_number_of_parameters(name, billions):
    shape = read_shape(name)
    assert shape is not None
    assert shape.parameters() / 1e9 == pytest.approx(billions, rel=0.01)


@pytest.mark.parametrize(
    "name", ["DeepSeekV3", "Qwen3_30B_a3B", "GPT OSS 120B", "mixtral-8x7b", "Nemotron_3_Nano", "no size"]
)
def test_what_is_not_dense_or_cannot_be_told_has_no_shape(name):
    assert read_shape(name) is None


@pytest.mark.parametrize("billions", [0.4, 2.1, 20, 177, 462])
def test_a_size_alone_gets_a_shape_of_that_size(billions):
    assert proportioned(billions * 1e9).parameters() / 1e9 == pytest.approx(billions, rel=0.07)
