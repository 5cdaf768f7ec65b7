"""Log probabilities of given tokens, with gradients, without ever holding all logits.

Contrastive losses need the log probability of every answer token before they know its gradient: the coefficient of a
pair depends on the sums over both answers. So the forward pass goes over the tokens in chunks and keeps one number a
token (its log-sum-exp), and the backward pass makes each chunk's logits again:

    lp_t = w[y_t] . h_t - lse_t            d lp_t / d logits_t = onehot(y_t) - softmax(logits_t)

Memory: one chunk of logits instead of T x V; price: the head's product is computed twice.

T tokens, D width, V vocabulary, C tokens of a chunk.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK_ELEMENTS = 1 << 23  # logits held at a time: 32 MiB in float32, which stays near the caches and feeds the product


def token_logprobs(
    hidden_TD: Float[Tensor, "T D"],
    weight_VD: Float[Tensor, "V D"],
    targets_T: Int[Tensor, " T"],
    *,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> Float[Tensor, " T"]:
    """Natural log probability of each target under softmax(hidden @ weight.T).

    Args:
        hidden_TD: normalized hidden states, one for each target.
        weight_VD: the head.
        targets_T: token ids, 0..V-1.
        chunk_elements: logits held at a time.

    Returns:
        float32 log probabilities, differentiable in `hidden_TD` and `weight_VD`.
    """
    assert hidden_TD.shape[0] == targets_T.shape[0], f"{hidden_TD.shape[0]} states, {targets_T.shape[0]} targets"
    chunk = max(1, chunk_elements // weight_VD.shape[0])
    return _TokenLogprobs.apply(hidden_TD, weight_VD, targets_T, chunk)  # type: ignore[return-value]


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, chunk: int) -> Tensor:
        lse_T = torch.empty(targets_T.shape, dtype=torch.float32, device=hidden_TD.device)
        picked_T = torch.empty_like(lse_T)
        for start in range(0, len(targets_T), chunk):
            place = slice(start, start + chunk)
            logits_CV = (hidden_TD[place] @ weight_VD.T).float()
            torch.logsumexp(logits_CV, dim=-1, out=lse_T[place])
            picked_T[place] = logits_CV.gather(1, targets_T[place, None]).squeeze(1)
        ctx.save_for_backward(hidden_TD, weight_VD, targets_T, lse_T)
        ctx.chunk = chunk
        return picked_T - lse_T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        gradient_T = gradients[0]
        hidden_TD, weight_VD, targets_T, lse_T = ctx.saved_tensors
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        hidden_gradient_TD = torch.empty_like(hidden_TD) if needs_hidden else None
        weight_gradient_VD = torch.zeros_like(weight_VD) if needs_weight else None
        for start in range(0, len(targets_T), ctx.chunk):
            place = slice(start, start + ctx.chunk)
            logits_CV = (hidden_TD[place] @ weight_VD.T).float()
            logits_CV.sub_(lse_T[place, None]).exp_().mul_(-gradient_T[place, None])
            logits_CV.scatter_add_(1, targets_T[place, None], gradient_T[place, None])
            logits_CV = logits_CV.to(hidden_TD.dtype)
            if hidden_gradient_TD is not None:
                hidden_gradient_TD[place] = logits_CV @ weight_VD
            if weight_gradient_VD is not None:
                weight_gradient_VD.addmm_(logits_CV.T, hidden_TD[place])
        return hidden_gradient_TD, weight_gradient_VD, None, None
