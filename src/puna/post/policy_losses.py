"""The formulas of learning from sampled answers, on plain tensors: advantages, clipping, KL estimates.

    reward      R_t = -beta * kl_t + [t is last] * score,     kl_t = lp_t - ref_t            (k1: unbiased, may be < 0)
    GAE         d_t = R_t + gamma V_(t+1) - V_t,   A_t = d_t + gamma lambda A_(t+1),   G_t = A_t + V_t
    policy      max(-A r, -A clip(r, 1 - e, 1 + e')),         r_t = exp(lp_t - old_t)
    value       1/2 max((V - G)^2, (clip(V, V_old +- e_v) - G)^2)
    GRPO        A_i = (R_i - mean) / (std + 1e-6) over the answers to one prompt; Dr. GRPO leaves out the division
    RLOO        A_i = R_i - mean of the others

Everything is flat over tokens or answers: nothing here knows rows, padding or models. Where another tool differs: some
whiten advantages and then add their mean back; ours have mean zero.

Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7 and 11; 2016, arXiv:1506.02438, eq. 16 (GAE); Ziegler et al. 2019,
arXiv:1909.08593, section 2.2 (KL reward, adaptive coefficient); Shao et al. 2024, arXiv:2402.03300, section 4.1 (GRPO);
Liu et al. 2025, arXiv:2503.20783 (Dr. GRPO); Ahmadian et al. 2024, arXiv:2402.14740 (RLOO); Ye et al. 2020,
arXiv:1912.09729, eq. 5 (dual clip); Schulman, "Approximating KL divergence", 2020 (k1, k2, k3).
Shapes: A answers, T tokens of all answers side by side.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

KlEstimate = Literal["k1", "k2", "k3"]

STD_EPSILON = 1e-6


def kl_estimate(log_ratio: Float[Tensor, " T"], kind: KlEstimate) -> Float[Tensor, " T"]:
    """One-sample estimate of KL(policy || reference) at each token.

    As a reward use k1, which is unbiased. As a loss k1's gradient has expectation zero and says nothing, k2 gives the
    gradient of the reverse KL, and k3 does only when it is multiplied by the ratio to the sampling policy.

    Args:
        log_ratio: log policy - log reference of the sampled tokens, in nats.
        kind: k1 = l, k2 = l^2 / 2, k3 = exp(-l) - 1 + l.
    """
    if kind == "k1":
        return log_ratio
    if kind == "k2":
        return log_ratio.square() / 2
    return torch.expm1(-log_ratio) + log_ratio


def token_rewards(
    scores_A: NDArray[np.float64], kl_T: NDArray[np.float64], sizes: Sequence[int], *, kl_coefficient: float
) -> NDArray[np.float64]:
    """Reward of each token: the cost of leaving the reference, and at each answer's end its score.

    Args:
        scores_A: Score of each answer.
        kl_T: k1 of each token.
        sizes: Tokens of each answer.
        kl_coefficient: beta.
    """
    rewards_T = -kl_coefficient * kl_T
    rewards_T[np.cumsum(sizes) - 1] += scores_A
    return rewards_T


def gae(
    rewards_T: NDArray[np.float64],
    values_T: NDArray[np.float64],
    sizes: Sequence[int],
    *,
    gamma: float,
    lam: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Generalized advantage estimates of answers side by side; after its last token an answer is worth nothing.

    Args:
        rewards_T: Reward of each token.
        values_T: Value of the state in which each token was drawn.
        sizes: Tokens of each answer.
        gamma: Discount per token, in [0, 1].
        lam: lambda: 0 trusts the values, 1 the rewards.

    Returns:
        Advantages and returns, each `[T]`.
    """
    advantages_T = np.zeros_like(rewards_T)
    end = 0
    for size in sizes:
        start, end = end, end + size
        following, next_value = 0.0, 0.0
        for t in range(end - 1, start - 1, -1):
            delta = rewards_T[t] + gamma * next_value - values_T[t]
            following = delta + gamma * lam * following
            advantages_T[t], next_value = following, values_T[t]
    return advantages_T, advantages_T + values_T


def whiten(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean zero, variance one (unbiased); a single value becomes zero."""
    centred = values - values.mean()
    return centred / (centred.std(ddof=1) + 1e-8) if len(values) > 1 else centred


def group_advantages(
    rewards: NDArray[np.float64], groups: Sequence[int], *, kind: Literal["grpo", "dr_grpo", "rloo"]
) -> NDArray[np.float64]:
    """Advantage of each answer against the other answers to its prompt.

    Args:
        rewards: `[A]` of all answers, group after group.
        groups: Answers of each group; one alone has no advantage.
        kind: What is done with the group's spread.

    Returns:
        `[A]`.
    """
    advantages = np.zeros_like(rewards)
    end = 0
    for size in groups:
        start, end = end, end + size
        if size == 1:
            continue
        own = rewards[start:end] - rewards[start:end].mean()
        if kind == "grpo":
            own = own / (own.std(ddof=1) + STD_EPSILON)
        elif kind == "rloo":
            own = own * size / (size - 1)
        advantages[start:end] = own
    return advantages


def clipped_policy_losses(
    log_ratio: Float[Tensor, " T"],
    advantages: Float[Tensor, " T"],
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> Float[Tensor, " T"]:
    """PPO's clipped loss of each token.

    Args:
        log_ratio: log policy - log sampling policy, in nats.
        advantages: Of the tokens.
        clip_low: How far the ratio may fall below 1 to any gain.
        clip_high: How far it may rise above 1.
        dual_clip: For negative advantages the loss is at most this times the advantage's size; > 1.
    """
    ratio = log_ratio.exp()
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip_low, 1 + clip_high))
    if dual_clip is not None:
        loss = torch.where(advantages < 0, torch.minimum(loss, -advantages * dual_clip), loss)
    return loss


def clipped_value_losses(
    values: Float[Tensor, " T"], old_values: Float[Tensor, " T"], returns: Float[Tensor, " T"], *, clip: float
) -> Float[Tensor, " T"]:
    """Squared error of each value, halved; a value that left its old one by more than `clip` gains nothing by it."""
    near = old_values + (values - old_values).clamp(-clip, clip)
    return torch.maximum((values - returns).square(), (near - returns).square()) / 2


def adapted_coefficient(coefficient: float, *, kl: float, target: float, n_answers: int, horizon: int) -> float:
    """The next KL coefficient: up to a fifth more or less, in proportion to the error and the share of the horizon.

    Args:
        coefficient: beta.
        kl: Measured, in nats per answer.
        target: What it should be.
        n_answers: Answers since the last change.
        horizon: Answers over which a full correction is made.

    Source: Ziegler et al. 2019, section 2.2.
    """
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return coefficient * (1.0 + error * n_answers / horizon)
