"""What the loop asks of its processes (`Worker`), and the answer of one process that is alone. Many: `parallel.py`.

`backward` makes the gradients of a step, `reduce` says what all processes know of it. `Figures` are the same on every
process, so every process takes the same decisions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from puna.checkpoint.pieces import Pieces
from puna.model.transformer import Transformer
from puna.train.loss import Loss, LossOutput
from puna.train.machine import Machine
from puna.train.weights import Weights


class Batches(Protocol):
    """An endless source of batches that can name its place."""

    def next_batch(self) -> Any:
        """The next batch, in whatever form the loss takes."""
        ...

    def state(self) -> dict[str, Any]:
        """The place of the next batch, in JSON types, the same on every process."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to a place that `state` named."""
        ...


@dataclass(frozen=True)
class Figures:
    """What all processes know of a step.

    Attributes:
        loss_sum: Over all terms.
        count: Their number.
        norm: Of the gradient of the sum.
        wishes: For each wish, whether any process has it.
        outputs: Sums for the log; together they are the whole step.
    """

    loss_sum: float
    count: float
    norm: float
    wishes: tuple[bool, ...]
    outputs: Sequence[LossOutput]


def read_on_host(values: Sequence[Tensor]) -> list[float]:
    """Numbers from the device, in one transfer. It waits for all work so far: a step does so once, here."""
    return torch.stack([value.detach().double() for value in values]).tolist()


class HeldWeights(Protocol):
    """The weights that a process steps."""

    model: Transformer

    @property
    def named(self) -> Mapping[str, Tensor]:
        """What the optimizer steps, by parameter name."""
        ...

    @property
    def masters(self) -> Mapping[str, Tensor]:
        """fp32 masters beside the model's own weights, if there are any."""
        ...

    def gradients(self) -> list[Tensor]:
        """The gradients that are there."""
        ...

    def drop_gradients(self) -> None:
        """Free the gradients."""
        ...

    def publish(self) -> None:
        """Bring stepped weights into the model."""
        ...

    @property
    def held(self) -> dict[str, Tensor]:
        """All parameters that this process holds."""
        ...

    def pieces(self, name: str, tensor: Tensor) -> Pieces:
        """The boxes of a whole parameter that a tensor of a held one's shape is."""
        ...


class Worker(Protocol):
    """One process, or its part of many. `parallel.Ranks` is the other one."""

    machine: Machine

    @property
    def speaks(self) -> bool:
        """Whether this process writes the run folder."""
        ...

    @property
    def processes(self) -> int:
        """How many there are."""
        ...

    @property
    def weights(self) -> HeldWeights:
        """What this process steps."""
        ...

    def backward(self, loss: Loss, batches: Batches, n: int) -> list[LossOutput]:
        """Gradients of the sum of n batches; what the loss gave here."""
        ...

    def reduce(self, outputs: Sequence[LossOutput], wishes: Sequence[bool] = ()) -> Figures:
        """What all processes know of the step."""
        ...

    def score(self, loss: Loss, batches: Sequence[Any]) -> tuple[float, float]:
        """Sum of a loss over the batches of all processes, and its terms, without gradients."""
        ...

    def add_up(self, values: Tensor) -> Tensor:
        """The sum of a host tensor over all processes."""
        ...


class Solo:
    """One process with the whole model.

    Args:
        model: Moved and cast in place.
        machine: Where to, and as what.
    """

    speaks, processes = True, 1

    def __init__(self, model: Transformer, machine: Machine) -> None:
        self.machine, self.weights = machine, Weights(model, machine)
        self._model = model

    def backward(self, loss: Loss, batches: Batches, n: int) -> list[LossOutput]:
        """Forward and backward of n batches; their gradients are added up."""
        outputs = []
        for _ in range(n):
            output = loss(self._model, batches.next_batch())
            output.sum.backward()
            outputs.append(output.detached())
        return outputs

    def reduce(self, outputs: Sequence[LossOutput], wishes: Sequence[bool] = ()) -> Figures:
        """The figures of a step."""
        tensors = [torch.nn.utils.get_total_norm(self.weights.gradients()), *(o.sum for o in outputs)]
        tensors += [value for o in outputs for value in o.metrics.values() if isinstance(value, Tensor)]
        norm, *found = read_on_host(tensors)
        loss_sum, metrics = sum(found[: len(outputs)]), iter(found[len(outputs) :])
        told = [
            replace(o, metrics={k: next(metrics) if isinstance(v, Tensor) else v for k, v in o.metrics.items()})
            for o in outputs
        ]
        return Figures(loss_sum, sum(o.count for o in outputs), norm, tuple(wishes), told)

    def score(self, loss: Loss, batches: Sequence[Any]) -> tuple[float, float]:
        """Sum of a loss over batches, and its terms."""
        with torch.no_grad():
            outputs = [loss(self._model, batch) for batch in batches]
        return sum(float(o.sum) for o in outputs), sum(o.count for o in outputs)

    def add_up(self, values: Tensor) -> Tensor:
        """The sum over one process."""
        return values
