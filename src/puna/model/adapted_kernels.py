"""A frozen block with low-rank adapters on a CPU: the kernels of `cpu_kernels.py` without gradients of the base.

For the products, W + s B A is put together (a matrix of the base's size that lives for one call), so a forward costs
what it costs without adapters, whatever the rank, and an adapter whose B is zero changes no bit. The backward makes the
matrix again, and from it only the input's gradient; those of A and B come from the thin products

    dB = dy^T (x A^T)        dA = (dy B)^T x

so the third of the work that a full backward spends on matrices' gradients falls away, and nothing of the base's size
is kept between forward and backward. A packed base is unpacked for the call. The norm's weight, frozen too, is folded
into the matrix and into A.

In fp32 and fp64 only: in bf16 a small addition would be rounded away, so there `Projection.forward` adds the results.

T packed tokens, C tokens of a chunk, D width, E outputs (E = 2F for gate and up), F ffn, R rank, P adapted parts.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from puna.model.cpu_kernels import (
    Buffers,
    feed_forward_in_chunks,
    interleave_pairs,
    normalized,
    normalized_backward,
    swiglu_backward,
    token_chunks,
)
from puna.model.products import plus_product, product
from puna.model.projection import Factors, Projection

Blocks = Sequence[tuple[int, int, int]]


class Merged:
    """A frozen matrix and its adapters, ready for a kernel.

    Args:
        projection: Whose.
        norm_D: Weight of the norm in front, folded in; None: there is none.
        rotated: Heads whose rows are reordered, and their width (`interleave_pairs`); None: none.
    """

    def __init__(
        self, projection: Projection, *, norm_D: Tensor | None = None, rotated: tuple[int, int] | None = None
    ) -> None:
        self._projection, self._rotated = projection, rotated
        self._norm_D = None if norm_D is None else norm_D.detach()
        factors: Factors = projection.factors()
        self.A, self.B, self.blocks = factors
        if self._norm_D is not None:
            self.A = self.A * self._norm_D
        if rotated is not None and factors.blocks:
            self.B = interleave_pairs(self.B, *rotated)

    @torch.no_grad()
    def make(self, A: Tensor, B: Tensor) -> Float[Tensor, "E D"]:
        """The whole matrix."""
        weight_ED = self._projection.base()
        shared = self._projection.packed is None  # the parameter itself, which must not change
        if self._rotated is not None:
            weight_ED, shared = interleave_pairs(weight_ED, *self._rotated), False
        if self._norm_D is not None:
            weight_ED, shared = weight_ED * self._norm_D if shared else weight_ED.mul_(self._norm_D), False
        if self.blocks and shared:
            weight_ED = weight_ED.clone()
        for first, rows, number in self.blocks:
            part_RD = A.narrow(0, number * B.shape[1], B.shape[1])
            weight_ED.narrow(0, first, rows).addmm_(B.narrow(0, first, rows), part_RD)
        return weight_ED


class _Gradients:
    """Sums of dA and dB over chunks of tokens."""

    def __init__(self, A: Tensor, B: Tensor, blocks: Blocks) -> None:
        self._A, self._B, self._blocks = A, B, blocks
        self.A, self.B = torch.zeros_like(A), torch.zeros_like(B)

    def add(self, d_EC: Tensor, x_CD: Tensor) -> None:
        """One chunk: the outputs' gradient and the inputs, in either memory order."""
        if not self._blocks:
            return
        rank = self._B.shape[1]
        t_CP = x_CD @ self._A.T
        u_PC = t_CP.new_empty(self._A.shape[0], len(x_CD))
        for first, rows, number in self._blocks:
            own, part_nC = slice(number * rank, (number + 1) * rank), d_EC.narrow(0, first, rows)
            self.B.narrow(0, first, rows).addmm_(part_nC, t_CP[:, own])
            torch.mm(self._B.narrow(0, first, rows).T, part_nC, out=u_PC[own])
        self.A.addmm_(u_PC, x_CD)


class _NormedLinear(torch.autograd.Function):
    """(x, y W^T) with y = x normalized, as `cpu_kernels.normed_linear`."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, A: Tensor, B: Tensor, merged: Merged, eps: float) -> tuple[Tensor, Tensor]:
        weight_ED = merged.make(A, B)
        y_TD, r_T1 = torch.empty_like(x_TD), x_TD.new_empty(len(x_TD), 1)
        normalized(x_TD, r_T1, eps, y_TD)
        ctx.save_for_backward(y_TD, r_T1, A, B)
        ctx.merged = merged
        return x_TD.view_as(x_TD), product(y_TD, weight_ED.T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, None]:
        y_TD, r_T1, A, B = ctx.saved_tensors
        gradients = _Gradients(A, B, ctx.merged.blocks)
        plus_TD, do_TE = grads[0].contiguous(), grads[1].contiguous()
        gradients.add(do_TE.T, y_TD)
        if not ctx.needs_input_grad[0]:  # the first block's input is the embedding's, which is frozen
            return None, gradients.A, gradients.B, None, None
        dx_TD = torch.empty_like(y_TD)
        normalized_backward(product(do_TE, ctx.merged.make(A, B)), y_TD, r_T1, plus=plus_TD, out=dx_TD)
        return dx_TD, gradients.A, gradients.B, None, None


def normed_linear(
    x_TD: Float[Tensor, "T D"], merged: Merged, eps: float
) -> tuple[Float[Tensor, "T D"], Float[Tensor, "T E"]]:
    """The input itself, to go on as the residual stream, and the product of x / rms(x) with the merged matrix."""
    return _NormedLinear.apply(x_TD, merged.A, merged.B, merged, eps)  # pyright: ignore[reportReturnType]


class _AddLinear(torch.autograd.Function):
    """x + o W^T."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, o_TE: Tensor, A: Tensor, B: Tensor, merged: Merged) -> Tensor:
        ctx.save_for_backward(o_TE, A, B)
        ctx.merged = merged
        return plus_product(x_TD, o_TE, merged.make(A, B).T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor, None]:
        o_TE, A, B = ctx.saved_tensors
        gradients = _Gradients(A, B, ctx.merged.blocks)
        gradients.add(grads[0].T, o_TE)
        do_TE = product(grads[0].contiguous(), ctx.merged.make(A, B)) if ctx.needs_input_grad[1] else None
        return grads[0], do_TE, gradients.A, gradients.B, None


def add_linear(x_TD: Float[Tensor, "T D"], o_TE: Float[Tensor, "T E"], merged: Merged) -> Float[Tensor, "T D"]:
    """The residual stream and the product of o with the merged matrix."""
    return _AddLinear.apply(x_TD, o_TE, merged.A, merged.B, merged)  # pyright: ignore[reportReturnType]


class _FeedForward(torch.autograd.Function):
    """x + h W_down^T with h = silu(g) u and (g, u) = W_gate_up y^T, as `cpu_kernels.feed_forward`."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        A: Tensor,
        B: Tensor,
        A_down: Tensor,
        B_down: Tensor,
        gate_up: Merged,
        down: Merged,
        eps: float,
        needs_gradient: bool,
    ) -> Tensor:
        gate_up_ED, down_DF = gate_up.make(A, B), down.make(A_down, B_down)
        out_TD, r_T1, kept = feed_forward_in_chunks(x_TD, gate_up_ED, down_DF, eps, needs_gradient)
        ctx.save_for_backward(x_TD, r_T1, A, B, A_down, B_down, *kept)
        ctx.merged, ctx.overwritten = (gate_up, down), False
        return out_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, r_T1, A, B, A_down, B_down, *kept = ctx.saved_tensors
        gate_up, down = ctx.merged
        assert not ctx.overwritten, "a block with adapters goes through one backward only"
        ctx.overwritten = True
        gate_up_ED, down_DF = gate_up.make(A, B), down.make(A_down, B_down)
        of_gate_up, of_down = _Gradients(A, B, gate_up.blocks), _Gradients(A_down, B_down, down.blocks)
        do_TD, dx_TD = grads[0].contiguous(), torch.empty_like(x_TD)
        buffers, down_FD = Buffers(x_TD), down_DF.T.contiguous()
        chunks = token_chunks(len(gate_up_ED), x_TD, r_T1, do_TD, dx_TD)
        for saved_EC, (x_CD, r_C1, do_CD, dx_CD) in zip(kept, chunks, strict=True):
            shape, gate_up_EC = (len(gate_up_ED) // 2, len(x_CD)), saved_EC.data  # overwritten, as there
            y_CD = torch.mul(x_CD, r_C1, out=buffers.take("y", x_CD.shape))
            h_FC = swiglu_backward(product(down_FD, do_CD.T), gate_up_EC, out=buffers.take("h", shape))
            of_down.add(do_CD.T, h_FC.T)
            of_gate_up.add(gate_up_EC, y_CD)
            dy_CD = torch.mm(gate_up_EC.T, gate_up_ED, out=buffers.take("dy", x_CD.shape))
            normalized_backward(dy_CD, y_CD, r_C1, plus=do_CD, out=dx_CD)
        return dx_TD, of_gate_up.A, of_gate_up.B, of_down.A, of_down.B, None, None, None, None


def feed_forward(x_TD: Float[Tensor, "T D"], gate_up: Merged, down: Merged, eps: float) -> Float[Tensor, "T D"]:
    """The second half of a block with its residual: x + down(silu(gate(y)) * up(y)), where y = x / rms(x).

    Args:
        x_TD: The residual stream.
        gate_up: Gate, then up, with the norm's weight folded in.
        down: The way back.
        eps: Of the norm.
    """
    tensors = (x_TD, gate_up.A, gate_up.B, down.A, down.B)
    needs_gradient = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    return _FeedForward.apply(*tensors, gate_up, down, eps, needs_gradient)  # pyright: ignore[reportReturnType]
