"""The weights that the optimizer steps: the model's own when they are fp32, else fp32 masters of them.

With masters, each micro-batch's bf16 gradient is added to the master's fp32 gradient as soon as it is ready, and freed;
after a step the masters are rounded into the model. So small updates and small gradients are not lost.

Source: Mixed precision training (1710.03740), section 3.1; fp32 gradient accumulation: 2407.21783, section 3.3.2.
"""

import torch
from torch import Tensor

from puna.checkpoint.pieces import Pieces, pieces_of
from puna.model.transformer import Transformer
from puna.train.machine import Machine


class Weights:
    """The trained weights of a model on a machine.

    Args:
        model: Moved and cast in place.
        machine: Where to, and as what.
    """

    def __init__(self, model: Transformer, machine: Machine) -> None:
        model.to(machine.device)
        self.model = model
        self._masters: dict[str, Tensor] = {}
        if machine.dtype != torch.float32:
            self._masters = {n: p.detach().float().clone() for n, p in model.named_parameters() if p.requires_grad}
        model.to(machine.dtype)
        for name, parameter in model.named_parameters():
            if name in self._masters:
                parameter.register_post_accumulate_grad_hook(_adder(self._masters[name]))

    @property
    def named(self) -> dict[str, Tensor]:
        """What the optimizer steps, by parameter name."""
        own = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        return self._masters or dict(own)

    @property
    def held(self) -> dict[str, Tensor]:
        """All parameters that a checkpoint keeps: of a model with adapters, only what is trained."""
        everything = self.model.adapter is None
        return {name: p for name, p in self.model.named_parameters() if everything or p.requires_grad}

    def pieces(self, name: str, tensor: Tensor) -> Pieces:
        """What of a parameter, or of a tensor of its shape, is here: all."""
        return pieces_of(tensor)

    @property
    def masters(self) -> dict[str, Tensor]:
        """The fp32 masters, empty when the model itself is fp32."""
        return self._masters

    def gradients(self) -> list[Tensor]:
        """The gradients that are there, summed over micro-batches."""
        return [w.grad for w in self.named.values() if w.grad is not None]

    def drop_gradients(self) -> None:
        """Free the gradients."""
        for weight in self.named.values():
            weight.grad = None

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters into the model."""
        for name, parameter in self.model.named_parameters():
            if name in self._masters:
                parameter.copy_(self._masters[name])


def _adder(master: Tensor):
    def add(parameter: Tensor) -> None:
        assert parameter.grad is not None, "the hook runs after a gradient came"
        if master.grad is None:
            master.grad = parameter.grad.float()
        else:
            master.grad += parameter.grad
        parameter.grad = None

    return add
