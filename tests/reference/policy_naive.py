"""The naive twin of PPO and GRPO: one answer at a time, one token at a time, plain floats where no gradient is needed."""

import math

import torch
from torch import Tensor


def logprobs(model, prompt: list[int], answer: list[int], *, temperature: float = 1.0) -> Tensor:
    tokens = torch.tensor([*prompt, *answer])
    logits = model(tokens[:-1])[len(prompt) - 1 :] / temperature
    return torch.stack([row.log_softmax(-1)[token] for row, token in zip(logits, answer, strict=True)])


def values(critic, prompt: list[int], answer: list[int]) -> Tensor:
    hidden = critic.hidden(torch.tensor([*prompt, *answer])[:-1])[len(prompt) - 1 :]
    return hidden @ critic.score.weight[0]


def gae(rewards: list[float], state_values: list[float], gamma: float, lam: float) -> tuple[list[float], list[float]]:
    """By the definition: sum over k of (gamma lam)^k delta_(t + k)."""
    n = len(rewards)
    after = [*state_values[1:], 0.0]
    deltas = [rewards[t] + gamma * after[t] - state_values[t] for t in range(n)]
    advantages = [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, n)) for t in range(n)]
    return advantages, [a + v for a, v in zip(advantages, state_values, strict=True)]


def group(rewards: list[float]) -> list[float]:
    mean = sum(rewards) / len(rewards)
    std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1))
    return [(r - mean) / (std + 1e-6) for r in rewards]


def clipped(ratio: Tensor, advantage: float, clip: float) -> Tensor:
    return -torch.min(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def ppo_step(
    policy, critic, old_policy, old_critic, reference, answers, scores, *, beta, gamma, lam, clip, value_clip, c_v
):
    """The mean loss of one PPO batch over `(prompt, answer)` pairs of ids."""
    with torch.no_grad():
        old = [logprobs(old_policy, *pair) for pair in answers]
        ref = [logprobs(reference, *pair) for pair in answers]
        seen = [values(old_critic, *pair) for pair in answers]
    advantages, returns = [], []
    for o, r, v, score in zip(old, ref, seen, scores, strict=True):
        rewards = (-beta * (o - r)).tolist()
        rewards[-1] += score
        a, g = gae(rewards, v.tolist(), gamma, lam)
        advantages.append(a)
        returns.append(g)
    flat = torch.tensor([x for row in advantages for x in row], dtype=torch.float64)
    flat = (flat - flat.mean()) / (flat.std() + 1e-8)
    total, n, at = torch.zeros((), dtype=torch.float64), 0, 0
    for pair, o, v_old, target in zip(answers, old, seen, returns, strict=True):
        ratio, v = (logprobs(policy, *pair) - o).exp(), values(critic, *pair)
        for t in range(len(ratio)):
            near = v_old[t] + (v[t] - v_old[t]).clamp(-value_clip, value_clip)
            value_loss = torch.max((v[t] - target[t]) ** 2, (near - target[t]) ** 2) / 2
            total = total + clipped(ratio[t], float(flat[at]), clip) + c_v * value_loss
            n, at = n + 1, at + 1
    return total / n


def grpo_step(policy, old_policy, reference, groups, rewards, *, beta, clip, temperature=1.0):
    """The mean loss of one GRPO batch, tokens alike; `groups` are lists of `(prompt, answer)`."""
    total, n = torch.zeros((), dtype=torch.float64), 0
    for answers, scores in zip(groups, rewards, strict=True):
        for pair, advantage in zip(answers, group(scores), strict=True):
            lp = logprobs(policy, *pair, temperature=temperature)
            with torch.no_grad():
                old = logprobs(old_policy, *pair, temperature=temperature)
                ref = logprobs(reference, *pair, temperature=temperature)
            ratio = (lp - old).exp()
            for t in range(len(lp)):
                k3 = torch.exp(ref[t] - lp[t]) - 1 - (ref[t] - lp[t])
                total = total + clipped(ratio[t], advantage, clip) + beta * k3 * ratio[t]
                n += 1
    return total / n
