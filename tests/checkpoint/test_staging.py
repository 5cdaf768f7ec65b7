"""Copies of a training state in memory: every kind of tensor, as it was when it was copied."""

import torch

from puna.checkpoint import staging
from puna.checkpoint.pieces import Chunk, Pieces
from puna.checkpoint.staging import HostBuffers


def pieces_of(*tensors: torch.Tensor) -> dict[str, Pieces]:
    return {str(n): Pieces(tuple(t.shape), t.dtype, (Chunk((0,) * t.dim(), t),)) for n, t in enumerate(tensors)}


def test_every_kind_of_tensor_is_copied_and_holds_its_values(monkeypatch):
    monkeypatch.setattr(staging, "_STRETCH", 64)  # bytes: most tensors go in several stretches
    whole = torch.randn(6, 40)
    tensors = [
        whole,
        torch.randn(7, 5).to(torch.bfloat16),
        torch.tensor(3.0),
        torch.empty(0, 4),
        torch.arange(33, dtype=torch.int64),
        torch.randn(8, 8).t(),  # not row by row
        whole[2:5],
        torch.nn.Parameter(torch.randn(9)),
    ]
    expected = [t.detach().clone() for t in tensors]
    buffers = HostBuffers()
    for _ in range(2):  # the second copy uses the first one's memory
        copies = buffers.copy(pieces_of(*tensors))
    with torch.no_grad():
        for tensor in tensors:
            tensor.zero_()
    for n, value in enumerate(expected):
        copy = copies[str(n)].chunks[0].tensor
        assert torch.equal(copy, value) and copy.dtype == value.dtype and copy.shape == value.shape
