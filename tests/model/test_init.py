"""First weights: reproducible, of the stated size, and giving a first loss of log V."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from puna.model.config import SIZES
from puna.model.init import init_weights
from puna.model.transformer import Transformer


def test_equal_seeds_give_equal_weights_whatever_the_global_state():
    torch.manual_seed(1)
    first = init_weights(Transformer(SIZES["demo-2m"]), 7)
    torch.manual_seed(2)
    second, other = init_weights(Transformer(SIZES["demo-2m"]), 7), init_weights(Transformer(SIZES["demo-2m"]), 8)
    for (name, p), q, r in zip(first.named_parameters(), second.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q), name
        assert p.dim() == 1 or not torch.equal(p, r), name


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    model = Transformer(SIZES["demo-2m"])
    torch.set_rng_state(before)
    init_weights(model, 1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("tied", [True, False])
def test_the_first_loss_is_the_log_of_the_vocabulary(tied):
    config = SIZES["demo-4m"].model_copy(update={"tie_embeddings": tied})
    model = init_weights(Transformer(config), 0)
    tokens = torch.randint(config.vocab_size, (4, 65), generator=torch.Generator().manual_seed(0))
    loss = cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    assert abs(loss.item() - math.log(config.vocab_size)) < 0.1
