"""Cross-entropy straight from hidden states: the logits of the batch are never held at once.

With 128K tokens of vocabulary the logits are the largest tensor of a training step by far (fp32: 512 KB per token, and
as much again for their gradient). Here the tokens go through the head in chunks of at most `chunk_bytes` of logits. The
gradient of a sum of cross-entropies does not depend on anything that comes later, so each chunk's gradient is computed
while its logits are there: softmax minus one-hot, multiplied back into hidden states and head. Nothing is computed
twice, and tokens without a target are never multiplied at all.

`token_log_probs` is for losses that weigh tokens by something known only later (DPO): it keeps one number per token and
computes each chunk's logits again in the backward.

Source: the fused linear cross-entropy of Liger Kernel (2410.10989, section 3.2); Cut Your Losses (2411.09009).

T packed tokens, D width, V vocabulary.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from puna.core.batch import IGNORE
from puna.model.products import product

CHUNK_BYTES = 32 * 2**20
"""Logits held at once. Two cores with 32 MiB: large enough for the matrix products, small enough for the caches."""


def linear_cross_entropy(
    hidden_TD: Float[Tensor, "T D"],
    head_VD: Float[Tensor, "V D"],
    targets_T: Int[Tensor, " T"],
    *,
    chunk_bytes: int = CHUNK_BYTES,
) -> Float[Tensor, ""]:
    """Sum of the cross-entropies of the tokens that have a target.

    Args:
        hidden_TD: Normalized hidden states (`Transformer.hidden`, flattened).
        head_VD: The head (`Transformer.head_weight`).
        targets_T: Right answers, or `IGNORE` (-100) where nothing is asked.
        chunk_bytes: Logits in fp32 that may be held at once.

    Returns:
        The sum in nats, fp32 (fp64 for fp64 input). Its gradient flows into hidden states and head.
    """
    needs_gradient = torch.is_grad_enabled() and (hidden_TD.requires_grad or head_VD.requires_grad)
    return _LinearCrossEntropy.apply(hidden_TD, head_VD, targets_T, chunk_bytes, needs_gradient)  # pyright: ignore


def token_log_probs(
    hidden_TD: Float[Tensor, "T D"],
    head_VD: Float[Tensor, "V D"],
    targets_T: Int[Tensor, " T"],
    *,
    chunk_bytes: int = CHUNK_BYTES,
) -> Float[Tensor, " T"]:
    """Log-probability of each target; 0, without gradient, where the target is `IGNORE`.

    Args and dtype as in `linear_cross_entropy`; one number per token comes back.
    """
    return _TokenLogProbs.apply(hidden_TD, head_VD, targets_T, chunk_bytes)  # pyright: ignore


def chunks(n_tokens: int, vocab_size: int, chunk_bytes: int) -> Iterator[slice]:
    """Even runs of tokens whose fp32 logits take at most `chunk_bytes`."""
    rows = max(1, chunk_bytes // (4 * vocab_size))
    n_chunks = -(-n_tokens // rows)
    rows = -(-n_tokens // max(1, n_chunks))  # even chunks: no small rest
    return (slice(start, min(start + rows, n_tokens)) for start in range(0, n_tokens, rows or 1))


def asked(hidden_TD: Tensor, targets_T: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """The tokens that have a target, their targets, and where they were (None: all have one).

    Off the CPU all tokens are taken, since choosing would make the host wait; `weigh` then takes out those without.
    """
    if not hidden_TD.is_cpu:
        return hidden_TD, targets_T, None
    index = (targets_T != IGNORE).nonzero()[:, 0]
    if len(index) == len(targets_T):
        return hidden_TD, targets_T, None
    return hidden_TD[index], targets_T[index], index


def weigh(targets_C: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Targets that can be looked up, as a column, and 1 for those that count, else 0."""
    return targets_C.clamp(min=0)[:, None], (targets_C != IGNORE).to(dtype)


def spread(gradient_AD: Tensor, index: Tensor | None, n_tokens: int) -> Tensor:
    """The gradient of the asked tokens at their places among all tokens."""
    if index is None:
        return gradient_AD
    return gradient_AD.new_zeros(n_tokens, gradient_AD.shape[1]).index_copy_(0, index, gradient_AD)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """`total += left @ right`, without holding the product where the dtypes allow that."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums: fp32, or fp64 for fp64."""
    return torch.promote_types(dtype, torch.float32)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_TD: Tensor, head_VD: Tensor, targets_T: Tensor, chunk_bytes: int, needs_gradient: bool
    ) -> Tensor:
        asked_AD, targets_A, index = asked(hidden_TD, targets_T)
        total = torch.zeros((), dtype=wide(hidden_TD.dtype), device=hidden_TD.device)
        d_asked_AD = torch.empty_like(asked_AD) if needs_gradient else None
        d_head_VD = torch.zeros_like(head_VD, dtype=total.dtype) if ctx.needs_input_grad[1] else None
        runs = list(chunks(len(asked_AD), len(head_VD), chunk_bytes))
        for chunk in runs:
            targets_C1, weight_C = weigh(targets_A[chunk], total.dtype)
            logits_CV = product(asked_AD[chunk], head_VD.T).to(total.dtype)
            if needs_gradient and hidden_TD.is_cpu:
                loss, d_logits_CV = _loss_and_probabilities(logits_CV, targets_C1, asked_AD[chunk], head_VD)
                total += loss
            else:
                d_logits_CV = torch.ops.aten._log_softmax.out(logits_CV, 1, False, out=logits_CV)
                total -= torch.dot(d_logits_CV.gather(1, targets_C1)[:, 0], weight_C)
                if needs_gradient:
                    d_logits_CV.exp_()
            if d_asked_AD is not None:
                d_logits_CV.scatter_add_(1, targets_C1, torch.full_like(targets_C1, -1, dtype=total.dtype))
                if not hidden_TD.is_cpu:
                    d_logits_CV.mul_(weight_C[:, None])
                narrow_CV = d_logits_CV.to(head_VD.dtype)
                d_asked_AD[chunk] = product(narrow_CV, head_VD)
                if d_head_VD is not None:  # a frozen head has no gradient
                    add_product(d_head_VD, narrow_CV.T, asked_AD[chunk])
                del narrow_CV
            del logits_CV, d_logits_CV  # before the next chunk's are made: only one chunk is held
        ctx.gradients = d_asked_AD, d_head_VD, index
        ctx.like = len(hidden_TD), head_VD.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        d_asked_AD, d_head_VD, index = ctx.gradients
        ctx.gradients = None  # scaled in place: a second backward would scale twice
        n_tokens, head_dtype = ctx.like
        d_hidden_TD = spread(d_asked_AD.mul_(grads[0]), index, n_tokens) if ctx.needs_input_grad[0] else None
        d_head = d_head_VD.mul_(grads[0]).to(head_dtype) if ctx.needs_input_grad[1] else None
        return d_hidden_TD, d_head, None, None, None


def _loss_and_probabilities(
    logits_CV: Tensor, targets_C1: Tensor, asked_CD: Tensor, head_VD: Tensor
) -> tuple[Tensor, Tensor]:
    """On a CPU: the sum of the cross-entropies, and the probabilities in place of the logits.

    The loss comes from the probabilities: one exponential a logit instead of two. The rows in which the target's
    probability is too small for its logarithm to be exact (fp32 ends at 1e-38) are computed again.
    """
    probs_CV = torch.ops.aten._softmax.out(logits_CV, 1, False, out=logits_CV)
    target_C1 = probs_CV.gather(1, targets_C1)
    log_C1 = target_C1.log()
    if (target_C1 < 1e-30).any():
        rows = (target_C1[:, 0] < 1e-30).nonzero()[:, 0]
        again = (asked_CD[rows] @ head_VD.T).to(logits_CV.dtype).log_softmax(1)
        log_C1[rows] = again.gather(1, targets_C1[rows])
    return -log_C1.sum(), probs_CV


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_TD: Tensor, head_VD: Tensor, targets_T: Tensor, chunk_bytes: int) -> Tensor:
        asked_AD, targets_A, index = asked(hidden_TD, targets_T)
        log_probs_A = hidden_TD.new_empty(len(asked_AD), dtype=wide(hidden_TD.dtype))
        for chunk in chunks(len(asked_AD), len(head_VD), chunk_bytes):
            targets_C1, weight_C = weigh(targets_A[chunk], log_probs_A.dtype)
            logits_CV = product(asked_AD[chunk], head_VD.T).to(log_probs_A.dtype)
            log_probs_A[chunk] = (logits_CV.gather(1, targets_C1)[:, 0] - logits_CV.logsumexp(1)) * weight_C
        ctx.save_for_backward(asked_AD, head_VD, targets_A, index)
        ctx.chunk_bytes, ctx.n_tokens = chunk_bytes, len(hidden_TD)
        return spread(log_probs_A[:, None], index, len(hidden_TD))[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        asked_AD, head_VD, targets_A, index = ctx.saved_tensors
        d_log_probs_A = grads[0] if index is None else grads[0][index]
        d_asked_AD = torch.empty_like(asked_AD)
        d_head_VD = torch.zeros_like(head_VD, dtype=d_log_probs_A.dtype) if ctx.needs_input_grad[1] else None
        for chunk in chunks(len(asked_AD), len(head_VD), ctx.chunk_bytes):
            targets_C1, weight_C = weigh(targets_A[chunk], d_log_probs_A.dtype)
            weight_C1 = (d_log_probs_A[chunk] * weight_C)[:, None]
            probs_CV = product(asked_AD[chunk], head_VD.T).to(d_log_probs_A.dtype).softmax(1)
            d_logits_CV = probs_CV.mul_(-weight_C1).scatter_add_(1, targets_C1, weight_C1)
            narrow_CV = d_logits_CV.to(head_VD.dtype)
            d_asked_AD[chunk] = product(narrow_CV, head_VD)
            if d_head_VD is not None:
                add_product(d_head_VD, narrow_CV.T, asked_AD[chunk])
        d_head = None if d_head_VD is None else d_head_VD.to(head_VD.dtype)
        return spread(d_asked_AD, index, ctx.n_tokens), d_head, None, None
