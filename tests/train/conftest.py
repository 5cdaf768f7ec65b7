"""A toy language that a tiny model learns, as packed batches that know their place."""

import numpy as np
import pytest
import torch

from puna.core.batch import IGNORE, PackedBatch
from puna.model.config import ModelConfig
from puna.model.init import init_weights
from puna.model.transformer import Transformer
from puna.train.config import TrainConfig

VOCAB = 61


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


class CountingBatches:
    """Rows of two documents that count upward by a stride; row n depends on n alone, however batches are cut."""

    def __init__(self, *, rows=4, length=24, poison_row=None):
        self.rows, self.length, self.poison_row, self.row = rows, length, poison_row, 0

    def next_batch(self):
        made = [self._row(self.row + i) for i in range(self.rows)]
        self.row += self.rows
        tokens, targets, positions, lengths = (np.stack(x) for x in zip(*made, strict=True))
        return PackedBatch(
            tokens=tokens,
            targets=targets,
            positions=positions.astype(np.int32),
            lengths=lengths.reshape(-1),
            n_targets=int((targets != IGNORE).sum()),
        )

    def _row(self, number):
        rng = np.random.default_rng(number)
        cut = int(rng.integers(4, self.length - 4))
        lengths = np.array([cut, self.length - cut])
        pieces = [(np.arange(n + 1) * rng.integers(1, 5) + rng.integers(VOCAB)) % VOCAB for n in lengths]
        targets = np.concatenate([p[1:] for p in pieces])
        targets[rng.random(self.length) < 0.3] = IGNORE  # rows have different numbers of targets
        positions = np.concatenate([np.arange(n) for n in lengths])
        return np.concatenate([p[:-1] for p in pieces]), targets, positions, lengths

    def state(self):
        return {"row": self.row}

    def restore(self, state):
        self.row = state["row"]


def tiny_model(seed=0, **changes):
    values = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 48, "vocab_size": VOCAB}
    return init_weights(Transformer(ModelConfig(**{**values, "max_seq_len": 64, **changes})), seed)


def tiny_config(**changes):
    values = {"steps": 12, "optim": {"lr": 3e-3}, "schedule": {"warmup_steps": 2}, "log_every_steps": 5}
    return TrainConfig(**{**values, "device": "cpu", **changes})


def same_weights(left, right):
    a, b = left.state_dict(), right.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
