"""Golden values worked out by hand from the papers' formulas, and the laws that the formulas obey."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.post.policy_losses import (
    adapted_coefficient,
    clipped_policy_losses,
    clipped_value_losses,
    gae,
    group_advantages,
    kl_estimate,
    token_rewards,
    whiten,
)
from tests.reference import policy_naive as naive


def array(*values):
    return np.array(values, dtype=np.float64)


def test_gae_gives_its_golden_values():
    values = array(0.5, 0.4, 0.3)
    advantages, returns = gae(array(0, 0, 1), values, [3], gamma=1.0, lam=0.95)
    assert advantages == pytest.approx([0.43675, 0.565, 0.7]) and returns == pytest.approx([0.93675, 0.965, 1.0])
    advantages, _ = gae(array(-0.02, -0.01, 0.99), values, [3], gamma=1.0, lam=0.95)
    assert advantages == pytest.approx([0.398225, 0.5455, 0.69])


@settings(deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.floats(0.1, 1), st.floats(0, 1), st.integers(0, 99))
def test_gae_of_answers_side_by_side_equals_the_definition_one_by_one(sizes, gamma, lam, seed):
    rng = np.random.default_rng(seed)
    rewards, values = rng.normal(size=sum(sizes)), rng.normal(size=sum(sizes))
    advantages, returns = gae(rewards, values, sizes, gamma=gamma, lam=lam)
    end = 0
    for size in sizes:
        start, end = end, end + size
        a, g = naive.gae(rewards[start:end].tolist(), values[start:end].tolist(), gamma, lam)
        assert advantages[start:end] == pytest.approx(a) and returns[start:end] == pytest.approx(g)


def test_without_discount_and_lambda_1_the_return_is_the_reward_to_go():
    rewards = array(0.5, -1, 2, 3)
    _, returns = gae(rewards, array(9, 8, 7, 6), [3, 1], gamma=1.0, lam=1.0)
    assert returns == pytest.approx([1.5, 1, 2, 3])


def test_the_score_comes_with_the_last_token_and_the_kl_with_each():
    rewards = token_rewards(array(1, 5), array(0.2, 0.1, -0.3), [2, 1], kl_coefficient=0.1)
    assert rewards == pytest.approx([-0.02, 0.99, 5.03])


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss"), [(1.3, 1, -1.2), (1.3, -1, 1.3), (0.7, 1, -0.7), (0.7, -1, 0.8)]
)
def test_the_four_quadrants_of_the_clip(ratio, advantage, loss):
    leaf = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    got = clipped_policy_losses(leaf, torch.tensor([float(advantage)]), clip_low=0.2, clip_high=0.2)
    got.sum().backward()
    assert got.item() == pytest.approx(loss)
    beyond = (ratio > 1.2 and advantage > 0) or (ratio < 0.8 and advantage < 0)
    assert (leaf.grad.item() == 0) == beyond


def test_the_dual_clip_bounds_the_loss_of_bad_tokens():
    got = clipped_policy_losses(
        torch.tensor([math.log(5.0)]), torch.tensor([-1.0]), clip_low=0.2, clip_high=0.2, dual_clip=3.0
    )
    assert got.item() == pytest.approx(3.0)


def test_a_value_that_ran_too_far_is_judged_by_the_worse_of_two_errors():
    got = clipped_value_losses(torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([0.9]), clip=0.2)
    assert got.item() == pytest.approx(0.5 * 0.7**2)
    near = clipped_value_losses(torch.tensor([0.1]), torch.tensor([0.0]), torch.tensor([0.9]), clip=0.2)
    assert near.item() == pytest.approx(0.5 * 0.8**2)


def test_the_kl_estimates_give_their_golden_values():
    ratio = torch.tensor([0.5], dtype=torch.float64)
    got = [kl_estimate(ratio, kind).item() for kind in ("k1", "k2", "k3")]
    assert got == pytest.approx([0.5, 0.125, 0.106531], abs=1e-6)


def test_the_kl_estimates_and_gradients_against_enumeration_of_five_tokens():
    generator = torch.manual_seed(0)
    logits = torch.randn(5, dtype=torch.float64, generator=generator).requires_grad_()
    reference = torch.randn(5, dtype=torch.float64, generator=generator).log_softmax(0)
    lp = logits.log_softmax(0)
    p = lp.exp()
    exact = (p * (lp - reference)).sum()
    (gradient,) = torch.autograd.grad(exact, logits, retain_graph=True)
    expected = {kind: (p * kl_estimate(lp - reference, kind)).sum() for kind in ("k1", "k3")}
    for value in expected.values():  # both are unbiased
        assert value.item() == pytest.approx(exact.item())
    sampled = p.detach()  # a loss sees the sampling distribution as fixed

    def loss_gradient(term):
        return torch.autograd.grad((sampled * term).sum(), logits, retain_graph=True)[0]

    ratio = (lp - lp.detach()).exp()
    assert loss_gradient(lp - reference).abs().max() < 1e-12
    torch.testing.assert_close(loss_gradient(kl_estimate(lp - reference, "k2")), gradient)
    torch.testing.assert_close(loss_gradient(kl_estimate(lp - reference, "k3") * ratio), gradient)
    assert (loss_gradient(kl_estimate(lp - reference, "k3")) - gradient).abs().max() > 1e-3


def test_whitened_advantages_have_mean_zero_and_variance_one():
    white = whiten(np.random.default_rng(0).normal(3, 5, size=1000))
    assert abs(white.mean()) < 1e-12 and white.std(ddof=1) == pytest.approx(1)
    assert whiten(array(7)).tolist() == [0]


def test_groups_give_their_golden_advantages():
    assert group_advantages(array(1, 0, 0, 1), [4], kind="grpo") == pytest.approx(
        [0.866024, -0.866024, -0.866024, 0.866024], abs=1e-6
    )
    assert group_advantages(array(1, 0, 0, 0), [4], kind="grpo") == pytest.approx(
        [1.499997, -0.5, -0.5, -0.5], abs=2e-6
    )
    assert group_advantages(array(1, 0, 0, 0), [4], kind="dr_grpo") == pytest.approx([0.75, -0.25, -0.25, -0.25])
    assert group_advantages(array(1, 0, 0, 0), [4], kind="rloo") == pytest.approx([1, -1 / 3, -1 / 3, -1 / 3])


def test_groups_of_one_or_of_equals_have_no_advantage_and_groups_do_not_mix():
    assert group_advantages(array(5, 2, 2), [1, 2], kind="grpo").tolist() == [0, 0, 0]
    alone = group_advantages(array(1, 0), [2], kind="grpo")
    assert group_advantages(array(9, 8, 1, 0), [2, 2], kind="grpo")[2:] == pytest.approx(alone)


def test_the_adaptive_coefficient_gives_its_golden_value():
    assert adapted_coefficient(0.2, kl=9, target=6, n_answers=64, horizon=10_000) == pytest.approx(0.200256)
    assert adapted_coefficient(0.2, kl=0, target=6, n_answers=64, horizon=10_000) == pytest.approx(
        0.2 * (1 - 0.2 * 0.0064)
    )
