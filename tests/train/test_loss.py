"""Next-token loss against its twin, and sums that do not care how a batch is cut."""

import numpy as np
import pytest
import torch

from puna.core.batch import IGNORE
from puna.train.loss import next_token_loss, packed_flops
from tests.reference.training_naive import cross_entropy_sum

from .conftest import CountingBatches, tiny_model


def _gradients(model):
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return gradients


@pytest.mark.parametrize("tied", [False, True])
def test_the_sum_equals_the_twin_over_documents_one_by_one(tied):
    model, batch = tiny_model(tie_embeddings=tied), CountingBatches().next_batch()
    output = next_token_loss(model, batch)
    total, count, start = 0.0, 0, 0
    tokens, targets = batch.tokens.reshape(-1), batch.targets.reshape(-1)
    for length in batch.lengths.tolist():
        piece = slice(start, start + length)
        logits = model(torch.from_numpy(tokens[piece])[None])[0]
        part, n = cross_entropy_sum(logits.tolist(), targets[piece].tolist())
        total, count, start = total + part, count + n, start + length
    assert output.sum.item() == pytest.approx(total, rel=1e-5)
    assert output.count == count == batch.n_targets and output.tokens == tokens.size


def test_no_gradient_leaks_across_documents():
    """The loss of one document, alone or packed beside others, pulls on the same embeddings and on no others."""
    model, batch = tiny_model(), CountingBatches(rows=1).next_batch()
    first = int(batch.lengths[0])
    batch.tokens[0, first:] = 60  # a token that the first document does not have
    batch.tokens[0, :first] %= 60
    batch.targets[0, first:] = IGNORE
    next_token_loss(model, batch).sum.backward()
    packed = _gradients(model)
    assert torch.equal(packed["embedding.weight"][60], torch.zeros(32))
    model_input = torch.from_numpy(batch.tokens[:, :first])
    logits = model(model_input)[0]
    targets = torch.from_numpy(batch.targets[0, :first])
    torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum").backward()
    for name, gradient in _gradients(model).items():
        torch.testing.assert_close(packed[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("rows", "n"), [(8, 1), (1, 8), (2, 4), (4, 2)])
def test_gradients_do_not_depend_on_how_the_rows_are_cut(rows, n):
    whole = tiny_model()
    next_token_loss(whole, CountingBatches(rows=8).next_batch()).sum.backward()
    expected = _gradients(whole)
    batches, total = CountingBatches(rows=rows), 0
    for _ in range(n):
        output = next_token_loss(whole, batches.next_batch())
        output.sum.backward()
        total += output.count
    assert total == CountingBatches(rows=8).next_batch().n_targets
    for name, gradient in _gradients(whole).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)


def test_flops_of_a_packed_batch_are_those_of_its_documents_and_skip_heads_without_a_target():
    config = tiny_model().config
    alone = sum(config.flops_per_token(n) * n for n in (5, 11, 8))
    assert packed_flops(config, np.array([5, 11, 8])) == pytest.approx(alone)
    asked = packed_flops(config, np.array([5, 11, 8]), n_targets=20)
    assert alone - asked == pytest.approx(6 * config.vocab_size * config.dim * 4)
