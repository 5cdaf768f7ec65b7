"""Cross-entropy and the divergence from a teacher, straight from both models' hidden states.

    sum over targets of   (1 - a) CE + a T^2 D(p, q),    p = softmax(teacher / T),  q = softmax(student / T)

    forward_kl   sum p log(p / q)                     gradient in the student's logits / T:  q - p
    reverse_kl   sum q log(q / p)                     q (g - sum q g),  g = log(q / p)
    jsd          b KL(p | m) + (1 - b) KL(q | m)      the same with  g = (1 - b) log(q / m),  m = b p + (1 - b) q

As in `linear_cross_entropy.py` the tokens go through the heads in chunks, and a chunk's gradient is computed while its
logits are there: no logits of the batch are ever held, of neither model. Tokens without a target cost nothing.

Source: Hinton et al. 2015, 1503.02531, section 2 (the factor T^2); generalized JSD: 2306.13649, equation 1.

T packed tokens, A tokens with a target, C tokens of a chunk, D width, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from puna.core.batch import IGNORE
from puna.model.linear_cross_entropy import CHUNK_BYTES, add_product, chunks, wide

Divergence = Literal["forward_kl", "reverse_kl", "jsd"]


@dataclass(frozen=True)
class Mixture:
    """What is summed.

    Attributes:
        divergence: From the teacher.
        share: a, of the divergence; the rest is cross-entropy.
        temperature: T.
        jsd_beta: b, the teacher's share of the mixture m.
    """

    divergence: Divergence = "forward_kl"
    share: float = 0.5
    temperature: float = 1.0
    jsd_beta: float = 0.5


@dataclass(frozen=True)
class Head:
    """Hidden states and the matrix that makes logits of them."""

    hidden: Float[Tensor, "T D"]
    matrix: Float[Tensor, "V D"]


def distillation_sums(
    student: Head,
    teacher: Head,
    targets_T: Int[Tensor, " T"],
    mixture: Mixture,
    *,
    weights_T: Float[Tensor, " T"] | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> Float[Tensor, " 3"]:
    """The loss, and its two parts without a gradient: cross-entropy and divergence (without T^2), each summed.

    Args:
        student: Gets the gradient, in hidden states and head.
        teacher: Of the same vocabulary, any width.
        targets_T: Right answers, or `IGNORE` (-100) where nothing is asked.
        mixture: Which divergence, and how much of it.
        weights_T: Of the tokens; None: one each.
        chunk_bytes: fp32 logits of one model that may be held at once.

    Returns:
        `[loss, cross-entropy, divergence]` in nats, fp32 (fp64 for fp64 input).
    """
    needs = torch.is_grad_enabled() and (student.hidden.requires_grad or student.matrix.requires_grad)
    return _Sums.apply(  # pyright: ignore[reportReturnType]
        student.hidden, student.matrix, teacher, targets_T, mixture, weights_T, chunk_bytes, needs
    )


class _Sums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        head_VD: Tensor,
        teacher: Head,
        targets_T: Tensor,
        mixture: Mixture,
        weights_T: Tensor | None,
        chunk_bytes: int,
        needs_gradient: bool,
    ) -> Tensor:
        kind = wide(hidden_TD.dtype)
        places = (targets_T != IGNORE).nonzero()[:, 0]
        sums = torch.zeros(3, dtype=kind, device=hidden_TD.device)
        d_hidden_TD = torch.zeros_like(hidden_TD) if needs_gradient else None
        d_head_VD = torch.zeros_like(head_VD, dtype=kind) if ctx.needs_input_grad[1] else None
        for chunk in chunks(len(places), len(head_VD), chunk_bytes):
            own = places[chunk]
            weight_C1 = torch.ones_like(own, dtype=kind) if weights_T is None else weights_T[own].to(kind)
            asked_CD, targets_C1, weight_C1 = hidden_TD[own], targets_T[own, None], weight_C1[:, None]
            student_CV = (asked_CD @ head_VD.T).to(kind)
            teacher_CV = (teacher.hidden[own] @ teacher.matrix.T).to(kind)
            losses_C2, d_logits_CV = _chunk(student_CV, teacher_CV, targets_C1, mixture)
            parts = (losses_C2 * weight_C1).sum(0)
            sums[0] += (1 - mixture.share) * parts[0] + mixture.share * mixture.temperature**2 * parts[1]
            sums[1:] += parts
            if d_hidden_TD is not None:
                narrow_CV = d_logits_CV.mul_(weight_C1).to(head_VD.dtype)
                d_hidden_TD[own] = narrow_CV @ head_VD
                if d_head_VD is not None:
                    add_product(d_head_VD, narrow_CV.T, asked_CD)
        ctx.gradients, ctx.dtype = (d_hidden_TD, d_head_VD), head_VD.dtype
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden_TD, d_head_VD = ctx.gradients
        ctx.gradients = None  # scaled in place
        scale = grads[0][0]  # the parts are for reading only
        d_hidden = d_hidden_TD.mul_(scale) if ctx.needs_input_grad[0] else None
        d_head = None if d_head_VD is None else d_head_VD.mul_(scale).to(ctx.dtype)
        return d_hidden, d_head, None, None, None, None, None, None


def _chunk(student_CV: Tensor, teacher_CV: Tensor, targets_C1: Tensor, mixture: Mixture) -> tuple[Tensor, Tensor]:
    """Cross-entropy and divergence of each token, and the gradient of their mixture in the student's logits.

    The logits are overwritten.
    """
    T, a, b = mixture.temperature, mixture.share, mixture.jsd_beta
    log_CV = student_CV.log_softmax(1)
    entropy_C1 = -log_CV.gather(1, targets_C1)
    gradient_CV = log_CV.exp().scatter_add_(1, targets_C1, -torch.ones_like(entropy_C1)).mul_(1 - a)
    log_q = log_CV if T == 1.0 else student_CV.div_(T).log_softmax(1)
    log_p = teacher_CV.div_(T).log_softmax(1)
    if mixture.divergence == "forward_kl":
        p = log_p.exp()
        value_C1 = (p * (log_p - log_q)).sum(1, keepdim=True)
        d_CV = log_q.exp().sub_(p)
    elif mixture.divergence == "reverse_kl":
        q, g = log_q.exp(), log_p.neg_().add_(log_q)
        value_C1 = (q * g).sum(1, keepdim=True)
        d_CV = g.sub_(value_C1).mul_(q)
    else:
        p, q = log_p.exp(), log_q.exp()
        log_m = (b * p + (1 - b) * q).log_()
        g = (log_q - log_m).mul_(1 - b)
        inner_C1 = (q * g).sum(1, keepdim=True)
        value_C1 = b * (p * log_p.sub_(log_m)).sum(1, keepdim=True) + inner_C1
        d_CV = g.sub_(inner_C1).mul_(q)
    gradient_CV.add_(d_CV, alpha=a * T)  # T^2 of the loss, 1/T of the logits
    return torch.cat((entropy_C1, value_C1), 1), gradient_CV
