"""Attention over trees of documents by PyTorch's kernels: each branch sees its stem and itself, never a sister.

On a CPU the blocks of `layout.py` do this in `cpu_kernels.py`. Here are the other two ways:

- CUDA: flex attention with a block mask made once per layout. A mask function costs nothing where a block is whole.
- anything else (bf16 on a CPU, traced tensors): `scaled_dot_product_attention`, piece by piece.

Source: FlexAttention (2412.05496); shared prompts in training: The Llama 3 Herd of Models (2407.21783), section 4.1.2
(a prompt and its shuffled responses in one row of the reward model).

T packed tokens, N query heads, K kv heads, H head dim, S tokens of a piece, C tokens that it sees.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from puna.model.layout import DocumentLayout


def attend_trees(
    q_TNH: Float[Tensor, "T N H"], k_TKH: Float[Tensor, "T K H"], v_TKH: Float[Tensor, "T K H"], layout: DocumentLayout
) -> Float[Tensor, "T N H"]:
    """Causal attention in which a piece sees its stem.

    Args:
        q_TNH: Queries, turned by their positions.
        k_TKH: Keys, turned by their positions.
        v_TKH: Values.
        layout: The pieces and their stems.
    """
    if q_TNH.is_cuda:
        return attend_flex(q_TNH, k_TKH, v_TKH, layout)
    pieces = []
    for end, length, stem in zip(*(x.tolist() for x in (layout.ends, layout.lengths, layout.stems)), strict=True):
        own = slice(end - length, end)
        seen = [own] if stem < 0 else [slice(layout.ends[stem] - layout.lengths[stem], layout.ends[stem]), own]
        q_NSH = q_TNH[own].transpose(0, 1)
        k_KCH, v_KCH = (torch.cat([x[part] for part in seen]).transpose(0, 1) for x in (k_TKH, v_TKH))
        n_seen = k_KCH.shape[1]
        mask_SC = torch.ones(length, n_seen, dtype=torch.bool, device=q_TNH.device).tril(n_seen - length)
        o_1NSH = scaled_dot_product_attention(q_NSH[None], k_KCH[None], v_KCH[None], attn_mask=mask_SC, enable_gqa=True)
        pieces.append(o_1NSH[0].transpose(0, 1))
    return torch.cat(pieces)


def attend_flex(
    q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, layout: DocumentLayout, *, compiled: bool = True
) -> Float[Tensor, "T N H"]:
    """`attend_trees` by flex attention; not compiled it is slow and has no backward on a CPU."""
    kernel = _compiled() if compiled else flex_attention
    q, k, v = (x.transpose(0, 1)[None] for x in (q_TNH, k_TKH, v_TKH))
    return kernel(q, k, v, block_mask=block_mask(layout), enable_gqa=True)[0].transpose(0, 1)


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=True)


@lru_cache(maxsize=4)  # of the layouts in use: all layers of a forward, and of its backward, ask for the same one
def block_mask(layout: DocumentLayout) -> BlockMask:
    """The mask of a layout as flex attention takes it."""
    piece_T, stem_T = _pieces(layout)

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Bool[Tensor, ""]:
        same_tree = (piece_T[query] == piece_T[key]) | (stem_T[query] == piece_T[key])
        return (query >= key) & same_tree

    return create_block_mask(sees, None, None, layout.n_tokens, layout.n_tokens, device=str(layout.device))


def _pieces(layout: DocumentLayout) -> tuple[Int[Tensor, " T"], Int[Tensor, " T"]]:
    """For each token the number of its piece, and of its piece's stem."""
    piece = np.repeat(np.arange(len(layout.lengths)), layout.lengths)
    return torch.from_numpy(piece).to(layout.device), torch.from_numpy(layout.stems[piece]).to(layout.device)
