"""What the processes of a run tell each other after a step: one exchange, after which all know the same figures."""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from puna.model.layout import to_device
from puna.train.loss import LossOutput
from puna.train.solo import Figures, read_on_host


def exchange(
    outputs: Sequence[LossOutput],
    wishes: Sequence[bool],
    squares: Tensor,
    *,
    names: Sequence[str],
    device: torch.device,
) -> Figures:
    """Add up the figures of all processes. Collective.

    Args:
        outputs: What this process tells of the step; none where another one tells the same.
        wishes: Flags of this process.
        squares: Sum of the squares of the gradients that it answers for, fp64.
        names: Figures beside the loss, the same on every process.
        device: Where the exchange is made.
    """
    measured = [torch.zeros(1 + len(names), dtype=torch.float64, device=device)]
    for output in outputs:
        values = [output.sum, *(output.metrics[name] for name in names)]
        measured.append(torch.stack([torch.as_tensor(value, dtype=torch.float64).to(device) for value in values]))
    known = [sum(getattr(o, name) for o in outputs) for name in ("count", "tokens", "flops")]
    flags = [float(wish) for wish in wishes]
    vector = torch.cat(
        (
            squares.reshape(1).to(device),
            torch.stack(measured).sum(0),
            to_device(np.array([*known, *flags], dtype=np.float64), device),
        )
    )
    dist.all_reduce(vector)
    square, loss_sum, *found = read_on_host(vector.unbind())
    metrics, found = dict(zip(names, found, strict=False)), found[len(names) :]
    count, tokens, flops, *flags = found
    total = LossOutput(torch.tensor(loss_sum), _count(count), round(tokens), flops, metrics)
    return Figures(loss_sum, count, math.sqrt(square), tuple(flag > 0 for flag in flags), (total,))


def add_up(values: Tensor, device: torch.device) -> Tensor:
    """The sum of a host tensor over all processes, back on the host. Collective."""
    moved = values.to(device, copy=True)
    dist.all_reduce(moved)
    return moved.to(values.device)


def _count(value: float) -> float:
    """Whole where it is a number of targets; the sum of weights where terms have some."""
    return round(value) if abs(value - round(value)) < 1e-9 else value
