import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from puna.post.preference_losses import dpo_losses, ipo_losses, simpo_losses
from tests.reference import preference_losses as naive

# (chosen, rejected, reference chosen, reference rejected), computed by hand from the papers' formulas
GOLDEN = (-10.0, -12.0, -11.0, -11.5)
LOGPROBS = st.floats(-60, 0)


def ratios(chosen, rejected, reference_chosen, reference_rejected):
    leaf = torch.tensor([chosen, rejected], dtype=torch.float64, requires_grad=True)
    return leaf, leaf[:1] - reference_chosen, leaf[1:] - reference_rejected


def test_dpo_gives_the_golden_loss_and_gradient():
    leaf, chosen, rejected = ratios(*GOLDEN)
    loss = dpo_losses(chosen, rejected, beta=0.1)
    loss.sum().backward()
    assert loss.item() == pytest.approx(0.620957, abs=1e-6)
    assert leaf.grad is not None and leaf.grad.tolist() == pytest.approx([-0.0462570, 0.0462570], abs=1e-7)


def test_conservative_dpo_gives_the_golden_loss():
    _, chosen, rejected = ratios(*GOLDEN)
    assert dpo_losses(chosen, rejected, beta=0.1, label_smoothing=0.1).item() == pytest.approx(0.635957, abs=1e-6)


def test_dpo_with_llama_3_s_likelihood_term_gives_the_golden_loss():
    _, chosen, rejected = ratios(*GOLDEN)
    assert (dpo_losses(chosen, rejected, beta=0.1) + 0.2 * 10.0 / 8).item() == pytest.approx(0.870957, abs=1e-6)


def test_ipo_and_simpo_give_their_golden_losses():
    _, chosen, rejected = ratios(*GOLDEN)
    assert ipo_losses(chosen, rejected, tau=0.1).item() == pytest.approx(12.25)
    means = torch.tensor([-10.0 / 8]), torch.tensor([-12.0 / 6])
    assert simpo_losses(*means, beta=2.0, gamma=1.0).item() == pytest.approx(0.474077, abs=1e-6)


@given(st.tuples(LOGPROBS, LOGPROBS, LOGPROBS, LOGPROBS), st.floats(0.01, 1), st.floats(0, 0.49))
def test_dpo_equals_its_naive_twin(logprobs, beta, smoothing):
    leaf, chosen, rejected = ratios(*logprobs)
    loss = dpo_losses(chosen, rejected, beta=beta, label_smoothing=smoothing)
    loss.sum().backward()
    expected, z = naive.dpo(*logprobs, beta=beta, label_smoothing=smoothing)
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    slope = -beta * ((1 - smoothing) / (1 + math.exp(z)) - smoothing / (1 + math.exp(-z)))
    assert leaf.grad is not None and leaf.grad.tolist() == pytest.approx([slope, -slope], rel=1e-9, abs=1e-12)


@given(LOGPROBS, LOGPROBS, st.floats(0.01, 1))
def test_a_policy_that_equals_its_reference_loses_ln_2_and_is_pulled_by_half_of_beta(chosen, rejected, beta):
    leaf, *both = ratios(chosen, rejected, chosen, rejected)
    loss = dpo_losses(*both, beta=beta)
    loss.sum().backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert leaf.grad is not None and leaf.grad.tolist() == pytest.approx([-beta / 2, beta / 2])


@given(LOGPROBS, LOGPROBS)
def test_swapping_the_answers_negates_the_margin(chosen, rejected):
    a, b = torch.tensor([chosen], dtype=torch.float64), torch.tensor([rejected], dtype=torch.float64)
    margin = (dpo_losses(b, a, beta=0.5) - dpo_losses(a, b, beta=0.5)).item()
    assert margin == pytest.approx(0.5 * (chosen - rejected), abs=1e-9)
