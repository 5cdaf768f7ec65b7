"""Sizes against the published models; counts against the modules that they describe."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.utils.flop_counter import FlopCounterMode

from puna.model.config import SIZES, ModelConfig, RopeScaling
from puna.model.transformer import Transformer


@pytest.mark.parametrize(
    ("size", "parameters"),
    [
        ("1B", 1_235_814_400),
        ("3B", 3_212_749_824),
        ("8B", 8_030_261_248),
        ("70B", 70_553_706_496),
        ("405B", 405_853_388_800),
    ],
)
def test_sizes_have_the_published_number_of_parameters(size, parameters):
    assert SIZES[size].parameters() == parameters


@pytest.mark.parametrize("size", SIZES)
def test_the_module_holds_exactly_the_counted_parameters(size):
    with torch.device("meta"):
        model = Transformer(SIZES[size])
    assert sum(p.numel() for p in model.parameters()) == SIZES[size].parameters()
    matrices = sum(p.numel() for n, p in model.named_parameters() if p.dim() == 2 and n != "embedding.weight")
    matrices += model.head_weight.numel() if model.head is None else 0
    assert matrices == SIZES[size].matmul_parameters()


def test_flops_of_8b_agree_with_both_published_conventions():
    # 0.0579 TFLOP per token (torchtitan, OLMo, llm-foundry) and 0.0515 (Megatron-LM) at 8,192 tokens
    assert round(SIZES["8B"].flops_per_token(8192, convention="full") / 1e12, 4) == 0.0579
    assert round(SIZES["8B"].flops_per_token(8192, convention="causal") / 1e12, 4) == 0.0515


@settings(max_examples=20, deadline=None)
@given(
    heads=st.sampled_from([(4, 4), (4, 2), (6, 1)]),
    head_dim=st.integers(1, 8).map(lambda n: 2 * n),
    layers=st.integers(1, 3),
    ffn_dim=st.integers(1, 40),
    tied=st.booleans(),
)
def test_flops_equal_those_that_torch_counts(heads, head_dim, layers, ffn_dim, tied):
    config = ModelConfig(
        dim=24,
        n_layers=layers,
        n_heads=heads[0],
        n_kv_heads=heads[1],
        head_dim=head_dim,
        ffn_dim=ffn_dim,
        vocab_size=30,
        tie_embeddings=tied,
    )
    model = Transformer(config)

    def attention(q: torch.Size, k: torch.Size, *rest: object, **named: object) -> int:
        return 4 * q.numel() * k[2]  # two products of queries x keys x head dim; the counter knows CUDA's only

    kernels = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}
    counter = FlopCounterMode(display=False, custom_mapping=kernels)
    with counter, pytest.MonkeyPatch.context() as patch:
        patch.setattr("puna.model.cpu_kernels.suits", lambda x: False)  # it counts PyTorch's own operations
        model(torch.zeros(2, 10, dtype=torch.long))
    assert 3 * counter.get_total_flops() == 2 * 10 * config.flops_per_token(10, convention="full")


def test_a_kv_token_of_8b_is_128_kib_in_bf16():
    assert SIZES["8B"].kv_bytes_per_token() == 128 * 1024


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_heads": 5}, "multiple of n_heads"),
        ({"n_kv_heads": 3}, "multiple of n_kv_heads"),
        ({"head_dim": 7}, "even"),
        ({"dim": 0}, "greater than 0"),
        ({"dims": 64}, "Extra inputs"),
        ({"rope_scaling": {"low_freq_factor": 4.0, "high_freq_factor": 4.0}}, "must be greater"),
    ],
)
def test_shapes_that_cannot_be_are_refused(change, words):
    shape = {"dim": 64, "n_layers": 1, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 64, "vocab_size": 64}
    with pytest.raises(ValidationError, match=words):
        ModelConfig.model_validate(shape | change)


def test_a_config_survives_being_written_and_read():
    config = ModelConfig.model_validate(SIZES["3B"].model_dump())
    assert config == SIZES["3B"] and config.rope_scaling == RopeScaling(factor=32.0)


def test_the_config_loads_no_torch():
    program = "import sys, puna.model.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
