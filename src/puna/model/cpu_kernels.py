"""The transformer's operations for a CPU: forward and backward written by hand, because there memory is what is slow.

PyTorch's autograd allocates a new tensor for each step of an expression and fetches it from memory again in the
backward pass. On a CPU each first touch of fresh memory costs more than the arithmetic. The four functions here keep
what the backward needs and nothing else, write where the next matrix product reads, and reuse one buffer for scores:

- `rms_norm` and `swiglu`: element-wise, in as few passes as the formulas allow.
- `split_heads`: takes the fused projection apart, turns queries and keys (RoPE), and lays all three out head by head,
  so that the attention products need no further copies.
- `attention`: causal attention within documents over the rectangles of `DocumentLayout.blocks`. The query heads that
  share a kv head are rows of one matrix product, so keys and values are never repeated. Masked rectangles do not exist.

Each equals its plain formula (tests hold them against naive twins, gradients in fp64). `model/attention.py` and
`model/transformer.py` choose them for plain CPU tensors; every other device and tensor type takes the formulas.

T packed tokens, D width, F ffn, N query heads, K kv heads, G = N/K query heads per kv head, H head dim, R rows and
C columns of a block.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from puna.model.layout import Block


def suits(x: Tensor) -> bool:
    """Whether these kernels take this tensor: a plain fp32 or fp64 tensor in CPU memory, not being traced."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and type(x) in (Tensor, torch.nn.Parameter)
        and not torch.compiler.is_compiling()
    )


class _RMSNorm(torch.autograd.Function):
    """y = x r w with r = (mean(x^2) + eps)^(-1/2); dx = r (w dy - x r^2 mean(w dy x)); dw = sum of dy x r."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        r_T1 = torch.linalg.vector_norm(x_TD, dim=-1, keepdim=True)
        r_T1.square_().div_(x_TD.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x_TD, weight_D, r_T1)
        return (x_TD * r_T1).mul_(weight_D)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (dy_TD,) = grads
        x_TD, weight_D, r_T1 = ctx.saved_tensors
        product_TD = dy_TD * x_TD
        dw_D = torch.mv(product_TD.t(), r_T1[:, 0])
        mean_T1 = torch.mv(product_TD, weight_D)[:, None].mul_(r_T1.pow(3)).div_(-x_TD.shape[-1])
        dx_TD = torch.mul(dy_TD, weight_D, out=product_TD).mul_(r_T1).addcmul_(x_TD, mean_T1)
        return dx_TD, dw_D, None


def rms_norm(x: Float[Tensor, "... D"], weight_D: Float[Tensor, " D"], eps: float) -> Float[Tensor, "... D"]:
    """Root-mean-square normalization. Source: 1910.07467, equation 4."""
    flat = x.reshape(-1, x.shape[-1])
    return _RMSNorm.apply(flat, weight_D, eps).view(x.shape)  # pyright: ignore[reportAttributeAccessIssue]


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up_TF2: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up_TF2)
        gate_TF, up_TF = gate_up_TF2.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate_TF).mul_(up_TF)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (dy_TF,) = grads
        (gate_up_TF2,) = ctx.saved_tensors
        gate_TF, up_TF = gate_up_TF2.chunk(2, dim=-1)
        dgate_up_TF2 = torch.empty_like(gate_up_TF2)
        dgate_TF, dup_TF = dgate_up_TF2.chunk(2, dim=-1)
        torch.mul(torch.nn.functional.silu(gate_TF), dy_TF, out=dup_TF)
        torch.ops.aten.silu_backward.grad_input(dy_TF * up_TF, gate_TF, grad_input=dgate_TF)
        return dgate_up_TF2


def swiglu(gate_up: Float[Tensor, "... FF"]) -> Float[Tensor, "... F"]:
    """silu(gate) * up of the fused projection, gate first. Source: 2002.05202, section 2."""
    return _SwiGLU.apply(gate_up)  # pyright: ignore[reportReturnType]


class _SplitHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, n_kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
        n_tokens, head_dim = qkv.shape[0], 2 * cos.shape[-1]
        heads = qkv.view(n_tokens, -1, head_dim)
        n_heads = heads.shape[1] - 2 * n_kv_heads
        ctx.save_for_backward(cos, sin)
        q_KTGH = qkv.new_empty(n_kv_heads, n_tokens, n_heads // n_kv_heads, head_dim)
        k_KTH = qkv.new_empty(n_kv_heads, n_tokens, head_dim)
        q_TNH, k_TKH, v_TKH = heads.split((n_heads, n_kv_heads, n_kv_heads), dim=1)
        _turn(q_TNH.unflatten(1, (n_kv_heads, -1)).transpose(0, 1), cos[:, None], sin[:, None], out=q_KTGH)
        _turn(k_TKH.transpose(0, 1), cos, sin, out=k_KTH)
        return q_KTGH, k_KTH, v_TKH.transpose(0, 1).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        dq_KTGH, dk_KTH, dv_KTH = grads
        cos, sin = ctx.saved_tensors
        n_kv_heads, n_tokens, group, head_dim = dq_KTGH.shape
        dheads = dq_KTGH.new_empty(n_tokens, n_kv_heads * (group + 2), head_dim)
        dq_TNH, dk_TKH, dv_TKH = dheads.split((n_kv_heads * group, n_kv_heads, n_kv_heads), dim=1)
        back = -sin  # the inverse of a turn is the turn the other way
        _turn(dq_KTGH, cos[:, None], back[:, None], out=dq_TNH.unflatten(1, (n_kv_heads, -1)).transpose(0, 1))
        _turn(dk_KTH, cos, back, out=dk_TKH.transpose(0, 1))
        dv_TKH.copy_(dv_KTH.transpose(0, 1))
        return dheads.view(n_tokens, -1), None, None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, *, out: Tensor) -> None:
    first, second = x.chunk(2, dim=-1)
    out_first, out_second = out.chunk(2, dim=-1)
    torch.mul(first, cos, out=out_first).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out_second).addcmul_(first, sin)


def split_heads(
    qkv: Float[Tensor, "T qkv"], cos: Float[Tensor, "T pairs"], sin: Float[Tensor, "T pairs"], n_kv_heads: int
) -> tuple[Float[Tensor, "K T G H"], Float[Tensor, "K T H"], Float[Tensor, "K T H"]]:
    """Queries, keys (both turned by their positions) and values of the fused projection, laid out by kv head."""
    return _SplitHeads.apply(qkv, cos, sin, n_kv_heads)  # pyright: ignore[reportReturnType]


class _Attention(torch.autograd.Function):
    """Softmax attention over a list of blocks; the backward computes each block's probabilities again."""

    @staticmethod
    def forward(ctx: Any, q_KTGH: Tensor, k_KTH: Tensor, v_KTH: Tensor, blocks: Sequence[Block]) -> Tensor:
        K, T, G, H = q_KTGH.shape
        ctx.save_for_backward(q_KTGH, k_KTH, v_KTH)
        ctx.blocks = blocks
        o_TNH = q_KTGH.new_empty(T, K, G, H)
        buffer = _score_buffer(q_KTGH, blocks)
        for block in blocks:
            p_KRC = _probabilities(q_KTGH, k_KTH, block, buffer)
            o_KRH = torch.bmm(p_KRC, v_KTH[:, block.first_key : block.end])
            o_TNH[block.first_row : block.end] = o_KRH.view(K, -1, G, H).transpose(0, 1)
        return o_TNH.view(T, K * G * H)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q_KTGH, k_KTH, v_KTH = ctx.saved_tensors
        K, T, G, H = q_KTGH.shape
        do_KTGH = grads[0].view(T, K, G, H).transpose(0, 1).contiguous()
        dq_KTGH, dk_KTH, dv_KTH = torch.empty_like(q_KTGH), torch.zeros_like(k_KTH), torch.zeros_like(v_KTH)
        buffer, buffer_2 = _score_buffer(q_KTGH, ctx.blocks), _score_buffer(q_KTGH, ctx.blocks)
        for block in ctx.blocks:
            rows, keys = slice(block.first_row, block.end), slice(block.first_key, block.end)
            p_KRC = _probabilities(q_KTGH, k_KTH, block, buffer)
            q_KRH, do_KRH = q_KTGH[:, rows].flatten(1, 2), do_KTGH[:, rows].flatten(1, 2)
            dv_KTH[:, keys] += torch.bmm(p_KRC.transpose(1, 2), do_KRH)
            ds_KRC = buffer_2[: p_KRC.numel()].view(p_KRC.shape)
            torch.bmm(do_KRH, v_KTH[:, keys].transpose(1, 2), out=ds_KRC)
            torch.ops.aten._softmax_backward_data.out(ds_KRC, p_KRC, -1, p_KRC.dtype, grad_input=ds_KRC)
            dq_KTGH[:, rows] = torch.bmm(ds_KRC, k_KTH[:, keys]).view(K, -1, G, H)
            dk_KTH[:, keys] += torch.bmm(ds_KRC.transpose(1, 2), q_KRH)
        scale = H**-0.5
        return dq_KTGH.mul_(scale), dk_KTH.mul_(scale), dv_KTH, None


def _score_buffer(q_KTGH: Tensor, blocks: Sequence[Block]) -> Tensor:
    K, _, G, _ = q_KTGH.shape
    return q_KTGH.new_empty(max(block.rows * block.columns for block in blocks) * K * G)


def _probabilities(q_KTGH: Tensor, k_KTH: Tensor, block: Block, buffer: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(H)) of one block, written into the buffer, `[K, R*G, C]`."""
    K, _, G, H = q_KTGH.shape
    R, C = block.rows, block.columns
    q_KRH = q_KTGH[:, block.first_row : block.end].flatten(1, 2)
    k_KCH = k_KTH[:, block.first_key : block.end]
    s_KRC = buffer[: K * R * G * C].view(K, R * G, C)
    torch.baddbmm(s_KRC, q_KRH, k_KCH.transpose(1, 2), beta=0, alpha=H**-0.5, out=s_KRC)
    s_KRC.view(K, R, G, C)[..., C - R :] += block.mask[:, None]
    return torch.ops.aten._softmax.out(s_KRC, -1, False, out=s_KRC)


def attention(
    q_KTGH: Float[Tensor, "K T G H"],
    k_KTH: Float[Tensor, "K T H"],
    v_KTH: Float[Tensor, "K T H"],
    blocks: Sequence[Block],
) -> Float[Tensor, "T NH"]:
    """Causal attention inside documents.

    Args:
        q_KTGH: Queries by kv head.
        k_KTH: Keys.
        v_KTH: Values.
        blocks: From `DocumentLayout.blocks`: every token is a row of exactly one.

    Returns:
        The heads of each token side by side, ready for the output projection.
    """
    return _Attention.apply(q_KTGH, k_KTH, v_KTH, blocks)  # pyright: ignore[reportReturnType]
