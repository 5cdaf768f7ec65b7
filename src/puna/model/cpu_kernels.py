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

T packed tokens, D width, F ffn, N query heads, K kv heads, G = N/K query heads per kv head, H head dim, Q = T*G
queries, R rows and C columns of a block.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from puna.model.layout import Block

KEPT_BYTES = 64 * 2**20  # probabilities that one layer may keep for its backward; beyond, they are computed twice
TILE = 65_536  # numbers: five vectors of 256 KiB fit into a second-level cache, and two threads share one tile


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
        dy_TD = grads[0].contiguous()
        x_TD, weight_D, r_T1 = ctx.saved_tensors
        dx_TD, dw_D = torch.empty_like(x_TD), torch.zeros_like(weight_D)
        rows = max(1, TILE // x_TD.shape[1])
        for dx, dy, x, r in zip(*(t.split(rows) for t in (dx_TD, dy_TD, x_TD, r_T1)), strict=True):
            torch.mul(dy, x, out=dx)
            dw_D.addmv_(dx.t(), r[:, 0])
            mean = torch.mv(dx, weight_D)[:, None].mul_(r.pow(3)).div_(-x.shape[1])
            torch.mul(dy, weight_D, out=dx).mul_(r).addcmul_(x, mean)
        return dx_TD, dw_D, None


def rms_norm(x: Float[Tensor, "... D"], weight_D: Float[Tensor, " D"], eps: float) -> Float[Tensor, "... D"]:
    """Root-mean-square normalization. Source: 1910.07467, equation 4."""
    if x.dim() == 2:  # no view of the result: FSDP's hooks warn of views
        return _RMSNorm.apply(x, weight_D, eps)  # pyright: ignore[reportReturnType]
    flat = x.reshape(-1, x.shape[-1])
    return _RMSNorm.apply(flat, weight_D, eps).view(x.shape)  # pyright: ignore[reportAttributeAccessIssue]


class _SwiGLU(torch.autograd.Function):
    """y = silu(g) u; du = dy silu(g); dg = dy u silu'(g). In tiles: each number is fetched from memory once."""

    @staticmethod
    def forward(ctx: Any, gate_up_FFT: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up_FFT)
        gate, up = gate_up_FFT.view(2, -1)
        y_FT = gate_up_FFT.new_empty(gate_up_FFT.shape[0] // 2, gate_up_FFT.shape[1])
        for y, g, u in _tiles(y_FT.view(-1), gate, up):
            torch.ops.aten.silu.out(g, out=y).mul_(u)
        return y_FT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (gate_up_FFT,) = ctx.saved_tensors
        dgate_up_FFT = torch.empty_like(gate_up_FFT)
        for dy, g, u, dg, du in _tiles(grads[0].reshape(-1), *gate_up_FFT.view(2, -1), *dgate_up_FFT.view(2, -1)):
            torch.mul(dy, u, out=du)
            torch.ops.aten.silu_backward.grad_input(du, g, grad_input=dg)
            torch.ops.aten.silu.out(g, out=du).mul_(dy)
        return dgate_up_FFT


def _tiles(*flat: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same stretch of several equally long vectors, small enough that all of them stay in the cache."""
    return zip(*(x.split(TILE) for x in flat), strict=True)


def swiglu(gate_up_FFT: Float[Tensor, "FF T"]) -> Float[Tensor, "F T"]:
    """silu(gate) * up of the fused projection, gate first, tokens along the rows. Source: 2002.05202, section 2."""
    return _SwiGLU.apply(gate_up_FFT)  # pyright: ignore[reportReturnType]


def interleave_pairs(weight_ED: Float[Tensor, "E D"], n_rotated: int, head_dim: int) -> Float[Tensor, "E D"]:
    """The fused projection with the rows of the first `n_rotated` heads reordered: pair (i, i + H/2) side by side.

    Then a pair is one complex number and a rotation one complex product. Scores do not depend on the order of a head's
    coordinates as long as queries and keys share it.
    """
    turned, rest = weight_ED.split((n_rotated * head_dim, weight_ED.shape[0] - n_rotated * head_dim))
    pairs = turned.unflatten(0, (n_rotated, 2, -1)).transpose(1, 2).flatten(0, 2)
    return torch.cat((pairs, rest))


class _SplitHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv_TE: Tensor, turn_TP: Tensor, n_kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
        n_tokens, head_dim = qkv_TE.shape[0], 2 * turn_TP.shape[1]
        heads = qkv_TE.view(n_tokens, -1, head_dim)
        n_heads = heads.shape[1] - 2 * n_kv_heads
        ctx.save_for_backward(turn_TP)
        q_KTGH = qkv_TE.new_empty(n_kv_heads, n_tokens, n_heads // n_kv_heads, head_dim)
        k_KTH = qkv_TE.new_empty(n_kv_heads, n_tokens, head_dim)
        q_TNH, k_TKH, v_TKH = heads.split((n_heads, n_kv_heads, n_kv_heads), dim=1)
        q_KTGP = _complex(q_TNH).unflatten(1, (n_kv_heads, -1)).transpose(0, 1)
        torch.mul(q_KTGP, turn_TP[:, None], out=_complex(q_KTGH))
        torch.mul(_complex(k_TKH).transpose(0, 1), turn_TP, out=_complex(k_KTH))
        return q_KTGH, k_KTH, v_TKH.transpose(0, 1).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        dq_KTGH, dk_KTH, dv_KTH = grads
        n_kv_heads, n_tokens, group, head_dim = dq_KTGH.shape
        back_TP = ctx.saved_tensors[0].conj().resolve_conj()  # the inverse of a turn is the turn the other way
        dheads = dq_KTGH.new_empty(n_tokens, n_kv_heads * (group + 2), head_dim)
        dq_TNH, dk_TKH, dv_TKH = dheads.split((n_kv_heads * group, n_kv_heads, n_kv_heads), dim=1)
        dq_KTGP = _complex(dq_TNH).unflatten(1, (n_kv_heads, -1)).transpose(0, 1)
        torch.mul(_complex(dq_KTGH), back_TP[:, None], out=dq_KTGP)
        torch.mul(_complex(dk_KTH), back_TP, out=_complex(dk_TKH).transpose(0, 1))
        dv_TKH.copy_(dv_KTH.transpose(0, 1))
        return dheads.view(n_tokens, -1), None, None


def _complex(x: Tensor) -> Tensor:
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


def split_heads(
    qkv_TE: Float[Tensor, "T E"], cos: Float[Tensor, "T P"], sin: Float[Tensor, "T P"], n_kv_heads: int
) -> tuple[Float[Tensor, "K T G H"], Float[Tensor, "K T H"], Float[Tensor, "K T H"]]:
    """Queries, keys (both turned by their positions) and values of the fused projection, laid out by kv head.

    Args:
        qkv_TE: Output of the projection with `interleave_pairs`.
        cos: Of each token's angles.
        sin: Of each token's angles.
        n_kv_heads: K.
    """
    turn_TP = torch.complex(cos, sin).to(torch.complex128 if qkv_TE.dtype == torch.float64 else torch.complex64)
    return _SplitHeads.apply(qkv_TE, turn_TP, n_kv_heads)  # pyright: ignore[reportReturnType]


class _Attention(torch.autograd.Function):
    """Softmax attention over a list of blocks. Keeps the probabilities when they are few, else computes them again."""

    @staticmethod
    def forward(
        ctx: Any, q_KTGH: Tensor, k_KTH: Tensor, v_KTH: Tensor, blocks: Sequence[Block], needs_gradient: bool
    ) -> Tensor:
        K, T, G, H = q_KTGH.shape
        sizes = [K * G * block.rows * block.columns for block in blocks]
        keep = needs_gradient and sum(sizes) * q_KTGH.element_size() <= KEPT_BYTES
        kept = list(q_KTGH.new_empty(sum(sizes)).split(sizes)) if keep else [q_KTGH.new_empty(max(sizes))] * len(sizes)
        o_TKGH = q_KTGH.new_empty(T, K, G, H)
        q_KQH, k_KHT = q_KTGH.view(K, T * G, H), k_KTH.transpose(1, 2)
        for block, buffer in zip(blocks, kept, strict=True):
            p_KRC = _probabilities(q_KQH, k_KHT, block, buffer, G)
            o_KRH = torch.bmm(p_KRC, v_KTH.narrow(1, block.first_key, block.columns))
            o_TKGH.narrow(0, block.first_row, block.rows).copy_(o_KRH.view(K, -1, G, H).transpose(0, 1))
        ctx.save_for_backward(q_KTGH, k_KTH, v_KTH)
        ctx.blocks, ctx.kept = blocks, kept if keep else None
        return o_TKGH.view(T, K * G * H)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q_KTGH, k_KTH, v_KTH = ctx.saved_tensors
        K, T, G, H = q_KTGH.shape
        do_KTGH = grads[0].view(T, K, G, H).transpose(0, 1).contiguous()
        q_KQH, do_KQH = q_KTGH.view(K, T * G, H), do_KTGH.view(K, T * G, H)
        k_KHT, v_KHT = k_KTH.transpose(1, 2), v_KTH.transpose(1, 2)
        dq_KQH, dk_KTH, dv_KTH = torch.empty_like(q_KQH), torch.zeros_like(k_KTH), torch.zeros_like(v_KTH)
        largest = max(K * G * block.rows * block.columns for block in ctx.blocks)
        ds_buffer = q_KTGH.new_empty(largest)
        kept = ctx.kept
        buffer = ds_buffer if kept is not None else q_KTGH.new_empty(largest)
        for number, block in enumerate(ctx.blocks):
            rows, keys = (block.first_row * G, block.rows * G), (block.first_key, block.columns)
            q_KRH, do_KRH = q_KQH.narrow(1, *rows), do_KQH.narrow(1, *rows)
            if kept is None:
                p_KRC = _probabilities(q_KQH, k_KHT, block, buffer, G)
            else:
                p_KRC = kept[number].view(K, block.rows * G, block.columns)
            p_KCR, ds_KRC = p_KRC.transpose(1, 2), ds_buffer[: p_KRC.numel()].view(p_KRC.shape)
            dv_KTH.narrow(1, *keys).add_(torch.bmm(p_KCR, do_KRH))
            torch.bmm(do_KRH, v_KHT.narrow(2, *keys), out=ds_KRC)
            torch.ops.aten._softmax_backward_data.out(ds_KRC, p_KRC, -1, p_KRC.dtype, grad_input=ds_KRC)
            dq_KQH.narrow(1, *rows).copy_(torch.bmm(ds_KRC, k_KTH.narrow(1, *keys)))
            dk_KTH.narrow(1, *keys).add_(torch.bmm(ds_KRC.transpose(1, 2), q_KRH))
        ctx.kept = None
        scale = H**-0.5
        return dq_KQH.mul_(scale).view(q_KTGH.shape), dk_KTH.mul_(scale), dv_KTH, None, None


def _probabilities(q_KQH: Tensor, k_KHT: Tensor, block: Block, buffer: Tensor, group: int) -> Tensor:
    """softmax(q k^T / sqrt(H)) of one block, written into the buffer, `[K, R*G, C]`."""
    K, _, H = q_KQH.shape
    R, C = block.rows, block.columns
    q_KRH = q_KQH.narrow(1, block.first_row * group, R * group)
    s_KRC = buffer[: K * R * group * C].view(K, R * group, C)
    torch.baddbmm(s_KRC, q_KRH, k_KHT.narrow(2, block.first_key, C), beta=0, alpha=H**-0.5, out=s_KRC)
    s_KRC.view(K, R, group, C).narrow(3, C - R, R).add_(block.mask[:, None])
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
    needs_gradient = torch.is_grad_enabled() and (q_KTGH.requires_grad or k_KTH.requires_grad or v_KTH.requires_grad)
    return _Attention.apply(q_KTGH, k_KTH, v_KTH, blocks, needs_gradient)  # pyright: ignore[reportReturnType]
