"""Grouped-query attention over packed documents, in training, in prefill and in decode.

N query heads share K key and value heads (G = N/K queries each), which makes the kv cache G times smaller. A token sees
the tokens before it in its own document and itself. Three ways lead to the same numbers:

- plain CPU tensors without a cache: `on_cpu`, by the kernels of `cpu_kernels.py`;
- CUDA in bf16 or fp16: PyTorch's variable-length flash attention;
- anything else: `scaled_dot_product_attention`, once for all documents when they have one length, else one by one.

Pieces that continue a stem (trees of documents, see `layout.py`) take the same kernels on a CPU; on CUDA they take flex
attention.

With a kv cache the new tokens of each row see the row's cached tokens too: `CacheStep` says which. A process that holds
a part of the heads gathers the tokens, and one that holds a part of the tokens gathers keys and values: `split.py`.

Source: GQA, 2305.13245; document masking, The Llama 3 Herd of Models (2407.21783), section 3.2.

T packed tokens, B rows, S sequence, D width, N query heads, K kv heads (those held here), G = N/K, H head dim, C cached
tokens.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from puna.model import adapted_kernels, cpu_kernels
from puna.model.config import ModelConfig
from puna.model.context import ContextLayout
from puna.model.kv_cache import CacheStep
from puna.model.layout import DocumentLayout
from puna.model.projection import Projection
from puna.model.rope import rotate
from puna.model.split import WHOLE, Split
from puna.model.tree_attention import attend_trees

__all__ = ["Attention", "DocumentLayout", "attend_cached", "attend_documents", "attend_pieces"]


class Attention(nn.Module):
    """The attention half of a block.

    Parameters: `qkv.weight` `[(N + 2 K) H, D]`, rows in the order all query heads, all key heads, all value heads;
    `output.weight` `[D, N H]`.
    """

    def __init__(self, config: ModelConfig, split: Split = WHOLE) -> None:
        super().__init__()
        self.split, self.head_dim = split, config.head_dim
        self.n_heads, self.n_kv_heads = config.n_heads // split.tp, config.n_kv_heads // split.tp
        heads, kv = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        self.qkv = Projection(config.dim, {"q_proj": heads, "k_proj": kv, "v_proj": kv})
        self.output = Projection(heads, {"o_proj": config.dim})

    def forward(
        self,
        x_TD: Float[Tensor, "T D"],
        turn: tuple[Tensor, Tensor],
        layout: DocumentLayout | ContextLayout,
        cache: tuple[CacheStep, int] | None = None,
        only_W: Int[Tensor, " W"] | None = None,
    ) -> Float[Tensor, "W D"]:
        """Mix information between the tokens of each document.

        Args:
            x_TD: Normalized input; with tensor parallelism this process's share of the tokens.
            turn: cos and sin of each token's position, from `rope.rotation`.
            layout: The documents; with a cache, the new tokens of each row.
            cache: The step of the kv cache and this layer's number, or None.
            only_W: The tokens whose output is wanted; None: all.
        """
        if cache is None and cpu_kernels.suits(x_TD):
            n_rotated = self.n_heads + self.n_kv_heads
            if self.qkv.is_plain:
                weight_ED = cpu_kernels.interleave_pairs(self.qkv.weight, n_rotated, self.head_dim)
                qkv_TE = self.split.gathered_product(x_TD, weight_ED)
            else:
                qkv_TE = cpu_kernels.interleave_pairs(self.qkv(x_TD).T, n_rotated, self.head_dim).T.contiguous()
            o_TD = self._attend_on_cpu(qkv_TE, turn, layout)
            return self.split.reduce_scatter(self.output(_chosen(o_TD, only_W)))
        heads = self.split.gathered(self.qkv, x_TD).unflatten(-1, (-1, self.head_dim))
        q_TNH, k_TKH, v_TKH = heads.split((self.n_heads, self.n_kv_heads, self.n_kv_heads), dim=1)
        q_TNH, k_TKH = rotate(q_TNH, *turn), rotate(k_TKH, *turn)
        if cache is None and isinstance(layout, ContextLayout):
            k_TKH, v_TKH = layout.gather_keys(torch.stack((k_TKH, v_TKH), dim=1)).unbind(1)
            o_TNH = attend_pieces(q_TNH, k_TKH, v_TKH, layout)
        elif cache is None:
            assert isinstance(layout, DocumentLayout)
            o_TNH = attend_documents(q_TNH, k_TKH, v_TKH, layout)
        else:
            step, layer = cache
            step.write(layer, k_TKH, v_TKH)
            o_TNH = attend_cached(q_TNH, step, layer)
        return self.split.reduce_scatter(self.output(_chosen(o_TNH.flatten(1), only_W)))

    def on_cpu(
        self,
        x_TD: Float[Tensor, "T D"],
        norm_D: Float[Tensor, " D"],
        eps: float,
        turn: tuple[Tensor, Tensor],
        layout: DocumentLayout | ContextLayout,
        only_W: Int[Tensor, " W"] | None = None,
    ) -> Float[Tensor, "W D"]:
        """The first half of a block by `cpu_kernels`: x + attention(norm(x)), without a cache; of whole layers only.

        Args:
            x_TD: The residual stream.
            norm_D: Weight of the norm before the attention; it is folded into the projection.
            eps: Of that norm.
            turn: As in `forward`.
            layout: As in `forward`.
            only_W: As in `forward`.
        """
        n_rotated = self.n_heads + self.n_kv_heads
        if not (self.qkv.is_plain and self.output.is_plain):
            qkv = adapted_kernels.Merged(self.qkv, norm_D=norm_D, rotated=(n_rotated, self.head_dim))
            x_TD, qkv_TE = adapted_kernels.normed_linear(x_TD, qkv, eps)
            o_WD = _chosen(self._attend_on_cpu(qkv_TE, turn, layout), only_W)
            return adapted_kernels.add_linear(_chosen(x_TD, only_W), o_WD, adapted_kernels.Merged(self.output))
        weight_ED = cpu_kernels.interleave_pairs(self.qkv.weight * norm_D, n_rotated, self.head_dim)
        x_TD, qkv_TE = cpu_kernels.normed_linear(x_TD, weight_ED, eps)
        o_WD = _chosen(self._attend_on_cpu(qkv_TE, turn, layout), only_W)
        return cpu_kernels.add_linear(_chosen(x_TD, only_W), o_WD, self.output.weight)

    def _attend_on_cpu(
        self, qkv_TE: Tensor, turn: tuple[Tensor, Tensor], layout: DocumentLayout | ContextLayout
    ) -> Tensor:
        q, k, v = cpu_kernels.split_heads(qkv_TE, *turn, self.n_kv_heads)
        if isinstance(layout, ContextLayout):
            kv_T2KH = layout.gather_keys(torch.stack((k, v)).permute(2, 0, 1, 3))
            k, v = kv_T2KH.permute(1, 2, 0, 3).contiguous()
        return cpu_kernels.attention(q, k, v, layout.blocks)


def _chosen(x_TD: Tensor, only_W: Tensor | None) -> Tensor:
    return x_TD if only_W is None else x_TD[only_W]


def attend_documents(
    q_TNH: Float[Tensor, "T N H"],
    k_TKH: Float[Tensor, "T K H"],
    v_TKH: Float[Tensor, "T K H"],
    layout: DocumentLayout,
) -> Float[Tensor, "T N H"]:
    """Causal attention inside each document, by PyTorch's kernels."""
    if layout.has_trees:
        return attend_trees(q_TNH, k_TKH, v_TKH, layout)
    if q_TNH.is_meta:
        return _ShapesOnly.apply(q_TNH, k_TKH, v_TKH)  # pyright: ignore[reportReturnType]
    if _takes_varlen(q_TNH):
        ends, longest = layout.cu_seqlens, layout.max_length
        return _varlen(q_TNH, k_TKH, v_TKH, ends, ends, longest, longest)
    if layout.uniform_length is not None:
        q, k, v = (x.unflatten(0, (-1, layout.uniform_length)).transpose(1, 2) for x in (q_TNH, k_TKH, v_TKH))
        o = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return o.transpose(1, 2).flatten(0, 1)
    lengths = layout.lengths.tolist()
    documents = zip(*(x.transpose(0, 1).split(lengths, dim=1) for x in (q_TNH, k_TKH, v_TKH)), strict=True)
    outputs = [scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True) for q, k, v in documents]
    return torch.cat(outputs, dim=1).transpose(0, 1)


def attend_pieces(
    q_tNH: Float[Tensor, "t N H"],
    k_TKH: Float[Tensor, "T K H"],
    v_TKH: Float[Tensor, "T K H"],
    layout: ContextLayout,
) -> Float[Tensor, "t N H"]:
    """Causal attention of own queries inside each document, over the keys of the whole sequence."""
    if q_tNH.is_meta:
        return _ShapesOnly.apply(q_tNH, k_TKH, v_TKH)  # pyright: ignore[reportReturnType]
    if _takes_varlen(q_tNH):  # its causal mask is aligned to the last key, which is what a piece needs
        k, v = k_TKH[layout.key_index], v_TKH[layout.key_index]
        return _varlen(q_tNH, k, v, layout.query_ends, layout.key_ends, *layout.longest)
    outputs = []
    for piece, q in zip(layout.pieces, q_tNH.split([p.rows for p in layout.pieces]), strict=True):
        k, v = (x.narrow(0, piece.first_key, piece.columns).transpose(0, 1) for x in (k_TKH, v_TKH))
        seen = torch.ones(piece.rows, piece.columns, dtype=torch.bool, device=q.device)
        seen = seen.tril(piece.columns - piece.rows)
        o = scaled_dot_product_attention(q.transpose(0, 1)[None], k[None], v[None], attn_mask=seen, enable_gqa=True)
        outputs.append(o[0].transpose(0, 1))
    return torch.cat(outputs)


class _ShapesOnly(torch.autograd.Function):
    """What a flash kernel keeps for its backward, for models on the meta device: inputs, output, one number a row."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, log_sums = torch.empty_like(q), q.new_empty(q.shape[:2], dtype=torch.float32)
        ctx.save_for_backward(q, k, v, out, log_sums)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(x) for x in ctx.saved_tensors[:3])


def _takes_varlen(q_TNH: Tensor) -> bool:
    return q_TNH.is_cuda and q_TNH.dtype in (torch.bfloat16, torch.float16)


def _varlen(
    q: Tensor, k: Tensor, v: Tensor, query_ends: Tensor, key_ends: Tensor, most_queries: int, most_keys: int
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # registers its CUDA operators when it is imported

    out = varlen_attn(q, k, v, query_ends, key_ends, most_queries, most_keys, window_size=(-1, 0), enable_gqa=True)
    assert isinstance(out, Tensor), "varlen_attn returns a tensor when no auxiliary output is asked for"
    return out


def attend_cached(q_TNH: Float[Tensor, "T N H"], step: CacheStep, layer: int) -> Float[Tensor, "T N H"]:
    """Attention of each row's new tokens over everything its cache holds, the new tokens included."""
    if step.is_decode:
        return _decode(q_TNH, step, layer)
    outputs = []
    for row, q_SNH in zip(step.rows, q_TNH.split(step.counts.tolist()), strict=True):
        end = int(step.cache.lengths[row])
        k_KCH, v_KCH = step.cache.keys[layer, row, :, :end], step.cache.values[layer, row, :, :end]
        n_new = q_SNH.shape[0]
        seen = torch.ones(n_new, end, dtype=torch.bool, device=q_TNH.device).tril(end - n_new)
        q_1NSH = q_SNH.transpose(0, 1)[None]
        o_1NSH = scaled_dot_product_attention(q_1NSH, k_KCH[None], v_KCH[None], attn_mask=seen, enable_gqa=True)
        outputs.append(o_1NSH[0].transpose(0, 1))
    return torch.cat(outputs)


def _decode(q_BNH: Tensor, step: CacheStep, layer: int) -> Tensor:
    """One new token a row: the G queries of a kv head are one small matrix, and rows of all lengths go together."""
    k_BKCH, v_BKCH = step.window(layer)
    q_BKGH = q_BNH.unflatten(1, (k_BKCH.shape[1], -1))
    s_BKGC = torch.matmul(q_BKGH, k_BKCH.transpose(2, 3)).float().mul_(q_BNH.shape[-1] ** -0.5)
    if step.padding is not None:
        s_BKGC.masked_fill_(step.padding[:, None, None], -torch.inf)
    return torch.matmul(s_BKGC.softmax(-1).to(v_BKCH.dtype), v_BKCH).flatten(1, 2)
