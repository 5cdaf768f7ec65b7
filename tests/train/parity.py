"""Five steps of a tiny model on one process and on many: what each says of loss, norm, and every gradient and weight."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from puna.model.transformer import Transformer
from puna.train.loss import next_token_loss
from puna.train.machine import choose_machine
from puna.train.optim import OptimConfig, build_optimizer, scale_and_clip
from puna.train.parallel import Ranks
from puna.train.parallel_config import ParallelConfig
from puna.train.solo import Solo

from .conftest import CountingBatches, tiny_model
from .host_reads import NoHostReads
from .whole import whole_tensors

STEPS, MICRO_BATCHES, ROWS = 5, 4, 4
SHAPE = {"n_layers": 4, "n_heads": 4, "n_kv_heads": 2}


@dataclass
class Story:
    """What happened: one row a step of loss, norm, targets and tokens; then gradients and weights by name."""

    steps: Any
    gradients: dict[str, Any]
    weights: dict[str, Any]


class Part(CountingBatches):
    """One data rank's rows of the global batches."""

    def __init__(self, rank=0, world=1, rows=ROWS):
        super().__init__(rows=rows)
        self._share = rank * rows // world, (rank + 1) * rows // world

    def next_batch(self):
        return super().next_batch().rows(*self._share)


def _make_steps(worker, batches):
    optimizer = build_optimizer(worker.weights.named.items(), OptimConfig(lr=1e-3))
    rows = []
    for step in range(STEPS):
        outputs = worker.backward(next_token_loss, batches, MICRO_BATCHES)
        with NoHostReads():  # `read_on_host` is the only question
            figures = worker.reduce(outputs)
        tokens = sum(o.tokens for o in figures.outputs)
        gradients = worker.weights.gradients()
        norm = scale_and_clip(gradients, count=figures.count, clip_norm=1.0, norm_of_sum=figures.norm)
        rows.append([figures.loss_sum / figures.count, norm, figures.count, tokens])
        if step < STEPS - 1:
            optimizer.step()
            worker.weights.drop_gradients()
    return np.array(rows)


def alone() -> Story:
    """One process."""
    model: Transformer = tiny_model(**SHAPE)
    rows = _make_steps(Solo(model, choose_machine("cpu")), Part())
    named = dict(model.named_parameters())
    gradients = {name: p.grad.numpy().copy() for name, p in named.items() if p.grad is not None}
    return Story(rows, gradients, {name: p.detach().numpy().copy() for name, p in named.items()})


def one_of(rank: int, layouts: list[ParallelConfig]) -> list[Story | None]:
    """One process of many, for one layout after the other; the first process tells the story."""
    stories: list[Story | None] = []
    for layout in layouts:
        ranks = Ranks(layout, choose_machine("cpu"))
        ranks.build(tiny_model(**SHAPE).config)
        ranks.init_weights(0)
        rows = _make_steps(ranks, Part(ranks.data_rank, layout.data_ranks))
        held = {name: weight.grad for name, weight in ranks.weights.named.items()}
        gradients = {name: gradient.numpy() for name, gradient in whole_tensors(ranks, held).items()}
        weights = {name: weight.numpy() for name, weight in whole_tensors(ranks, ranks.weights.named).items()}
        stories.append(Story(rows, gradients, weights) if rank == 0 else None)
    return stories


def furthest(story: Story, reference: Story) -> dict[str, float]:
    """Largest relative differences: of losses, of norms, and of gradients and weights as whole tensors."""

    def apart(found: dict[str, Any], expected: dict[str, Any]) -> float:
        assert found.keys() == expected.keys()
        return max(float(np.linalg.norm(found[n] - expected[n]) / np.linalg.norm(expected[n])) for n in expected)

    relative = np.abs(story.steps / reference.steps - 1)
    return {
        "loss": float(relative[:, 0].max()),
        "norm": float(relative[:, 1].max()),
        "gradient": apart(story.gradients, reference.gradients),
        "weight": apart(story.weights, reference.weights),
        "counts": float(relative[:, 2:].max()),
    }


torch.set_num_threads(1)
