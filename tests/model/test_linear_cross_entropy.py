"""The chunked losses against PyTorch's cross_entropy over all logits, values and gradients, and their memory."""

import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, linear

from puna.model import linear_cross_entropy as linear_cross_entropy_module
from puna.model import linear_cross_entropy as module
from puna.model.linear_cross_entropy import linear_cross_entropy, token_log_probs


def case(n_tokens: int, vocab: int, asked: float, seed: int, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n_tokens, 12, generator=generator, dtype=dtype).requires_grad_()
    head = torch.randn(vocab, 12, generator=generator, dtype=dtype).requires_grad_()
    targets = torch.randint(vocab, (n_tokens,), generator=generator)
    targets[torch.rand(n_tokens, generator=generator) >= asked] = -100
    return hidden, head, targets


cases = given(
    n_tokens=st.integers(1, 70),
    vocab=st.integers(2, 40),
    asked=st.sampled_from([0.0, 0.3, 1.0]),
    chunk_bytes=st.sampled_from([1, 400, 1_000_000]),
    seed=st.integers(0, 99),
)


@settings(deadline=None, max_examples=60)
@cases
def test_the_sum_and_its_gradients_equal_cross_entropy_over_all_logits(n_tokens, vocab, asked, chunk_bytes, seed):
    hidden, head, targets = case(n_tokens, vocab, asked, seed)
    expected = cross_entropy(linear(hidden, head), targets, reduction="sum")
    actual = linear_cross_entropy(hidden, head, targets, chunk_bytes=chunk_bytes)
    torch.testing.assert_close(actual, expected)
    for ours, theirs in zip(
        torch.autograd.grad(actual * 0.7, (hidden, head)),
        torch.autograd.grad(expected * 0.7, (hidden, head)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@settings(deadline=None, max_examples=60)
@cases
def test_token_log_probs_and_their_gradients_equal_log_softmax(n_tokens, vocab, asked, chunk_bytes, seed):
    hidden, head, targets = case(n_tokens, vocab, asked, seed)
    weights = torch.randn(n_tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = -cross_entropy(linear(hidden, head), targets, reduction="none")
    actual = token_log_probs(hidden, head, targets, chunk_bytes=chunk_bytes)
    torch.testing.assert_close(actual, expected)
    for ours, theirs in zip(
        torch.autograd.grad(actual @ weights, (hidden, head)),
        torch.autograd.grad(expected @ weights, (hidden, head)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("loss", [linear_cross_entropy, token_log_probs])
def test_the_path_off_the_cpu_takes_all_tokens_and_gives_the_same(loss, monkeypatch):
    """There no token is left out beforehand, because choosing would make the host wait; those without a target weigh 0."""
    hidden, head, targets = case(33, 17, 0.5, 4)
    expected = loss(hidden, head, targets, chunk_bytes=400).sum()
    wanted = torch.autograd.grad(expected, (hidden, head))
    monkeypatch.setattr(module, "asked", lambda hidden, targets: (hidden, targets, None))
    if loss is linear_cross_entropy:  # its branches ask for the device
        hidden, head, targets = (
            x.detach().to("meta").requires_grad_(x.is_floating_point()) for x in (hidden, head, targets)
        )
        assert loss(hidden, head, targets, chunk_bytes=400).is_meta
        return
    actual = loss(hidden, head, targets, chunk_bytes=400)
    assert (actual[targets == -100] == 0).all()
    torch.testing.assert_close(actual.sum(), expected)
    for ours, theirs in zip(torch.autograd.grad(actual.sum(), (hidden, head)), wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_large_logits_do_not_overflow():
    hidden, head, targets = case(9, 20, 1.0, 0)
    scaled = hidden.detach() * 1000
    expected = cross_entropy(scaled @ head.T, targets, reduction="sum")
    torch.testing.assert_close(linear_cross_entropy(scaled, head, targets), expected)


def test_bf16_input_gives_an_fp32_sum_and_bf16_gradients():
    hidden, head, targets = case(50, 20, 0.5, 0, torch.bfloat16)
    loss = linear_cross_entropy(hidden, head, targets, chunk_bytes=500)
    loss.backward()
    assert loss.dtype == torch.float32 and hidden.grad.dtype == head.grad.dtype == torch.bfloat16
    expected = cross_entropy(linear(hidden, head).float(), targets, reduction="sum")
    assert abs(loss - expected) < 0.02 * expected


@pytest.mark.parametrize("loss", [linear_cross_entropy, token_log_probs])
def test_no_more_logits_than_a_chunk_are_ever_held(loss):
    hidden, head, targets = case(4096, 512, 1.0, 0, torch.float32)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    with Watch():
        loss(hidden, head, targets, chunk_bytes=4 * 512 * 100).sum().backward()
    assert largest <= 512 * 100


def test_the_logits_of_one_chunk_are_gone_before_the_next_ones_are_made(monkeypatch):
    made: list[weakref.ref[torch.Tensor]] = []

    def product(left, right):
        result = left @ right
        if result.shape[1] == 40:  # logits, not a gradient of hidden states
            assert all(earlier() is None for earlier in made)
            made.append(weakref.ref(result))
        return result

    monkeypatch.setattr(linear_cross_entropy_module, "product", product)
    hidden = torch.randn(30, 8, requires_grad=True)
    head = torch.randn(40, 8, requires_grad=True)
    linear_cross_entropy(hidden, head, torch.randint(40, (30,)), chunk_bytes=4 * 40 * 10)
    assert len(made) == 3
