"""What blocks keep for the backward pass on one process: all, their inputs, or their inputs somewhere else.

`recompute` keeps a block's input and runs the block again in its backward. `offload` also puts that input away: into a
file on a CPU, where main memory is what is short, and into pinned host memory on a GPU, copied while it computes. Only
inputs are put away: they are small beside what a block makes of them, so the traffic is small beside the work.

Many processes have `parallel.recompute` (`blocks.py`).

Source: Training Deep Nets with Sublinear Memory Cost (1604.06174).
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from puna.model.transformer import Transformer

_SMALL = 1 << 16  # bytes; less is not worth a trip


def keep_less(
    model: Transformer, kind: Literal["keep", "recompute", "offload"], *, folder: Path | None = None
) -> Callable[[], None]:
    """Set up the blocks of a model.

    Args:
        model: Its blocks' `forward` is replaced on the instance, so names stay.
        kind: What is kept.
        folder: For `offload` on a CPU: where the file lies. None takes host memory.

    Returns:
        Undoes it.
    """
    if kind == "keep":
        return lambda: None
    spill = Spill(folder) if kind == "offload" and folder is not None else None
    for block in model.layers:
        forward: Any = partial(
            checkpoint,
            block.forward,
            use_reentrant=False,
            preserve_rng_state=model.adapter is not None and model.adapter.config.dropout > 0,
        )
        block.forward = _elsewhere(forward, spill) if kind == "offload" else forward

    def undo() -> None:
        for block in model.layers:
            del block.forward
        if spill is not None:
            spill.close()

    return undo


def _elsewhere(forward: Callable[..., Tensor], spill: "Spill | None") -> Callable[..., Tensor]:
    def run(*args: Any) -> Tensor:
        away = save_on_cpu(pin_memory=True) if spill is None else saved_tensors_hooks(spill.put, spill.take)
        with away:
            return forward(*args)

    return run


class Spill:
    """A file without a name that holds tensors until they are asked for; its room is used again step by step.

    Args:
        folder: Where.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - closed by `close`
        self._end, self._held = 0, 0

    def put(self, tensor: Tensor) -> Any:
        """Write a tensor; what comes back stands for it."""
        if tensor.nbytes < _SMALL or (tensor.requires_grad and tensor.is_leaf):
            return tensor
        place, shape = self._end, tensor.shape
        data = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data
        self._file.seek(place)
        written = 0
        while written < len(data):
            written += self._file.write(data[written:])
        self._end, self._held = place + len(data), self._held + 1
        return place, shape, tensor.dtype

    def take(self, kept: Any) -> Tensor:
        """The tensor again."""
        if isinstance(kept, Tensor):
            return kept
        place, shape, dtype = kept
        out = torch.empty(shape, dtype=dtype)
        view = out.view(-1).view(torch.uint8).numpy().data
        self._file.seek(place)
        read = 0
        while read < len(view):
            read += self._file.readinto(view[read:]) or 0
        self._held -= 1
        if not self._held:
            self._end = 0
        return out

    def close(self) -> None:
        """Give the room back."""
        self._file.close()
