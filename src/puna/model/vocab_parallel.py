"""Embedding and cross-entropy where each process of a tensor-parallel group holds a part of the vocabulary.

The embedding looks up what it has, zeros elsewhere, and the sum over the group is the answer. For the loss, each
process makes the logits of its own vocabulary, chunk by chunk as in `linear_cross_entropy.py`; maximum, sum of
exponentials and the target's logit are reduced over the group, and no process ever sees all logits. Gradients are made
while the logits are there. The gradient of the hidden states is a partial one: `Split.gather`, which made them, adds
the parts up.

Source: Megatron-LM (1909.08053), section 3.

T packed tokens, A asked tokens, C tokens of a chunk, D width, V vocabulary of this process.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from puna.core.batch import IGNORE
from puna.model.linear_cross_entropy import CHUNK_BYTES, add_product, asked, chunks, spread, wide
from puna.model.split import Split


def embed(embedding: nn.Module, tokens_T: Tensor, split: Split, first: int) -> Tensor:
    """Embeddings of this process's share of the tokens.

    Args:
        embedding: Rows of the vocabulary from `first` on.
        tokens_T: All tokens of the tensor-parallel group.
        split: The process.
        first: First id of the vocabulary held here.
    """
    if split.tp == 1:
        return embedding(tokens_T)
    local_T = tokens_T - first
    n_rows = embedding.num_embeddings
    assert isinstance(n_rows, int)
    foreign_T = (local_T < 0) | (local_T >= n_rows)
    x_TD = embedding(local_T.masked_fill(foreign_T, 0)).masked_fill(foreign_T[:, None], 0)
    return split.reduce_scatter(x_TD)


def split_cross_entropy(
    hidden_TD: Tensor, head_VD: Tensor, targets_T: Tensor, split: Split, *, vocab_size: int, first: int
) -> Tensor:
    """Sum of the cross-entropies of the tokens that have a target; the same number on each process of the group.

    Args:
        hidden_TD: Normalized hidden states.
        head_VD: Rows of the head from `first` on.
        targets_T: Right answers among the whole vocabulary, or `IGNORE`.
        split: The process.
        vocab_size: Size of the whole vocabulary.
        first: First id of the vocabulary held here.
    """
    needs_gradient = torch.is_grad_enabled() and (hidden_TD.requires_grad or head_VD.requires_grad)
    return _SplitCrossEntropy.apply(  # pyright: ignore
        hidden_TD, head_VD, targets_T, split, (vocab_size, first), needs_gradient
    )


class _SplitCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        head_VD: Tensor,
        targets_T: Tensor,
        split: Split,
        vocab: tuple[int, int],
        needs_gradient: bool,
    ) -> Tensor:
        vocab_size, first = vocab
        asked_AD, targets_A, index = asked(hidden_TD, targets_T)
        total = torch.zeros((), dtype=wide(hidden_TD.dtype), device=hidden_TD.device)
        d_asked_AD = torch.empty_like(asked_AD) if needs_gradient else None
        d_head_VD = torch.zeros_like(head_VD, dtype=total.dtype) if needs_gradient else None
        for chunk in chunks(len(asked_AD), vocab_size, CHUNK_BYTES * split.tp):
            logits_CV = (asked_AD[chunk] @ head_VD.T).to(total.dtype)
            weight_C = (targets_A[chunk] != IGNORE).to(total.dtype)
            local_C = targets_A[chunk] - first
            foreign_C = (local_C < 0) | (local_C >= len(head_VD))
            local_C1 = local_C.masked_fill(foreign_C, 0)[:, None]
            log_sum_C, target_C = _reduced(logits_CV, local_C1, foreign_C, split)
            total += torch.dot(log_sum_C - target_C, weight_C)
            if d_asked_AD is not None and d_head_VD is not None:
                d_logits_CV = logits_CV.sub_(log_sum_C[:, None]).exp_()
                own_C1 = foreign_C[:, None].to(total.dtype) - 1
                d_logits_CV.scatter_add_(1, local_C1, own_C1)
                if not hidden_TD.is_cpu:
                    d_logits_CV.mul_(weight_C[:, None])
                narrow_CV = d_logits_CV.to(head_VD.dtype)
                torch.mm(narrow_CV, head_VD, out=d_asked_AD[chunk])
                add_product(d_head_VD, narrow_CV.T, asked_AD[chunk])
        ctx.gradients = d_asked_AD, d_head_VD, index
        ctx.like = len(hidden_TD), head_VD.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # not in place and kept: a zero-bubble pipeline asks for input and weight gradients one after the other
        d_asked_AD, d_head_VD, index = ctx.gradients
        n_tokens, head_dtype = ctx.like
        d_hidden_TD = spread(d_asked_AD * grads[0].to(d_asked_AD.dtype), index, n_tokens)
        return d_hidden_TD, (d_head_VD * grads[0]).to(head_dtype), None, None, None, None


def _reduced(logits_CV: Tensor, local_C1: Tensor, foreign_C: Tensor, split: Split) -> tuple[Tensor, Tensor]:
    """Log of the sum of exponentials over the whole vocabulary, and the target's logit, of each token."""
    target_C = logits_CV.gather(1, local_C1)[:, 0].masked_fill(foreign_C, 0)
    if split.tp == 1:
        return logits_CV.logsumexp(1), target_C
    top_C = logits_CV.amax(1)
    dist.all_reduce(top_C, dist.ReduceOp.MAX, group=split.tp_group)
    sums_2C = torch.stack((torch.exp(logits_CV - top_C[:, None]).sum(1), target_C))
    dist.all_reduce(sums_2C, group=split.tp_group)
    return sums_2C[0].log() + top_C, sums_2C[1]
