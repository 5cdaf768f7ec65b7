"""What blocks keep for their backward: where they are run again, no more than their input."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from puna.core.batch import PackedBatch
from puna.model import cpu_kernels
from puna.model.adapter import adapt
from puna.model.adapter_config import AdapterConfig
from puna.train.activations import keep_less
from puna.train.loss import next_token_loss
from tests.post.tiny import tiny_model


def batch():
    """Two rows of 40 tokens, one document each, every token a target."""
    tokens = np.random.default_rng(0).integers(0, 256, (2, 40))
    return PackedBatch(
        tokens=tokens,
        targets=np.roll(tokens, -1, 1),
        positions=np.broadcast_to(np.arange(40, dtype=np.int32), (2, 40)),
        lengths=np.full(2, 40),
        n_targets=80,
        sources={},
    )


@contextmanager
def counted():
    """Collects the bytes that autograd keeps of what is computed within, as far as nothing else takes it away."""
    found = []

    def pack(tensor):
        found.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found


@pytest.mark.parametrize("kind", ["recompute", "offload"])
@pytest.mark.parametrize("adapter", [None, AdapterConfig(rank=2)])
def test_blocks_that_are_run_again_keep_no_gate_and_up(kind, adapter, tmp_path):
    found = []
    for chosen in ("keep", kind):
        model = tiny_model(dtype=torch.float32)
        if adapter is not None:
            adapt(model, adapter, base="base", base_fingerprint="0")
        undo = keep_less(model, chosen, folder=tmp_path)
        with counted() as saved:
            output = next_token_loss(model, batch()).sum
        output.backward()
        undo()
        gradients = [p.grad for p in model.parameters() if p.requires_grad]
        found.append((sum(saved), output.detach(), gradients))
    (kept, loss, gradients), (left, again, others) = found
    gate_and_up = 4 * 80 * 2 * model.config.ffn_dim * model.config.n_layers  # bytes
    assert kept - left > gate_and_up
    assert torch.equal(loss, again)
    assert all(torch.equal(a, b) for a, b in zip(gradients, others, strict=True))


def test_a_second_backward_makes_gate_and_up_again():
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(*shape, generator=generator).requires_grad_() for shape in ((50, 16), (48, 16), (16, 24))]
    out = cpu_kernels.feed_forward(*tensors, 1e-5).square().sum()
    first, second = (torch.autograd.grad(out, tensors, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
