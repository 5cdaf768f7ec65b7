"""Optimizer steps inside the backward pass: each weight is stepped and its gradient freed as soon as it is there.

So the gradients of a model are never held together: 4 bytes a weight less in fp32. What is given up is stated where it
is chosen (`OptimConfig.step`): no clipping by the global norm, no accumulation, and no second look before the step.

Source: fused backward of LOMO (2306.09782), here with AdamW.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from puna.core.errors import PunaError, UsageError
from puna.train.config import TrainConfig
from puna.train.loss import LossOutput
from puna.train.solo import Batches, HeldWeights, Solo, Worker


class InBackward:
    """Steps weights while their gradients come.

    Args:
        weights: What is stepped.
        optimizer: Over the same weights.

    Attributes:
        squares: Sum of the squares of the last step's gradients, of the mean loss.
    """

    def __init__(self, weights: HeldWeights, optimizer: Optimizer) -> None:
        self._optimizer, self._count, self.squares = optimizer, 1.0, 0.0
        masters = weights.masters
        for name, parameter in weights.model.named_parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._stepper(masters.get(name)))

    def begin(self, count: float) -> None:
        """Before the backward of a sum of `count` terms."""
        self._count, self.squares = count, 0.0

    def _stepper(self, master: Tensor | None) -> Callable[[Tensor], None]:
        @torch.no_grad()
        def step(parameter: Tensor) -> None:
            weight = parameter if master is None else master  # a master's own hook has taken the gradient over
            assert weight.grad is not None, "the hook runs after a gradient came"
            weight.grad.mul_(1.0 / self._count)
            self.squares += float(torch.linalg.vector_norm(weight.grad)) ** 2
            self._optimizer.step()  # of the only weight that has a gradient now
            weight.grad = None
            if master is not None:
                parameter.copy_(master)

        return step


def backward_and_step(
    steps: InBackward, loss: Callable[[Any, Any], LossOutput], model: Any, batches: Batches, *, step: int
) -> tuple[list[LossOutput], float]:
    """One training step.

    Returns:
        What the loss gave, and the global norm of the mean's gradient.

    Raises:
        PunaError: There is no target; the loss is not finite (nothing was stepped); or a gradient was not (weights
            were: go on from the last checkpoint).
    """
    output = loss(model, batches.next_batch())
    if not output.count:
        raise PunaError(f"step {step}: its batch has no target. Look at the data.")
    if not math.isfinite(float(output.sum.detach())):
        raise PunaError(f"step {step}: the loss is not finite; the step was not made. Lower train.optim.lr.")
    steps.begin(output.count)
    output.sum.backward()
    norm = math.sqrt(steps.squares)
    if not math.isfinite(norm):
        raise PunaError(
            f"step {step}: a gradient is not finite, and optim.step='in_backward' has stepped weights with it. Start "
            "the same command again: it goes on from the last checkpoint; with optim.step='after_backward' such a "
            "step is not made."
        )
    return [output.detached()], norm


def check_in_backward(config: TrainConfig, worker: Worker, *, accumulates: bool) -> None:
    """Refuse what cannot be stepped inside the backward, or kept in eight bits.

    Raises:
        UsageError: Several processes, accumulation, or a model in parts.
    """
    if config.optim.step == "in_backward" and (worker.processes > 1 or accumulates):
        raise UsageError("optim.step='in_backward' is for one process without accumulation; use 'after_backward'")
    cut = not isinstance(worker, Solo)  # the model is in parts
    if config.optim.kind == "adamw8bit" and cut:
        raise UsageError("optim.kind='adamw8bit' is for a model in one piece; use 'adamw', whose state is sharded")
    if config.activations != "keep" and cut:
        raise UsageError("train.activations is for a model in one piece; a cut one takes parallel.recompute")
