"""A random model of a few thousand weights, and a tokenizer of single bytes and a few pairs."""

import pytest
import torch

from puna.infer.engine import Engine
from puna.model.config import ModelConfig
from puna.model.init import init_weights
from puna.model.transformer import Transformer
from puna.tokenizer.bpe import Tokenizer


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Matrices of this size are slower on two threads than on one, many times slower on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


PAIRS = [b"th", b"he", b" t", b"END", b"EN", b"ND", b"\xc3\xa9", b"\xf0\x9f", b"ab", b"ba"]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer({raw: rank for rank, raw in enumerate([bytes([b]) for b in range(256)] + PAIRS)})


@pytest.fixture(scope="session")
def model(tokenizer) -> Transformer:
    config = ModelConfig(
        dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=64, vocab_size=tokenizer.vocab_size, max_seq_len=96
    )
    model = Transformer(config)
    init_weights(model, seed=0)
    with torch.no_grad():  # sharper than a fresh model, so that the likeliest token is not a tie
        model.head_weight.mul_(40)
    return model.eval()


@pytest.fixture
def engine(model, tokenizer) -> Engine:
    return Engine(model, tokenizer, name="tiny", max_batch=4)
