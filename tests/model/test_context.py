"""Context parallelism in one process: each rank's share of attention against attention over the whole sequence.

The naive twin is one softmax over a dense mask: same document, not later. Ranks are played one after the other, with
the keys and values that the gather would have given them.
"""

import numpy as np
import pytest
import torch

from puna.model import cpu_kernels
from puna.model.attention import attend_pieces
from puna.model.context import ContextLayout
from puna.model.layout import DocumentLayout
from puna.model.split import Split

CASES = {
    "one document": [48],
    "a cut in every chunk": [5, 9, 3, 14, 2, 15],
    "documents end where chunks end": [12, 12, 12, 12],
    "single tokens": [1, 1, 20, 1, 24, 1],
    "longer than a band of the kernel": [300, 4, 272],
}


def naive(q, k, v, lengths):
    """`[T, N, H]` attention by a dense mask, in fp64."""
    document = np.repeat(np.arange(len(lengths)), lengths)
    place = np.arange(len(document))
    sees = (document[:, None] == document[None]) & (place[:, None] >= place[None])
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    scores = torch.einsum("tnh,snh->nts", q, k) / q.shape[-1] ** 0.5
    weights = scores.masked_fill(~torch.from_numpy(sees), -torch.inf).softmax(-1)
    return torch.einsum("nts,snh->tnh", weights, v)


@pytest.mark.parametrize("kernel", ["pieces", "cpu"])
@pytest.mark.parametrize("cp", [1, 2, 4])
@pytest.mark.parametrize("lengths", CASES.values(), ids=CASES.keys())
def test_the_shares_of_all_ranks_are_the_whole_attention_and_its_gradients(lengths, cp, kernel):
    heads, kv_heads, width, dtype = 4, 2, 8, torch.float64 if kernel == "pieces" else torch.float32
    generator = torch.Generator().manual_seed(sum(lengths) + cp)
    total = sum(lengths) - sum(lengths) % (2 * cp)
    lengths = np.array(lengths)
    lengths[-1] -= lengths.sum() - total
    made = [torch.randn(total, n, width, generator=generator, dtype=torch.float64) for n in (heads, kv_heads, kv_heads)]
    wanted = torch.randn(total, heads, width, generator=generator, dtype=torch.float64)
    reference = [x.clone().requires_grad_() for x in made]
    expected = naive(*reference, lengths)
    expected.backward(wanted)

    q, k, v = (x.to(dtype).requires_grad_() for x in made)
    whole, rows = DocumentLayout(lengths), torch.arange(total)
    told = torch.full_like(expected, torch.nan).to(dtype)
    for rank in range(cp):
        split = Split(cp=cp, cp_rank=rank)
        layout, own = ContextLayout(whole, split), split.own(rows)
        if kernel == "pieces":
            out = attend_pieces(q[own], k, v, layout)
        else:
            grouped = (q[own] / width**0.5).unflatten(1, (kv_heads, -1)).transpose(0, 1)
            keys, values = (x.transpose(0, 1).contiguous() for x in (k, v))
            out = cpu_kernels.attention(grouped.contiguous(), keys, values, layout.blocks).unflatten(1, (heads, width))
        told[own] = out.detach()
        out.backward(wanted[own].to(dtype))
    limit = {"rtol": 1e-9, "atol": 1e-11} if kernel == "pieces" else {"rtol": 2e-4, "atol": 2e-5}
    torch.testing.assert_close(told.double(), expected.detach(), **limit)
    for ours, theirs in zip((q, k, v), reference, strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, **limit)


@pytest.mark.parametrize("cp", [2, 4])
def test_variable_length_kernels_are_told_the_same_pieces(cp):
    """What a GPU's kernel gets (cumulative lengths and a key index) is the list of pieces in another form."""
    whole = DocumentLayout(np.array([5, 9, 3, 14, 2, 15]))
    for rank in range(cp):
        layout = ContextLayout(whole, Split(cp=cp, cp_rank=rank))
        assert layout.query_ends.tolist() == [0, *np.cumsum([p.rows for p in layout.pieces]).tolist()]
        assert layout.key_ends.tolist() == [0, *np.cumsum([p.columns for p in layout.pieces]).tolist()]
        assert layout.query_ends[-1] == layout.n_tokens
        for piece, start, end in zip(layout.pieces, layout.key_ends[:-1], layout.key_ends[1:], strict=True):
            assert layout.key_index[start:end].tolist() == list(range(piece.first_key, piece.first_key + piece.columns))
        work = sum(p.rows * (2 * p.columns - p.rows + 1) // 2 for p in layout.pieces)
        assert work > 0 and layout.positions.shape == (layout.n_tokens,)


def test_head_and_tail_chunks_share_the_work_of_one_document_evenly():
    whole = DocumentLayout(np.array([64]))
    work = [
        sum(p.rows * (2 * p.columns - p.rows + 1) // 2 for p in ContextLayout(whole, Split(cp=4, cp_rank=r)).pieces)
        for r in range(4)
    ]
    assert len(set(work)) == 1 and sum(work) == 64 * 65 // 2
