"""Cached logits equal a full forward: ragged prefill, continuation and decode, on any rows, in any order."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.model.kv_cache import KVCache
from tests.model.test_transformer import GRID, random_tokens, small_model

CONFIG = GRID[8]


def full_logits(model, sequences):
    return [model(sequence) for sequence in sequences]


@torch.inference_mode()
def check_steps(steps: list[dict[int, int]], config=CONFIG, batch: int = 4) -> None:
    """Runs the steps (row -> new tokens) through a cache and holds each next-token logit against a full forward."""
    model = small_model(config)
    sequences = [random_tokens(config, 200, seed=row) for row in range(batch)]
    expected = full_logits(model, sequences)
    cache = KVCache(config, batch=batch, max_len=200)
    for step in steps:
        rows, counts = list(step), list(step.values())
        starts = [int(cache.lengths[row]) for row in rows]
        new = torch.cat([sequences[row][start : start + n] for row, start, n in zip(rows, starts, counts, strict=True)])
        logits = model.next_logits(new, cache=cache.extend(counts, rows=rows))
        wanted = torch.stack([expected[row][start + n - 1] for row, start, n in zip(rows, starts, counts, strict=True)])
        torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", GRID[::4], ids=lambda c: f"{c.n_heads}-{c.n_kv_heads}-{c.head_dim}")
def test_ragged_prefill_then_decode_equals_a_full_forward(config):
    decode = {0: 1, 1: 1, 2: 1, 3: 1}
    check_steps([{0: 9, 1: 1, 2: 140, 3: 30}, decode, decode, decode], config)


def test_rows_of_equal_length_decode_without_padding():
    check_steps([{0: 5, 1: 5}, {0: 1, 1: 1}, {0: 1, 1: 1}])


def test_a_conversation_continues_where_it_stopped():
    check_steps([{0: 9, 1: 4}, {1: 7, 0: 2}, {0: 1}, {3: 30, 0: 3, 1: 1}])


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.dictionaries(st.integers(0, 3), st.sampled_from([1, 1, 2, 17]), min_size=1, max_size=4),
        min_size=1,
        max_size=5,
    )
)
def test_any_order_of_steps_equals_a_full_forward(steps):
    check_steps(steps)


@torch.inference_mode()
def test_a_freed_row_starts_anew_and_a_moved_row_goes_on():
    model = small_model(CONFIG)
    cache = KVCache(CONFIG, batch=3, max_len=64)
    first, second = random_tokens(CONFIG, 20, seed=1), random_tokens(CONFIG, 30, seed=2)
    model.next_logits(torch.cat((first[:10], first[:10], second[:12])), cache=cache.extend([10, 10, 12]))
    cache.truncate(0)
    cache.move(2, 0)
    cache.truncate(1, 5)
    logits = model.next_logits(torch.stack((second[12], first[5])), cache=cache.extend([1, 1]))
    torch.testing.assert_close(logits[0], model(second)[12], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits[1], model(first)[5], rtol=1e-4, atol=1e-4)


def test_a_cache_refuses_more_than_it_holds():
    cache = KVCache(CONFIG, batch=2, max_len=8)
    cache.extend([8, 3])
    with pytest.raises(AssertionError, match="9 tokens do not fit"):
        cache.extend([1, 1])
    assert np.array_equal(cache.lengths, [8, 3])
