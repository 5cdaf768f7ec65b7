"""A step asks the device once for numbers: all it must know of a step, in one transfer."""

import pytest
import torch

from puna.train import solo
from puna.train.loss import next_token_loss
from puna.train.machine import Machine, choose_machine
from puna.train.optim import OptimConfig, build_optimizer, scale_and_clip
from puna.train.parallel_config import ParallelConfig
from puna.train.solo import Solo

from .conftest import CountingBatches, tiny_model
from .host_reads import NoHostReads


def test_the_mode_sees_what_waits():
    x = torch.arange(4.0)
    for ask in (lambda: float(x[0]), lambda: bool((x > 1).any()), lambda: x[x > 1], lambda: x.nonzero()):
        with pytest.raises(AssertionError, match="wait"), NoHostReads():
            ask()


@pytest.mark.parametrize("recompute", ["none", "full", "selective"])
def test_forward_and_backward_of_the_gpu_paths_ask_nothing(recompute):
    """On the meta device, which takes the paths of a GPU and has no values to be asked for."""
    model = tiny_model()
    if recompute != "none":
        from puna.model.split import Split
        from puna.train.blocks import prepare_blocks

        prepare_blocks(model.layers, ParallelConfig(recompute=recompute), Split())
    worker = Solo(model, Machine(torch.device("meta"), torch.bfloat16, "meta"))
    with NoHostReads():
        outputs = worker.backward(next_token_loss, CountingBatches(), 2)
        worker.weights.publish()
    assert all(o.sum.is_meta for o in outputs) and worker.weights.gradients()


def test_the_end_of_a_step_asks_once(monkeypatch):
    asked = []

    def ask(values):
        asked.append(len(values))
        return real(values)

    real = solo.read_on_host
    monkeypatch.setattr(solo, "read_on_host", ask)
    worker = Solo(tiny_model(), choose_machine("cpu"))
    optimizer = build_optimizer(worker.weights.named.items(), OptimConfig())
    outputs = worker.backward(next_token_loss, CountingBatches(), 3)  # the CPU's kernels may look at values
    with NoHostReads():
        figures = worker.reduce(outputs, (False,))
        scale_and_clip(worker.weights.gradients(), count=figures.count, clip_norm=1e-3, norm_of_sum=figures.norm)
        optimizer.step()
        worker.weights.publish()
        worker.weights.drop_gradients()
    assert asked == [4]  # the norm and three sums
