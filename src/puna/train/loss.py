"""What a loss gives to the loop, and the loss of pretraining and SFT: next-token cross-entropy over packed documents.

A loss returns a *sum* and how many terms it has. The loop adds the sums of all micro-batches and divides their gradient
by the global count, once: so how a batch is cut never changes the result. (A mean of means weighs a token by the batch
it happens to be in.)

Source: the objective of The Llama 3 Herd of Models (2407.21783), sections 3 and 4.1.3.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from puna.core.batch import IGNORE, PackedBatch
from puna.model.config import ModelConfig
from puna.model.layout import DocumentLayout, to_device
from puna.model.linear_cross_entropy import token_log_probs
from puna.model.transformer import Transformer


@dataclass(frozen=True)
class LossOutput:
    """One micro-batch's part of a step.

    Attributes:
        sum: The loss summed over its terms; the loop calls backward on it.
        count: Number of terms: target tokens, or pairs; with weights, their sum.
        tokens: Tokens that went through the model, for the throughput.
        flops: Model FLOPs of forward and backward, causal convention; 0 when not known.
        metrics: More sums over the same terms, reported as sum / count.
    """

    sum: Float[Tensor, ""]
    count: float
    tokens: int
    flops: float = 0.0
    metrics: Mapping[str, Tensor | float] = field(default_factory=dict)

    def detached(self) -> "LossOutput":
        """The same without its graph."""
        metrics = {k: v.detach() if isinstance(v, Tensor) else v for k, v in self.metrics.items()}
        return replace(self, sum=self.sum.detach().clone(), metrics=metrics)


Loss = Callable[[Transformer, Any], LossOutput]
"""`loss(model, batch) -> LossOutput`. It must not change the model or draw from a generator of its own making."""


def next_token_loss(model: Transformer, batch: PackedBatch) -> LossOutput:
    """Cross-entropy of every target of a packed batch, weighted where it has weights; never all logits are held."""
    device = model.device
    layout = DocumentLayout(batch.lengths, device=device)
    hidden_TD = model.hidden(to_device(batch.tokens.reshape(-1), device), layout)
    targets = batch.targets.reshape(-1)
    targets_T = to_device(targets, device)
    flops = packed_flops(model.config, batch.lengths, n_targets=batch.n_targets)
    share = model.split.cp  # of the batch's tokens this process counts its own
    if batch.weights is None:
        total = model.cross_entropy(hidden_TD, targets_T)
        count = float(batch.n_targets if share == 1 else np.count_nonzero(model.split.own(targets) != IGNORE))
    else:
        assert model.split.is_whole, "weights of tokens are for a model in one piece"
        logprobs_T = token_log_probs(hidden_TD, model.head_weight, targets_T)
        total = -(logprobs_T * to_device(batch.weights.reshape(-1), device).to(logprobs_T)).sum()
        count = float(batch.weights[batch.targets != IGNORE].sum(dtype=np.float64))
    return LossOutput(
        sum=total,
        count=count,
        tokens=batch.tokens.size // share,
        flops=flops / share,
    )


def packed_flops(
    config: ModelConfig,
    lengths: NDArray[np.int64],
    *,
    n_targets: int | None = None,
    stem_lengths: NDArray[np.int64] | None = None,
) -> float:
    """Model FLOPs of forward and backward over packed documents, causal convention.

    Args:
        config: The model's shape.
        lengths: Tokens of each document.
        n_targets: Tokens that go through the head; None means all.
        stem_lengths: Tokens of the stem that each piece sees whole, where there are trees.
    """
    n_tokens = float(lengths.sum())
    squares = np.square(lengths, dtype=np.float64)
    if stem_lengths is not None:
        squares += 2.0 * lengths * stem_lengths  # the convention counts half of a square, and these are whole
    mean_length = float(squares.sum()) / n_tokens  # weighted by tokens
    skipped = 0.0 if n_targets is None else n_tokens - n_targets
    return config.flops_per_token(mean_length) * n_tokens - 6.0 * config.vocab_size * config.dim * skipped
