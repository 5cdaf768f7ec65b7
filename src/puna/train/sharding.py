"""Which numbers of which parameter a process holds, and the way from whole tensors to shards and back.

Tensor parallelism deals out rows or columns (`model/split.py`); FSDP deals out the *other* axis, the one of width D. So
every shard is a box of the whole parameter, for every layout, and a fused projection is never cut across its parts.

    whole --take_part (tp)--> part --narrow along D (fsdp)--> shard

`ShardedWeights` is what the optimizer steps: the shards as plain fp32 tensors that share memory with FSDP's DTensors.
Plain tensors, because AdamW needs to know nothing about meshes, and each operation on a DTensor costs host time.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard

from puna.checkpoint.pieces import Chunk, Pieces
from puna.model.config import ModelConfig
from puna.model.split import tensor_part, whole_shape
from puna.model.transformer import Transformer


def width_axis(name: str) -> int:
    """The axis of width D, which FSDP deals out."""
    rows = name.endswith(("norm.weight", "attention.output.weight", "feed_forward.down.weight"))
    return 0 if rows else 1


def placements(models: Sequence[nn.Module], shard_ranks: int) -> Mapping[nn.Parameter, Shard]:
    """FSDP's placement of every parameter."""
    named = [(name, p) for model in models for name, p in model.named_parameters()]
    return {p: Shard(width_axis(name) if shard_ranks > 1 else 0) for name, p in named}


class ShardedWeights:
    """The shards of this process's models as plain tensors.

    Args:
        models: The pipeline stages held here, already sharded by FSDP and on their device.
        mesh_rank: This process's number among those that share a parameter through FSDP.
        shard_ranks: Their number.
    """

    masters: Mapping[str, Tensor] = {}

    def __init__(self, models: Sequence[Transformer], *, mesh_rank: int, shard_ranks: int) -> None:
        self.model, self.models = models[0], models
        self.config: ModelConfig = models[0].config
        self._rank, self._ranks = mesh_rank, shard_ranks
        self._parameters = {name: p for model in models for name, p in model.named_parameters()}
        self._splits = {name: model.split for model in models for name, _ in model.named_parameters()}
        self.named: dict[str, Tensor] = {name: _local(p).detach() for name, p in self._parameters.items()}

    def collect(self) -> None:
        """Hand the gradients that the backward pass left on the parameters to the plain tensors."""
        for name, parameter in self._parameters.items():
            self.named[name].grad = None if parameter.grad is None else _local(parameter.grad)

    def gradients(self) -> list[Tensor]:
        """The gradients that are there: a sum over micro-batches and data ranks."""
        return [w.grad for w in self.named.values() if w.grad is not None]

    def drop_gradients(self) -> None:
        """Free the gradients."""
        for name, parameter in self._parameters.items():
            parameter.grad = self.named[name].grad = None

    def publish(self) -> None:
        """Drop what FSDP still has gathered of the weights before; it casts what it gathers."""
        for model in self.models:
            for module in model.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()

    @property
    def held(self) -> dict[str, Tensor]:
        """All parameters that this process holds."""
        return self.named

    def pieces(self, name: str, tensor: Tensor) -> Pieces:
        """The boxes of a whole parameter that a shard of it, or a tensor of that shape, is."""
        shape, axis = whole_shape(name, self.config), width_axis(name)
        dealt = tensor_part(name, self.config, self._splits[name])
        along = shape[axis] // self._ranks
        if dealt is None or dealt[0] == axis:  # FSDP's axis is never tensor parallelism's
            assert dealt is None, f"{name} is dealt out twice along {axis}"
            offsets = [0] * len(shape)
            offsets[axis] = self._rank * along
            return Pieces(shape, tensor.dtype, (Chunk(tuple(offsets), tensor),))
        dimension, slices = dealt
        chunks, start = [], 0
        for piece in slices:
            n = piece.stop - piece.start
            offsets = [0, 0]
            offsets[dimension], offsets[axis] = piece.start, self._rank * along
            chunks.append(Chunk(tuple(offsets), tensor.narrow(dimension, start, n)))
            start += n
        return Pieces(shape, tensor.dtype, tuple(chunk for chunk in chunks if chunk.tensor.numel()))

    def narrow(self, name: str, part: Tensor) -> Tensor:
        """This process's box of its tensor-parallel part."""
        if self._ranks == 1:
            return part
        axis = width_axis(name)
        width = part.shape[axis] // self._ranks
        return part.narrow(axis, self._rank * width, width)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
