"""What blocks keep for their backward: nothing but their input where they are run again."""

import numpy as np
import pytest
import torch

from puna.core.batch import PackedBatch
from puna.model import cpu_kernels
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


def kept_bytes(output):
    """Bytes that the nodes of a graph hold beside autograd's saved tensors."""
    seen, left, total = set(), [output.grad_fn], 0
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        total += sum(t.untyped_storage().nbytes() for t in getattr(node, "kept", None) or ())
        left += [after for after, _ in node.next_functions]
    return total


@pytest.mark.parametrize("kind", ["recompute", "offload"])
def test_the_first_forward_of_a_block_that_is_run_again_keeps_nothing(kind, tmp_path):
    found = []
    for chosen in ("keep", kind):
        model = tiny_model(dtype=torch.float32)
        undo = keep_less(model, chosen, folder=tmp_path)
        output = next_token_loss(model, batch()).sum
        held = kept_bytes(output)
        output.backward()
        undo()
        found.append((held, output.detach(), [p.grad for p in model.parameters()]))
    (kept, loss, gradients), (left, again, others) = found
    assert kept > 0 and left == 0
    assert torch.equal(loss, again)
    assert all(torch.equal(a, b) for a, b in zip(gradients, others, strict=True))


def test_a_kernel_that_keeps_nothing_has_the_same_gradients():
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(*shape, generator=generator) for shape in ((50, 16), (48, 16), (16, 24))]
    found = []
    for forgets in (False, True):
        own = [t.clone().requires_grad_() for t in tensors]
        if forgets:
            with cpu_kernels.keep_nothing():
                out = cpu_kernels.feed_forward(*own, 1e-5)
        else:
            out = cpu_kernels.feed_forward(*own, 1e-5)
        found.append(torch.autograd.grad(out.square().sum(), own))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
