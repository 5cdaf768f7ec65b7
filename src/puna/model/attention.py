"""Grouped-query attention over packed documents, in training, in prefill and in decode.

N query heads share K key and value heads (G = N/K queries each), which makes the kv cache G times smaller. A token sees
the tokens before it in its own document and itself. Three ways lead to the same numbers:

- plain CPU tensors: the kernels of `cpu_kernels.py`;
- CUDA in bf16 or fp16: PyTorch's variable-length flash attention;
- anything else: `scaled_dot_product_attention`, once for all documents when they have one length, else one by one.

Pieces that continue a stem (trees of documents, see `layout.py`) take the same kernels on a CPU; on CUDA they take flex
attention.

With a kv cache the new tokens of each row see the row's cached tokens too: `CacheStep` says which.

Source: GQA, 2305.13245; document masking, The Llama 3 Herd of Models (2407.21783), section 3.2.

T packed tokens, B rows, S sequence, D width, N query heads, K kv heads, G = N/K, H head dim, C cached tokens.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from puna.model import cpu_kernels
from puna.model.config import ModelConfig
from puna.model.kv_cache import CacheStep
from puna.model.layout import DocumentLayout
from puna.model.rope import rotate
from puna.model.tree_attention import attend_trees

__all__ = ["Attention", "DocumentLayout", "attend_cached", "attend_documents"]


class Attention(nn.Module):
    """The attention half of a block.

    Parameters: `qkv.weight` `[(N + 2 K) H, D]`, rows in the order all query heads, all key heads, all value heads;
    `output.weight` `[D, N H]`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, config.head_dim
        self.qkv = nn.Linear(config.dim, (self.n_heads + 2 * self.n_kv_heads) * self.head_dim, bias=False)
        self.output = nn.Linear(self.n_heads * self.head_dim, config.dim, bias=False)

    def forward(
        self,
        x_TD: Float[Tensor, "T D"],
        turn: tuple[Tensor, Tensor],
        layout: DocumentLayout,
        cache: tuple[CacheStep, int] | None = None,
        only_W: Int[Tensor, " W"] | None = None,
    ) -> Float[Tensor, "W D"]:
        """Mix information between the tokens of each document.

        Args:
            x_TD: Normalized input.
            turn: cos and sin of each token's position, from `rope.rotation`.
            layout: The documents; with a cache, the new tokens of each row.
            cache: The step of the kv cache and this layer's number, or None.
            only_W: The tokens whose output is wanted; None: all.
        """
        if cache is None and cpu_kernels.suits(x_TD):
            n_rotated = self.n_heads + self.n_kv_heads
            weight = cpu_kernels.interleave_pairs(self.qkv.weight, n_rotated, self.head_dim)
            q, k, v = cpu_kernels.split_heads(nn.functional.linear(x_TD, weight), *turn, self.n_kv_heads)
            return self.output(_chosen(cpu_kernels.attention(q, k, v, layout.blocks), only_W))
        heads = self.qkv(x_TD).unflatten(-1, (-1, self.head_dim))
        q_TNH, k_TKH, v_TKH = heads.split((self.n_heads, self.n_kv_heads, self.n_kv_heads), dim=1)
        q_TNH, k_TKH = rotate(q_TNH, *turn), rotate(k_TKH, *turn)
        if cache is None:
            o_TNH = attend_documents(q_TNH, k_TKH, v_TKH, layout)
        else:
            step, layer = cache
            step.write(layer, k_TKH, v_TKH)
            o_TNH = attend_cached(q_TNH, step, layer)
        return self.output(_chosen(o_TNH.flatten(1), only_W))


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
    if q_TNH.is_cuda and q_TNH.dtype in (torch.bfloat16, torch.float16):
        from torch.nn.attention.varlen import varlen_attn  # registers its CUDA operators when it is imported

        ends, longest = layout.cu_seqlens, layout.max_length
        out = varlen_attn(q_TNH, k_TKH, v_TKH, ends, ends, longest, longest, window_size=(-1, 0), enable_gqa=True)
        assert isinstance(out, Tensor), "varlen_attn returns a tensor when no auxiliary output is asked for"
        return out
    if layout.uniform_length is not None:
        q, k, v = (x.unflatten(0, (-1, layout.uniform_length)).transpose(1, 2) for x in (q_TNH, k_TKH, v_TKH))
        o = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return o.transpose(1, 2).flatten(0, 1)
    lengths = layout.lengths.tolist()
    documents = zip(*(x.transpose(0, 1).split(lengths, dim=1) for x in (q_TNH, k_TKH, v_TKH)), strict=True)
    outputs = [scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True) for q, k, v in documents]
    return torch.cat(outputs, dim=1).transpose(0, 1)


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
