"""A prompt computed once with several answers behind it equals each answer with its own copy of the prompt."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.model import tree_attention
from puna.model.attention import attend_documents
from puna.model.config import ModelConfig
from puna.model.init import init_weights
from puna.model.layout import BLOCK, DocumentLayout
from puna.model.transformer import Transformer

trees = st.lists(st.lists(st.integers(1, 2 * BLOCK + 40), min_size=1, max_size=5), min_size=1, max_size=6)


def layout_of(shape):
    """`[[stem, branch, branch], [document]]` as a layout."""
    lengths, stems = [], []
    for root, *branches in shape:
        number = len(lengths)
        lengths += [root, *branches]
        stems += [-1, *[number] * len(branches)]
    return DocumentLayout(lengths, stems=stems)


def visible(layout):
    """Which key each query sees, from the definition."""
    piece = np.repeat(np.arange(len(layout.lengths)), layout.lengths)
    stem = layout.stems[piece]
    return np.tril((piece[:, None] == piece) | (stem[:, None] == piece))


@settings(max_examples=60, deadline=None)
@given(shape=trees)
def test_blocks_cover_every_visible_score_once_and_hide_the_rest(shape):
    layout = layout_of(shape)
    seen = np.zeros((layout.n_tokens, layout.n_tokens), dtype=int)
    for block in layout.blocks:
        shown = np.ones((block.rows, block.columns), dtype=int)
        shown[:, block.columns - block.rows :] = (block.mask == 0).numpy()
        start, length = block.stem
        rows = slice(block.first_row, block.first_row + block.rows)
        seen[rows, start : start + length] += shown[:, :length]
        seen[rows, block.first_key : block.first_key + block.columns - length] += shown[:, length:]
        assert block.rows <= BLOCK
    assert (seen == visible(layout)).all()
    assert layout.scores == visible(layout).sum()


def tiny(dtype=torch.float64):
    config = ModelConfig(dim=16, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=24, vocab_size=64)
    return init_weights(Transformer(config), 0).to(dtype)


@pytest.mark.parametrize("shape", [[[5, 3, 4]], [[9], [300, 20, 150, 30, 90], [3, 1, 1, 1]], [[7, 140, 2], [4]]])
@pytest.mark.parametrize("traced", [False, True])
def test_a_tree_equals_each_branch_behind_its_own_copy_of_the_stem(shape, traced, monkeypatch):
    if traced:  # the way of every device but a plain CPU
        monkeypatch.setattr("puna.model.cpu_kernels.suits", lambda x: False)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if traced else {"rtol": 1e-9, "atol": 1e-9}  # there RoPE is fp32
    model, layout = tiny(), layout_of(shape)
    rng = np.random.default_rng(0)
    tokens = torch.from_numpy(rng.integers(0, 64, layout.n_tokens))
    weight = torch.from_numpy(rng.normal(size=(layout.n_tokens, 64)))

    packed = model(tokens, layout)
    (packed * weight).sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()

    starts = layout.ends - layout.lengths
    total = torch.zeros((), dtype=torch.float64)
    for piece, stem in enumerate(layout.stems.tolist()):
        own = slice(starts[piece], layout.ends[piece])
        before = slice(0, 0) if stem < 0 else slice(starts[stem], layout.ends[stem])
        alone = model(torch.cat((tokens[before], tokens[own])))[before.stop - before.start :]
        torch.testing.assert_close(packed[own], alone, **tolerance)
        total = total + (alone * weight[own]).sum()
    total.backward()
    for ours, theirs in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.grad, **tolerance)


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_flex_attention_s_mask_gives_the_same_as_the_plain_way():
    layout = layout_of([[40, 30, 20], [6], [10, 5]])
    q, k, v = (torch.randn(layout.n_tokens, n, 16, generator=torch.manual_seed(0)) for n in (4, 2, 2))
    plain = attend_documents(q, k, v, layout)
    with torch.no_grad():
        flex = tree_attention.attend_flex(q, k, v, layout, compiled=False)
    torch.testing.assert_close(flex, plain, rtol=1e-5, atol=1e-5)


def test_a_branch_must_follow_its_stem():
    with pytest.raises(AssertionError, match="a branch follows its stem"):
        DocumentLayout([3, 4, 5], stems=[-1, -1, 0])


@pytest.mark.parametrize("traced", [False, True])
def test_asking_for_some_places_gives_their_states_and_gradients(traced, monkeypatch):
    if traced:
        monkeypatch.setattr("puna.model.cpu_kernels.suits", lambda x: False)
    model, layout = tiny(), layout_of([[9, 4, 5], [7]])
    tokens, only = torch.arange(layout.n_tokens) % 64, torch.tensor([3, 11, 12, 24])
    model.hidden(tokens, layout)[only].square().sum().backward()
    whole = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    some = model.hidden(tokens, layout, only=only)
    torch.testing.assert_close(some, model.hidden(tokens, layout)[only])
    some.square().sum().backward()
    for ours, theirs in zip((p.grad for p in model.parameters() if p.grad is not None), whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
