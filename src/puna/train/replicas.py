"""Several processes that each hold the whole model: what is trained is small, or nobody may cut the model.

So adapters are trained (the frozen base is the same everywhere; QLoRA packs it), distillation, and training for
quantized weights. Each process reads its own rows; gradients of the trained weights are summed once a step, after its
last micro-batch, and every process makes the same optimizer step. Nothing is sharded: `parallel.py` does that.

Source: the sum and its division by the global count are those of `loop.py`.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from puna.model.transformer import Transformer
from puna.train.exchange import add_up, exchange
from puna.train.loss import Loss, LossOutput
from puna.train.machine import Machine
from puna.train.parallel_config import ParallelConfig
from puna.train.solo import Figures, Solo

_BUCKET = 16 << 20  # numbers that are summed at once: the copy that it takes stays small


class Replicas(Solo):
    """One process of several with the whole model.

    Args:
        model: The same on every process; moved and cast in place.
        machine: Where to, and as what.
        config: The layout: dp_replicate alone, known.
    """

    def __init__(self, model: Transformer, machine: Machine, config: ParallelConfig) -> None:
        super().__init__(model, machine)
        self.config = config

    @property
    def data_rank(self) -> int:
        """Which share of a batch's rows this process reads, of `config.data_ranks`."""
        return dist.get_rank()

    @property
    def processes(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """How many there are."""
        return self.config.world_size

    @property
    def speaks(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether this is the process that writes the run folder."""
        return dist.get_rank() == 0

    def reduce(self, outputs: Sequence[LossOutput], wishes: Sequence[bool] = ()) -> Figures:
        """Sum the gradients over all processes, and bring the figures of the step together."""
        gradients = self.weights.gradients()
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            dist.all_reduce(flat)
            for gradient, summed in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(summed.view_as(gradient))
        squares = torch.zeros((), dtype=torch.float64, device=self.machine.device)
        if self.speaks and gradients:  # all hold the same: one tells it
            norms = torch.stack(torch._foreach_norm(gradients))  # pyright: ignore[reportPrivateImportUsage]
            squares = norms.double().square().sum()
        return self._exchange(outputs, wishes, squares)

    def score(self, loss: Loss, batches: Sequence[object]) -> tuple[float, float]:
        """Sum of a loss over batches of all processes, and its terms, without gradients."""
        with torch.no_grad():
            outputs = [loss(self._model, batch).detached() for batch in batches]
        figures = self._exchange(outputs, (), torch.zeros((), dtype=torch.float64))
        return figures.loss_sum, figures.count

    def add_up(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        return add_up(values, self.machine.device)

    def _exchange(self, outputs: Sequence[LossOutput], wishes: Sequence[bool], squares: Tensor) -> Figures:
        names = sorted(outputs[0].metrics) if outputs else []
        return exchange(outputs, wishes, squares, names=names, device=self.machine.device)


def _buckets(gradients: Sequence[Tensor]) -> list[list[Tensor]]:
    """Gradients in groups of one type and about so many numbers."""
    found: list[list[Tensor]] = []
    filled = 0
    for gradient in gradients:
        if not found or filled >= _BUCKET or found[-1][0].dtype != gradient.dtype:
            found.append([])
            filled = 0
        found[-1].append(gradient)
        filled += gradient.numel()
    return found
