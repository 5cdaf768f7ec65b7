"""The loss of learning from sampled answers: PPO with a critic, or GRPO, Dr. GRPO and RLOO without one.

A batch is one row of trees: each prompt once, behind it its sampled answers. The policy's log probabilities come from
the same forward as in every other loss; where the answers were drawn at temperature T, logits are divided by T here
too. The critic, a transformer with a score head, is a submodule of the policy (`attach_critic`), so the one training
loop steps both and saves both, and a finished checkpoint is the policy alone.

What is summed is a weight times the loss of each token; how weights and count are chosen is the aggregation: every
token alike (`token`), every answer alike (`sequence`), or every answer divided by one constant (`constant`).

Source: `post/policy_losses.py` names the papers.
Shapes: T answer tokens of the batch, S tokens of its row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from puna.core.config import Config
from puna.core.errors import PunaError
from puna.model.layout import DocumentLayout
from puna.model.linear_cross_entropy import token_log_probs
from puna.model.transformer import Transformer
from puna.post.policy_losses import clipped_policy_losses, clipped_value_losses, kl_estimate
from puna.post.reward import forest_flops
from puna.post.rollout import Group
from puna.post.trees import Forest, plant
from puna.train.loss import LossOutput

Method = Literal["ppo", "grpo", "dr_grpo", "rloo"]


class PolicyConfig(Config):
    """How answers are sampled and learned from."""

    method: Method = "ppo"
    """ppo has a critic; grpo, dr_grpo and rloo compare the answers to one prompt with each other."""
    prompts: int = Field(default=64, ge=1)
    """Prompts of an iteration: sample, judge, learn."""
    samples: int = Field(default=4, ge=1)
    """Answers to each prompt."""
    max_tokens: int = Field(default=256, ge=1)
    """Longest answer in tokens."""
    temperature: float = Field(default=1.0, gt=0.0)
    """Temperature of the draws; the loss uses the same. All of the vocabulary is drawn from: top-k and top-p would make
    the ratios wrong."""
    epochs: int = Field(default=1, ge=1)
    """How often the answers of an iteration are learned from."""
    minibatches: int = Field(default=4, ge=1)
    """Parts that an iteration's prompts are cut into, anew in each epoch; each is a batch."""
    clip_low: float = Field(default=0.2, gt=0.0, lt=1.0)
    """How far a token's probability ratio may fall below 1 to any gain."""
    clip_high: float = Field(default=0.2, gt=0.0)
    """How far it may rise above 1."""
    dual_clip: float | None = Field(default=None, gt=1.0)
    """Bound of the loss of tokens with a negative advantage, as a multiple of it; none has no bound."""
    kl_coefficient: float = Field(default=0.05, ge=0.0)
    """Strength of the tie to the first model; 0 needs no reference model."""
    kl_in: Literal["auto", "reward", "loss"] = "auto"
    """Where the tie acts: in the reward of each token (k1) or in the loss (k3 times the ratio); auto: in the reward for
    ppo and rloo, in the loss for grpo and dr_grpo."""
    kl_target: float = Field(default=0.0, ge=0.0)
    """Nats per answer that the coefficient is steered to; 0 leaves it as it is."""
    kl_horizon: int = Field(default=10_000, ge=1)
    """Answers over which the coefficient is corrected."""
    gamma: float = Field(default=1.0, gt=0.0, le=1.0)
    """Discount per token (ppo)."""
    lam: float = Field(default=0.95, ge=0.0, le=1.0)
    """GAE's lambda (ppo)."""
    whiten: bool = True
    """Bring an iteration's advantages to mean zero and variance one (ppo)."""
    value_coefficient: float = Field(default=0.1, ge=0.0)
    """Weight of the critic's loss (ppo)."""
    value_clip: float = Field(default=0.2, gt=0.0)
    """How far a value may leave its old one to any gain (ppo)."""
    aggregate: Literal["auto", "token", "sequence", "constant"] = "auto"
    """What counts alike: tokens, answers, or answers over one constant length; auto: `constant` for dr_grpo, `sequence`
    for rloo, else `token`."""
    verifier_weight: float = 1.0
    """Worth of an answer that the verifier accepts."""
    reward_weight: float = 1.0
    """Factor of the reward model's score."""
    unfinished_penalty: float = Field(default=1.0, ge=0.0)
    """What is taken from the reward of an answer that ran into the length limit."""
    max_sampler_difference: float = Field(default=0.01, gt=0.0)
    """The run stops when sampler and trainer differ by more than this in their mean log probability per token."""
    seed: int = 0
    """Seed of the order of prompts and of the draws."""

    @model_validator(mode="after")
    def _parts_fit(self) -> "PolicyConfig":
        if self.minibatches > self.prompts:
            raise ValueError(f"minibatches is {self.minibatches} and prompts is {self.prompts}; each part needs one")
        if self.method != "ppo" and self.samples == 1:
            raise ValueError(f"samples is 1 and method is {self.method!r}: there is nothing to compare; use 2 or more")
        if self.kl_target and not self.kl_coefficient:
            raise ValueError("kl_target steers kl_coefficient, which is 0; start it above 0")
        return self

    @property
    def kl_place(self) -> Literal["reward", "loss"]:
        """`kl_in` with its default for the method."""
        if self.kl_in != "auto":
            return self.kl_in
        return "loss" if self.method in ("grpo", "dr_grpo") else "reward"

    @property
    def aggregation(self) -> Literal["token", "sequence", "constant"]:
        """`aggregate` with its default for the method."""
        if self.aggregate != "auto":
            return self.aggregate
        return {"dr_grpo": "constant", "rloo": "sequence"}.get(self.method, "token")  # pyright: ignore

    @property
    def batches_per_iteration(self) -> int:
        """Batches between two samplings."""
        return self.epochs * self.minibatches


@dataclass(frozen=True)
class PolicyBatch:
    """Some groups of an iteration. All `[T]` are float32 over the answers' tokens in order.

    Attributes:
        forest: One row of trees.
        places: `[T]` where each answer token is predicted in the row.
        targets: `[T]` the answer tokens.
        weights: `[T]` how much each token counts.
        count: What the sum is divided by.
        advantages: `[T]`.
        old: `[T]` the sampling policy's log probabilities; None: this batch is its only step, so they are the policy's.
        reference: `[T]` the reference's, or None.
        old_values: `[T]` of the critic when the answers were drawn, or None.
        returns: `[T]` what values should have been, or None.
        sampler: `[T]` the sampler's log probabilities, where the loss is the place to compare them, or None.
        kl_coefficient: beta of this iteration.
    """

    forest: Forest
    places: NDArray[np.int64]
    targets: NDArray[np.int64]
    weights: NDArray[np.float32]
    count: float
    advantages: NDArray[np.float32]
    old: NDArray[np.float32] | None = None
    reference: NDArray[np.float32] | None = None
    old_values: NDArray[np.float32] | None = None
    returns: NDArray[np.float32] | None = None
    sampler: NDArray[np.float32] | None = None
    kl_coefficient: float = 0.0


def pack_groups(groups: Sequence[Group], *, pad: int) -> tuple[Forest, NDArray[np.int64], NDArray[np.int64]]:
    """Groups in one row without padding.

    Returns:
        The row, the place at which each answer token is predicted, and the answer tokens.
    """
    trees = [group.tree for group in groups]
    forest = plant([trees], sequence_length=sum(tree.n_tokens for tree in trees), pad=pad)
    places = np.concatenate([np.arange(s, s + n) for s, n in zip(forest.starts, forest.sizes, strict=True)])
    return forest, places, np.concatenate([answer for group in groups for answer in group.answers])


def token_weights(
    sizes: Sequence[int], *, aggregation: Literal["token", "sequence", "constant"], max_tokens: int
) -> tuple[NDArray[np.float32], float]:
    """The weight of each token, and what the weighted sum is divided by.

    Args:
        sizes: Tokens of each answer.
        aggregation: What counts alike.
        max_tokens: The constant.
    """
    n = np.asarray(sizes, dtype=np.float64)
    if aggregation == "token":
        return np.ones(int(n.sum()), dtype=np.float32), float(n.sum())
    per_token = 1.0 / n if aggregation == "sequence" else np.full(len(n), 1.0 / max_tokens)
    return np.repeat(per_token, np.asarray(sizes)).astype(np.float32), float(len(n))


def answer_logprobs(
    model: Transformer, forest: Forest, places: NDArray[np.int64], targets: NDArray[np.int64], *, temperature: float
) -> Float[Tensor, " T"]:
    """Log probability of each answer token at a temperature.

    Args:
        model: Policy or reference.
        forest: One row of trees.
        places: Where the tokens are predicted.
        targets: The tokens.
        temperature: Logits are divided by it.
    """
    hidden_TD = _hidden(model, forest, places)
    if temperature != 1.0:
        hidden_TD = hidden_TD / temperature
    return token_log_probs(hidden_TD, model.head_weight, torch.from_numpy(targets).to(model.device))


def answer_values(critic: Transformer, forest: Forest, places: NDArray[np.int64]) -> Float[Tensor, " T"]:
    """The critic's value of the state in which each answer token is drawn."""
    return critic.scores(_hidden(critic, forest, places))


def _hidden(model: Transformer, forest: Forest, places: NDArray[np.int64]) -> Float[Tensor, "T D"]:
    """Hidden states at the places where answer tokens are predicted."""
    layout = DocumentLayout(forest.lengths, stems=forest.stems, device=model.device)
    tokens, only = (torch.from_numpy(x).to(model.device) for x in (forest.tokens.reshape(-1), places))
    return model.hidden(tokens, layout, only=only)


def attach_critic(policy: Transformer, critic: Transformer) -> None:
    """Make a critic a part of the policy: one loop steps both, and a checkpoint of the policy does not hold it."""
    assert critic.config.head == "score", "a critic has a score head"
    policy.add_module("critic", critic)


def critic_of(policy: Transformer) -> Transformer:
    """The critic that `attach_critic` put there."""
    critic = getattr(policy, "critic", None)
    assert isinstance(critic, Transformer), "this policy has no critic"
    return critic


def check_sampler(difference: float, limit: float) -> None:
    """Refuse answers that are not the policy's own.

    Args:
        difference: Mean over tokens of |sampler's log probability - trainer's|, in nats.
        limit: What rounding may explain.

    Raises:
        PunaError: It is more, or no number.
    """
    if not difference <= limit:
        raise PunaError(
            f"sampler and trainer differ by {difference:.3g} nats per token, allowed are {limit:g} "
            "(max_sampler_difference). The answers are not the policy's own; nothing was learned from them."
        )


@dataclass(frozen=True)
class PolicyLoss:
    """The loss that the training loop calls: `(model, batch) -> LossOutput`."""

    config: PolicyConfig

    def __call__(self, model: Transformer, batch: PolicyBatch) -> LossOutput:
        """Weighted sum over the batch's answer tokens.

        Args:
            model: The policy, with its critic attached for ppo.
            batch: From `PolicyBatches`.

        Raises:
            PunaError: The sampler's log probabilities are not the policy's.
        """
        config = self.config
        lp_T = answer_logprobs(model, batch.forest, batch.places, batch.targets, temperature=config.temperature)

        def tensor(array: NDArray[np.float32] | None) -> Tensor:
            assert array is not None, "the batch lacks what its method needs"
            return torch.from_numpy(array).to(lp_T)

        weights_T, advantages_T = tensor(batch.weights), tensor(batch.advantages)
        log_ratio_T = lp_T - (lp_T.detach() if batch.old is None else tensor(batch.old))
        policy_T = clipped_policy_losses(
            log_ratio_T,
            advantages_T,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            dual_clip=config.dual_clip,
        )
        total_T = policy_T
        terms = {"policy_loss": policy_T, "approximate_kl": kl_estimate(-log_ratio_T, "k3")}
        gain_T = advantages_T * log_ratio_T > 0
        ratio_T = log_ratio_T.exp()
        terms["clipped"] = ((ratio_T < 1 - config.clip_low) | (ratio_T > 1 + config.clip_high)) & gain_T
        if batch.reference is not None:
            to_reference_T = lp_T - tensor(batch.reference)
            terms["kl"] = kl_estimate(to_reference_T, "k1")
            if config.kl_place == "loss":
                penalty_T = kl_estimate(to_reference_T, "k3") * ratio_T  # the ratio makes its gradient that of the KL
                total_T = total_T + batch.kl_coefficient * penalty_T
        if batch.returns is not None:
            values_T = answer_values(critic_of(model), batch.forest, batch.places)
            value_T = clipped_value_losses(
                values_T, tensor(batch.old_values), tensor(batch.returns), clip=config.value_clip
            )
            terms["value_loss"] = value_T
            total_T = total_T + config.value_coefficient * value_T
        if batch.sampler is not None:
            difference_T = (lp_T.detach() - tensor(batch.sampler)).abs()
            check_sampler(float(difference_T.mean()), config.max_sampler_difference)
            terms["sampler_difference"] = difference_T
        with torch.no_grad():
            metrics = {name: (weights_T * term).sum() for name, term in terms.items()}
        return LossOutput(
            sum=(weights_T * total_T).sum(),
            count=batch.count,
            tokens=batch.forest.tokens.size,
            flops=forest_flops(model, batch.forest, n_targets=len(batch.targets)),
            metrics=metrics,
        )
