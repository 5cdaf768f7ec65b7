import pytest

from puna.tokenizer.bpe import Tokenizer
from puna.tokenizer.train import train_bpe
from tests.tokenizer import corpus


@pytest.fixture(scope="session")
def small() -> Tokenizer:
    return train_bpe([*corpus.stdlib_texts(20), *corpus.TRICKY], vocab_size=1024)


@pytest.fixture(scope="session")
def cl100k() -> Tokenizer:
    return Tokenizer(corpus.cl100k_ranks())
