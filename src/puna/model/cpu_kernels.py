"""The transformer's operations for a CPU: forward and backward written by hand, because there memory is what is slow.

PyTorch's autograd allocates a new tensor for each step of an expression and fetches it from memory again in the
backward pass. On a CPU each first touch of fresh memory costs more than the arithmetic. The functions here keep what
the backward needs and nothing else, write where the next matrix product reads, and reuse one buffer for scores:

- `rms_norm` alone; `normed_linear` and `feed_forward` with what follows it and with the residual stream. The norm's
  weight is folded into the matrix behind it: one pass less over every token.
- `feed_forward` goes some tokens at a time, so that what one product writes is still in the cache when the next step
  reads it. The product of gate and up is not kept: the backward makes it again.
- `split_heads`: takes the fused projection apart, turns queries and keys (RoPE), and lays all three out head by head,
  so that the attention products need no further copies.
- `attention`: causal attention within documents over the rectangles of `DocumentLayout.blocks`. The query heads that
  share a kv head are rows of one matrix product, so keys and values are never repeated. Masked rectangles do not exist.
  The branches of a tree of documents read the keys of their stem beside their own.

Each equals its plain formula (tests hold them against naive twins, gradients in fp64). `model/attention.py` and
`model/transformer.py` choose them for plain CPU tensors; every other device and tensor type takes the formulas.

T packed tokens, C tokens of a chunk, D width, F ffn, E = 2F, N query heads, K kv heads, G = N/K query heads per kv
head, H head dim, Q = T*G queries, R rows and C columns of a block.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from puna.model.layout import Block
from puna.model.products import accumulate, plus_product, product

KEPT_BYTES = 64 * 2**20  # probabilities that one layer may keep for its backward; beyond, they are computed twice
CHUNK_BYTES = (
    8 * 2**20
)  # gate and up of the tokens that go through the feed-forward together: a third-level cache holds it
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


def normalized(x_CD: Tensor, r_C1: Tensor, eps: float, out: Tensor) -> Tensor:
    """Write x r with r = (mean(x^2) + eps)^(-1/2), and r too."""
    torch.linalg.vector_norm(x_CD, dim=-1, keepdim=True, out=r_C1)
    r_C1.square_().div_(x_CD.shape[1]).add_(eps).rsqrt_()
    return torch.mul(x_CD, r_C1, out=out)


def normalized_backward(dy_CD: Tensor, y_CD: Tensor, r_C1: Tensor, *, plus: Tensor, out: Tensor) -> None:
    """Write dx = plus + r (dy - y mean(y dy)); dy is overwritten."""
    tiles = (t.split(max(1, TILE // y_CD.shape[1])) for t in (dy_CD, y_CD, r_C1, plus, out))
    for dy, y, r, before, dx in zip(*tiles, strict=True):
        torch.mul(dy, y, out=dx)
        mean = dx.sum(-1, keepdim=True).div_(-y.shape[1])
        torch.addcmul(before, dy.addcmul_(y, mean), r, out=dx)


class _NormedLinear(torch.autograd.Function):
    """(x, y W^T) with y = x normalized; x goes on as the residual stream, so both gradients meet here."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_ED: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        y_TD, r_T1 = torch.empty_like(x_TD), x_TD.new_empty(len(x_TD), 1)
        normalized(x_TD, r_T1, eps, y_TD)
        ctx.save_for_backward(y_TD, r_T1, weight_ED)
        return x_TD.view_as(x_TD), product(y_TD, weight_ED.T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        y_TD, r_T1, weight_ED = ctx.saved_tensors
        plus_TD, do_TE = grads[0].contiguous(), grads[1].contiguous()
        dx_TD = torch.empty_like(y_TD)
        normalized_backward(product(do_TE, weight_ED), y_TD, r_T1, plus=plus_TD, out=dx_TD)
        return dx_TD, do_TE.T @ y_TD, None


def normed_linear(
    x_TD: Float[Tensor, "T D"], weight_ED: Float[Tensor, "E D"], eps: float
) -> tuple[Float[Tensor, "T D"], Float[Tensor, "T E"]]:
    """The input itself, and the product of x / rms(x) with a matrix that already holds the norm's weight.

    Use the returned input as the residual stream: then its gradient is added where the norm's is written.

    Source: 1910.07467, equation 4.
    """
    return _NormedLinear.apply(x_TD, weight_ED, eps)  # pyright: ignore[reportReturnType]


class _AddLinear(torch.autograd.Function):
    """x + o W^T."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, o_TE: Tensor, weight_DE: Tensor) -> Tensor:
        ctx.save_for_backward(o_TE, weight_DE)
        return plus_product(x_TD, o_TE, weight_DE.T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        o_TE, weight_DE = ctx.saved_tensors
        return grads[0], product(grads[0].contiguous(), weight_DE), grads[0].T @ o_TE


def add_linear(
    x_TD: Float[Tensor, "T D"], o_TE: Float[Tensor, "T E"], weight_DE: Float[Tensor, "D E"]
) -> Float[Tensor, "T D"]:
    """The residual stream and the product of o with the matrix."""
    return _AddLinear.apply(x_TD, o_TE, weight_DE)  # pyright: ignore[reportReturnType]


def feed_forward_in_chunks(
    x_TD: Tensor, gate_up_ED: Tensor, down_DF: Tensor, eps: float, needs_gradient: bool
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The forward of `feed_forward`: output, `1 / rms` of each token, and gate and up of each chunk if asked for."""
    kept: list[Tensor] = []
    E = len(gate_up_ED)
    out_TD, r_T1 = torch.empty_like(x_TD), x_TD.new_empty(len(x_TD), 1)
    buffers = Buffers(x_TD)
    for x_CD, r_C1, out_CD in token_chunks(E, x_TD, r_T1, out_TD):
        y_CD = normalized(x_CD, r_C1, eps, buffers.take("y", x_CD.shape))
        gate_up_EC = product(gate_up_ED, y_CD.T)
        h_FC = swiglu(gate_up_EC, out=buffers.take("h", (E // 2, len(x_CD))))
        torch.addmm(x_CD, h_FC.T, down_DF.T, out=out_CD)
        if needs_gradient:
            kept.append(gate_up_EC)
    return out_TD, r_T1, kept


class _FeedForward(torch.autograd.Function):
    """out = x + h W_down^T with h = silu(g) u and (g, u) = W_gate_up y^T, y = x normalized; in chunks of tokens.

    Features along the rows make gate and up whole, contiguous halves. The backward overwrites both with their
    gradients: dg = dh u silu'(g), du = dh silu(g).
    """

    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, gate_up_ED: Tensor, down_DF: Tensor, eps: float, needs_gradient: bool
    ) -> Tensor:
        out_TD, r_T1, kept = feed_forward_in_chunks(x_TD, gate_up_ED, down_DF, eps, needs_gradient)
        ctx.save_for_backward(x_TD, r_T1, gate_up_ED, down_DF, *kept)  # saved, so that checkpointing can take it away
        ctx.overwritten = False
        return out_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, r_T1, gate_up_ED, down_DF, *kept = ctx.saved_tensors
        if ctx.overwritten:  # by the first backward of two (zero-bubble pipelines): make it again
            kept = []
        ctx.overwritten = True
        do_TD, dx_TD = grads[0].contiguous(), torch.empty_like(x_TD)
        d_gate_up_ED, d_down_FD, down_FD = None, None, down_DF.T.contiguous()
        buffers = Buffers(x_TD)
        chunks = token_chunks(len(gate_up_ED), x_TD, r_T1, do_TD, dx_TD)
        for number, (x_CD, r_C1, do_CD, dx_CD) in enumerate(chunks):
            shape = len(gate_up_ED) // 2, len(x_CD)
            y_CD = torch.mul(x_CD, r_C1, out=buffers.take("y", x_CD.shape))
            gate_up_EC = kept[number].data if kept else product(gate_up_ED, y_CD.T)  # .data: autograd need not know
            h_FC = swiglu_backward(product(down_FD, do_CD.T), gate_up_EC, out=buffers.take("h", shape))
            d_down_FD = accumulate(d_down_FD, h_FC, do_CD)
            d_gate_up_ED = accumulate(d_gate_up_ED, gate_up_EC, y_CD)
            dy_CD = torch.mm(gate_up_EC.T, gate_up_ED, out=buffers.take("dy", x_CD.shape))
            normalized_backward(dy_CD, y_CD, r_C1, plus=do_CD, out=dx_CD)
        return dx_TD, d_gate_up_ED, None if d_down_FD is None else d_down_FD.T, None, None


def swiglu(gate_up_EC: Tensor, *, out: Tensor) -> Tensor:
    """silu(gate) * up of features along the rows, `[F, C]` of `[2 F, C]`."""
    for h, g, u in _tiles(out.view(-1), *gate_up_EC.view(2, -1)):
        torch.ops.aten.silu.out(g, out=h).mul_(u)
    return out


def swiglu_backward(dh_FC: Tensor, gate_up_EC: Tensor, *, out: Tensor) -> Tensor:
    """Overwrite gate and up with their gradients, dg = dh u silu'(g) and du = dh silu(g); write h = silu(g) u too."""
    silu = dh_FC.new_empty(TILE)
    for dh, h, g, u in _tiles(dh_FC.view(-1), out.view(-1), *gate_up_EC.view(2, -1)):
        s = torch.ops.aten.silu.out(g, out=silu[: len(g)])
        torch.mul(dh, u, out=h)
        torch.ops.aten.silu_backward.grad_input(h, g, grad_input=g)
        torch.mul(s, u, out=h)
        torch.mul(s, dh, out=u)
    return out


class Buffers:
    """Scratch memory by name, as large as the largest request so far: first touch of new memory is slow."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._flat: dict[str, Tensor] = {}

    def take(self, name: str, shape: Sequence[int]) -> Tensor:
        """A matrix with whatever values are there."""
        n = shape[0] * shape[1]
        if name not in self._flat or len(self._flat[name]) < n:
            self._flat[name] = self._like.new_empty(n)
        return self._flat[name][:n].view(shape)


def token_chunks(width: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same tokens of several tensors, as many as fit into `CHUNK_BYTES` with `width` numbers each.

    Chunks are about equal and multiples of 64 tokens, so that rows of features begin on cache lines.
    """
    n_tokens = len(tensors[0])
    n_chunks = -(-n_tokens * width * tensors[0].element_size() // CHUNK_BYTES)
    size = -(-n_tokens // (64 * n_chunks)) * 64
    return zip(*(t.split(size) for t in tensors), strict=True)


def _tiles(*flat: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same stretch of several equally long vectors, small enough that all of them stay in the cache."""
    return zip(*(x.split(TILE) for x in flat), strict=True)


def feed_forward(
    x_TD: Float[Tensor, "T D"], gate_up_ED: Float[Tensor, "E D"], down_DF: Float[Tensor, "D F"], eps: float
) -> Float[Tensor, "T D"]:
    """The second half of a block with its residual: x + down(silu(gate(y)) * up(y)), where y = x / rms(x).

    Args:
        x_TD: The residual stream.
        gate_up_ED: Gate, then up (E = 2F), each already multiplied by the norm's weight.
        down_DF: The way back.
        eps: Of the norm.

    Source: SwiGLU, 2002.05202, section 2.
    """
    needs_gradient = torch.is_grad_enabled() and any(t.requires_grad for t in (x_TD, gate_up_ED, down_DF))
    return _FeedForward.apply(x_TD, gate_up_ED, down_DF, eps, needs_gradient)  # pyright: ignore[reportReturnType]


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
        torch.mul(q_KTGP, (turn_TP * head_dim**-0.5)[:, None], out=_complex(q_KTGH))
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
        torch.mul(_complex(dq_KTGH), (back_TP * head_dim**-0.5)[:, None], out=dq_KTGP)
        torch.mul(_complex(dk_KTH), back_TP, out=_complex(dk_TKH).transpose(0, 1))
        dv_TKH.copy_(dv_KTH.transpose(0, 1))
        return dheads.view(n_tokens, -1), None, None


def _complex(x: Tensor) -> Tensor:
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


def split_heads(
    qkv_TE: Float[Tensor, "T E"], cos: Float[Tensor, "T P"], sin: Float[Tensor, "T P"], n_kv_heads: int
) -> tuple[Float[Tensor, "K T G H"], Float[Tensor, "K T H"], Float[Tensor, "K T H"]]:
    """Queries, keys (both turned by their positions) and values of the fused projection, laid out by kv head.

    The queries come divided by sqrt(H), as attention wants them: the turn does that at no cost.

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
        for number, block in enumerate(blocks):
            p_KRC = _probabilities(q_KQH, k_KHT, block, kept[number], G)
            o_KRH = torch.bmm(p_KRC, _keys_of(v_KTH, block, 1))
            o_TKGH.narrow(0, block.first_row, block.rows).copy_(o_KRH.view(K, -1, G, H).transpose(0, 1))
            if keep:
                kept[number] = p_KRC
        ctx.save_for_backward(q_KTGH, k_KTH, v_KTH, *(kept if keep else ()))
        ctx.blocks = blocks
        return o_TKGH.view(T, K * G * H)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q_KTGH, k_KTH, v_KTH, *kept = ctx.saved_tensors
        K, T, G, H = q_KTGH.shape
        do_KQH = grads[0].view(T, K, G, H).transpose(0, 1).reshape(K, T * G, H)
        q_KQH, k_KHT, v_KHT = q_KTGH.view(K, T * G, H), k_KTH.transpose(1, 2), v_KTH.transpose(1, 2)
        dq_KQH, dk_KTH, dv_KTH = torch.empty_like(q_KQH), torch.zeros_like(k_KTH), torch.zeros_like(v_KTH)
        largest = max(K * G * block.rows * block.columns for block in ctx.blocks)
        ds_buffer = q_KTGH.new_empty(largest)
        buffer = ds_buffer if kept else q_KTGH.new_empty(largest)
        for number, block in enumerate(ctx.blocks):
            rows = block.first_row * G, block.rows * G
            q_KRH, do_KRH = q_KQH.narrow(1, *rows), do_KQH.narrow(1, *rows)
            p_KRC = kept[number] if kept else _probabilities(q_KQH, k_KHT, block, buffer, G)
            ds_KRC = ds_buffer[: p_KRC.numel()].view(p_KRC.shape)
            _add_to_keys(dv_KTH, torch.bmm(p_KRC.transpose(1, 2), do_KRH), block)
            torch.bmm(do_KRH, _keys_of(v_KHT, block, 2), out=ds_KRC)
            torch.ops.aten._softmax_backward_data.out(ds_KRC, p_KRC, -1, p_KRC.dtype, grad_input=ds_KRC)
            dq_KQH.narrow(1, *rows).copy_(torch.bmm(ds_KRC, _keys_of(k_KTH, block, 1)))
            _add_to_keys(dk_KTH, torch.bmm(ds_KRC.transpose(1, 2), q_KRH), block)
        return dq_KQH.view(q_KTGH.shape), dk_KTH, dv_KTH, None, None


def _probabilities(q_KQH: Tensor, k_KHT: Tensor, block: Block, buffer: Tensor, group: int) -> Tensor:
    """softmax(q k^T) of one block, written into the buffer, `[K, R*G, C]`."""
    K = len(q_KQH)
    R, C = block.rows, block.columns
    q_KRH = q_KQH.narrow(1, block.first_row * group, R * group)
    s_KRC = buffer[: K * R * group * C].view(K, R * group, C)
    torch.bmm(q_KRH, _keys_of(k_KHT, block, 2), out=s_KRC)
    s_KRC.view(K, R, group, C).narrow(3, C - R, R).add_(block.mask[:, None])
    return torch.ops.aten._softmax.out(s_KRC, -1, False, out=s_KRC)


def _keys_of(x: Tensor, block: Block, dim: int) -> Tensor:
    """The columns of a block: a view, or a copy where a stem lies apart."""
    own = x.narrow(dim, block.first_key, block.columns - block.stem[1])
    return torch.cat((x.narrow(dim, *block.stem), own), dim) if block.stem[1] else own


def _add_to_keys(total_KTH: Tensor, part_KCH: Tensor, block: Block) -> None:
    """The transpose of `_keys_of`: a gradient of the columns goes where they came from."""
    n_stem = block.stem[1]
    if n_stem:
        total_KTH.narrow(1, *block.stem).add_(part_KCH[:, :n_stem])
    total_KTH.narrow(1, block.first_key, block.columns - block.stem[1]).add_(part_KCH[:, n_stem:])


def attention(
    q_KTGH: Float[Tensor, "K T G H"],
    k_KTH: Float[Tensor, "K T H"],
    v_KTH: Float[Tensor, "K T H"],
    blocks: Sequence[Block],
) -> Float[Tensor, "T NH"]:
    """Causal attention inside documents.

    Args:
        q_KTGH: Queries by kv head, divided by sqrt(H) (as `split_heads` gives them).
        k_KTH: Keys.
        v_KTH: Values.
        blocks: From `DocumentLayout.blocks`: every token is a row of exactly one.

    Returns:
        The heads of each token side by side, ready for the output projection.
    """
    needs_gradient = torch.is_grad_enabled() and (q_KTGH.requires_grad or k_KTH.requires_grad or v_KTH.requires_grad)
    return _Attention.apply(q_KTGH, k_KTH, v_KTH, blocks, needs_gradient)  # pyright: ignore[reportReturnType]
