"""A tiny tokenizer and tiny models."""

import pytest
import torch

from puna.model.config import ModelConfig
from puna.model.init import init_weights
from puna.model.transformer import Transformer
from puna.tokenizer.train import train_bpe

TEXT = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind.",
    "def add(left, right):\n    return left + right\n",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "いろはにほへと ちりぬるを 1234567890",
]


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer():
    return train_bpe(TEXT * 20, vocab_size=560)


def tiny_config(**changes):
    values = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 48, "vocab_size": 560}
    return ModelConfig(**{**values, "max_seq_len": 256, **changes})


def tiny_model(*, seed=0, dtype=torch.float32, **changes):
    model = init_weights(Transformer(tiny_config(**changes)), seed)
    with torch.no_grad():
        for parameter in model.parameters():  # norms of exactly 1 and logits near 0 would hide mistakes
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            parameter.add_(0.1 * noise)
    return model.to(dtype)
