"""Each hand-written kernel against its naive twin, values and gradients in fp64, over random shapes and documents."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.model import cpu_kernels
from puna.model.config import ModelConfig
from puna.model.layout import BLOCK, DocumentLayout
from tests.reference import transformer_naive


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def assert_same_with_gradients(actual: torch.Tensor, expected: torch.Tensor, inputs: tuple[torch.Tensor, ...]) -> None:
    torch.testing.assert_close(actual, expected)
    weights = random(*expected.shape, seed=9).detach()
    ours = torch.autograd.grad((actual * weights).sum(), inputs)
    theirs = torch.autograd.grad((expected * weights).sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("tokens", "dim"), [(1, 2), (7, 48), (300, 512)])  # the last needs several tiles
def test_rms_norm_equals_its_formula(tokens, dim):
    x, weight = random(tokens, dim), random(dim, seed=1)
    assert_same_with_gradients(
        cpu_kernels.rms_norm(x, weight, 1e-5), transformer_naive.rms_norm(x, weight, 1e-5), (x, weight)
    )


chunk_sizes = pytest.mark.parametrize("chunk_bytes", [1, 2**16, 2**30], ids=["small", "uneven", "one chunk"])


@chunk_sizes
@pytest.mark.parametrize(("tokens", "dim", "out"), [(1, 2, 3), (7, 48, 5), (300, 16, 70)])
def test_normed_linear_equals_its_formula_with_the_residual_stream(tokens, dim, out, chunk_bytes, monkeypatch):
    monkeypatch.setattr(cpu_kernels, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(cpu_kernels, "TILE", 100)
    x, weight = random(tokens, dim), random(out, dim, seed=1)
    stream, product = cpu_kernels.normed_linear(x, weight, 1e-5)
    naive = transformer_naive.rms_norm(x, torch.ones(dim).double(), 1e-5) @ weight.T
    assert_same_with_gradients(torch.cat((stream, product), 1), torch.cat((x, naive), 1), (x, weight))


@chunk_sizes
@pytest.mark.parametrize(("tokens", "dim", "ffn"), [(1, 1, 1), (5, 3, 24), (170, 16, 130)])
def test_feed_forward_equals_its_formula(tokens, dim, ffn, chunk_bytes, monkeypatch):
    monkeypatch.setattr(cpu_kernels, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(cpu_kernels, "TILE", 1000)
    x, gate_up, down = random(tokens, dim), random(2 * ffn, dim, seed=1), random(dim, ffn, seed=2)
    y = transformer_naive.rms_norm(x, torch.ones(dim).double(), 1e-5)
    naive = x + transformer_naive.swiglu(y @ gate_up.T) @ down.T
    assert_same_with_gradients(cpu_kernels.feed_forward(x, gate_up, down, 1e-5), naive, (x, gate_up, down))
    with torch.no_grad():
        torch.testing.assert_close(cpu_kernels.feed_forward(x, gate_up, down, 1e-5), naive)
    twice = cpu_kernels.feed_forward(x, gate_up, down, 1e-5).sum()
    first = torch.autograd.grad(twice, (x, down), retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(twice, (x, down)), first)


documents = st.lists(st.one_of(st.integers(1, 40), st.integers(BLOCK - 2, 2 * BLOCK + 2)), min_size=1, max_size=6)


@pytest.mark.parametrize("kept_bytes", [0, 2**30], ids=["probabilities computed twice", "probabilities kept"])
@settings(max_examples=15, deadline=None)
@given(lengths=documents, heads=st.sampled_from([(1, 1), (4, 2), (6, 2), (4, 1)]), seed=st.integers(0, 99))
def test_heads_and_attention_equal_the_naive_twin(kept_bytes, lengths, heads, seed):
    n_heads, n_kv_heads = heads
    config = ModelConfig(
        dim=8, n_layers=1, n_heads=n_heads, n_kv_heads=n_kv_heads, head_dim=6, ffn_dim=8, vocab_size=8, rope_theta=100.0
    )
    layout = DocumentLayout(lengths)
    x, weight = random(layout.n_tokens, 8, seed=seed), random((n_heads + 2 * n_kv_heads) * 6, 8, seed=seed + 1)
    angles = [[transformer_naive.angle(t, pair, config) for pair in range(3)] for t in layout.positions.tolist()]
    turn = torch.tensor(angles, dtype=torch.float64)
    fused = x @ cpu_kernels.interleave_pairs(weight, n_heads + n_kv_heads, 6).T
    before, cpu_kernels.KEPT_BYTES = cpu_kernels.KEPT_BYTES, kept_bytes
    try:
        q, k, v = cpu_kernels.split_heads(fused, turn.cos(), turn.sin(), n_kv_heads)
        actual = cpu_kernels.attention(q, k, v, layout.blocks)
    finally:
        cpu_kernels.KEPT_BYTES = before
    outputs = []
    for document in (x @ weight.T).split(lengths):
        q_SNH, k_SKH, v_SKH = document.unflatten(1, (-1, 6)).split((n_heads, n_kv_heads, n_kv_heads), dim=1)
        turned = transformer_naive.rotate(q_SNH, config), transformer_naive.rotate(k_SKH, config)
        outputs.append(transformer_naive.attention(*turned, v_SKH).flatten(1))
    assert_same_with_gradients(actual, torch.cat(outputs), (x, weight))


@given(lengths=documents)
def test_blocks_cover_every_visible_score_once_and_hide_the_rest(lengths):
    layout = DocumentLayout(lengths)
    seen = np.zeros((layout.n_tokens, layout.n_tokens), dtype=int)
    for block in layout.blocks:
        visible = np.ones((block.rows, block.columns), dtype=int)
        visible[:, block.columns - block.rows :] = (block.mask == 0).numpy()
        end = block.first_row + block.rows
        seen[block.first_row : end, block.first_key : end] += visible
        assert block.rows <= BLOCK
    document = np.repeat(np.arange(len(lengths)), lengths)
    assert (seen == np.tril(document[:, None] == document[None, :])).all()


def test_blocks_of_short_documents_stay_near_the_scores_that_are_needed():
    lengths = np.random.default_rng(0).integers(1, 257, size=200)  # mean 128
    layout = DocumentLayout(lengths)
    computed = sum(block.rows * block.columns for block in layout.blocks)
    assert layout.scores <= computed <= 2.5 * layout.scores
    assert computed < 0.05 * layout.n_tokens**2
