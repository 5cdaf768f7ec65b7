"""Pretraining in terms of the loop: packed batches from shards, next-token loss, held-out loss.

    train(model, loss=next_token_loss, batches=PackedLoader(...), evaluate=held_out(batches), ...)

A loader is `batches` as it is. Held-out batches are read once, so every evaluation sees the same tokens.
"""

from collections.abc import Sequence

import torch

from puna.core.batch import PackedBatch
from puna.model.transformer import Transformer
from puna.train.loop import Evaluate
from puna.train.loss import next_token_loss
from puna.train.solo import Batches, Worker


def first_batches(batches: Batches, n: int) -> list[PackedBatch]:
    """Read `n` batches to evaluate on."""
    return [batches.next_batch() for _ in range(n)]


def held_out(batches: Sequence[PackedBatch], ranks: Worker | None = None) -> Evaluate:
    """The mean next-token loss over fixed batches.

    Args:
        batches: What to evaluate on; with other processes, this one's share.
        ranks: The other processes.

    Returns:
        A function of the model that gives `{"loss": nats per target}`.
    """
    assert batches, "held_out needs at least one batch"

    def evaluate(model: Transformer) -> dict[str, float]:
        if ranks is not None:
            total, count = ranks.score(next_token_loss, batches)
            return {"loss": total / count}
        with torch.no_grad():
            outputs = [next_token_loss(model, batch) for batch in batches]
        return {"loss": sum(float(o.sum) for o in outputs) / sum(o.count for o in outputs)}

    return evaluate
