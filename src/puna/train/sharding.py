"""Which numbers of which parameter a process holds, and the way from whole tensors to shards and back.

Tensor parallelism deals out rows or columns (`model/split.py`); FSDP deals out the *other* axis, the one of width D. So
every shard is a box of the whole parameter, for every layout, and a fused projection is never cut across its parts.

    whole --take_part (tp)--> part --narrow along D (fsdp)--> shard

`ShardedWeights` is what the optimizer steps: the shards as plain fp32 tensors that share memory with FSDP's DTensors.
Plain tensors, because AdamW needs to know nothing about meshes, and each operation on a DTensor costs host time.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from puna.checkpoint.pieces import Chunk, Pieces
from puna.model.config import ModelConfig
from puna.model.split import Split, take_part, tensor_part, whole_shape
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
        """Nothing to do: FSDP casts what it gathers."""

    @torch.no_grad()
    def fill(self, whole: Iterable[tuple[str, Tensor]]) -> None:
        """Take this process's shards out of whole parameters."""
        for name, tensor in whole:
            if name in self.named:
                self.named[name].copy_(self.shard_of(name, tensor))

    def shard_of(self, name: str, whole: Tensor) -> Tensor:
        """This process's box of a whole parameter, or of another tensor of its shape."""
        return self.narrow(name, take_part(whole, name, self.config, self._splits[name]))

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

    def split_of(self, name: str) -> Split:
        """The coordinates of the stage that holds a parameter."""
        return self._splits[name]


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def names_in_order(config: ModelConfig) -> list[str]:
    """The parameters of the whole model."""
    names = ["embedding.weight"]
    for i in range(config.n_layers):
        names += [
            f"layers.{i}.{part}.weight"
            for part in (
                "attention_norm",
                "attention.qkv",
                "attention.output",
                "feed_forward_norm",
                "feed_forward.gate_up",
                "feed_forward.down",
            )
        ]
    return [*names, "norm.weight", *([] if config.tie_embeddings else ["head.weight"])]


@torch.no_grad()
def gather_whole(name: str, shard: Tensor, weights: ShardedWeights, *, fsdp_group: dist.ProcessGroup) -> Tensor:
    """The whole parameter (or a tensor of its shape) from the shards of a stage, on every process of it, on the CPU.

    Args:
        name: The parameter's name.
        shard: This process's box.
        weights: Whose layout it has.
        fsdp_group: Processes that share a part.
    """
    split, axis = weights.split_of(name), width_axis(name)
    part = torch.cat(_all(shard, fsdp_group), axis) if weights._ranks > 1 else shard
    dealt = tensor_part(name, weights.config, split)
    if split.tp == 1 or dealt is None:
        return part.cpu()
    whole = torch.empty(whole_shape(name, weights.config), dtype=part.dtype)
    dimension, own = dealt
    rows = max(1, -(-weights.config.vocab_size // split.tp)) if len(own) == 1 and dimension == 0 else part.shape[0]
    padded = part if part.shape[0] == rows else torch.cat((part, part.new_zeros(rows - part.shape[0], *part.shape[1:])))
    for rank, other in enumerate(_all(padded, split.tp_group)):
        there = Split(tp=split.tp, tp_rank=rank)
        found = tensor_part(name, weights.config, there)
        assert found is not None
        start = 0
        for piece in found[1]:
            n = piece.stop - piece.start
            whole.narrow(dimension, piece.start, n).copy_(other.narrow(dimension, start, n))
            start += n
    return whole


def _all(tensor: Tensor, group: dist.ProcessGroup) -> list[Tensor]:
    tensor = tensor.contiguous()
    found = [torch.empty_like(tensor) for _ in range(dist.get_world_size(group))]
    dist.all_gather(found, tensor, group=group)
    return found
