"""What a rank holds of a logical tensor: boxes of it, as views of live memory.

A checkpoint names logical tensors (`model.layers.0.self_attn.q_proj.weight`), never the layout that they were trained
in. A rank says which boxes of them it holds: all of it, FSDP's rows, tensor parallelism's columns, or a few rows of a
fused matrix. What one layout saved, any other can ask for again in its own boxes; saving reads the views, loading
fills them.

    DTensor or tensor --pieces_of--> Pieces of the fused matrix --split_rows--> Pieces of its logical parts

Nothing is copied here. A chunk's tensor shares memory with the model, so both directions are in place.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


@dataclass(frozen=True)
class Chunk:
    """A box of a logical tensor.

    Attributes:
        offsets: Where the box begins, one number a dimension.
        tensor: Its values, a view of live memory.
    """

    offsets: tuple[int, ...]
    tensor: Tensor

    @property
    def sizes(self) -> tuple[int, ...]:
        """Its extent, one number a dimension."""
        return tuple(self.tensor.shape)


@dataclass(frozen=True)
class Pieces:
    """The boxes of one logical tensor that this rank holds.

    Attributes:
        shape: Of the whole logical tensor.
        dtype: Of its values.
        chunks: What is here; none when other ranks hold all of it.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: tuple[Chunk, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of what is here."""
        return sum(chunk.tensor.nbytes for chunk in self.chunks)

    # The three methods below are torch DCP's protocol for a tensor in pieces (its `_Checkpointable`).

    def __create_write_items__(self, fqn: str, object: "Pieces") -> list[WriteItem]:
        """What there is to save."""
        return [
            WriteItem(
                index=MetadataIndex(fqn, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=_box(chunk), properties=TensorProperties(dtype=self.dtype), size=torch.Size(self.shape)
                ),
            )
            for chunk in self.chunks
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        """What there is to fill."""
        return [_box(chunk) for chunk in self.chunks]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        """The view of one box."""
        return next(c.tensor for c in self.chunks if index.offset is None or c.offsets == tuple(index.offset))


def _box(chunk: Chunk) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(offsets=torch.Size(chunk.offsets), sizes=torch.Size(chunk.sizes))


def pieces_of(tensor: Tensor) -> Pieces:
    """The boxes of a plain tensor (all of it) or a DTensor (this rank's shard).

    Args:
        tensor: A replica counts as all of it; of equal boxes on several ranks one is saved. Partial sums are no values.
    """
    tensor = tensor.detach()
    if not isinstance(tensor, DTensor):
        return Pieces(tuple(tensor.shape), tensor.dtype, (Chunk((0,) * tensor.dim(), tensor),))
    assert not any(p.is_partial() for p in tensor.placements), f"a partial sum cannot be saved: {tensor.placements}"
    local, shape = tensor.to_local(), tuple(tensor.shape)
    if tensor.device_mesh.get_coordinate() is None or not local.numel():
        return Pieces(shape, tensor.dtype, ())
    sizes, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    assert tuple(sizes) == tuple(local.shape), f"local shape {tuple(local.shape)}, its placements say {tuple(sizes)}"
    return Pieces(shape, tensor.dtype, (Chunk(tuple(offsets), local),))


@dataclass(frozen=True)
class Segment:
    """Consecutive rows of a fused matrix that belong to one logical tensor.

    Attributes:
        name: The logical tensor.
        total: Rows of the whole logical tensor.
        start: Row of it that comes first here.
        rows: Rows of it here.
    """

    name: str
    total: int
    start: int
    rows: int


def split_rows(pieces: Pieces, segments: Sequence[Segment]) -> Mapping[str, Pieces]:
    """Cut a fused matrix into its logical parts, whatever cut its rows before.

    Args:
        pieces: Of the fused matrix; a dimension of rows comes first.
        segments: Whose rows lie where, in the order of the fused rows. A part may come in several segments (tensor
            parallelism lays out every rank's own query, key and value rows together).

    Returns:
        The parts by name; a part that this rank holds nothing of has no chunks.
    """
    assert sum(s.rows for s in segments) == pieces.shape[0], f"segments do not cover {pieces.shape[0]} rows"
    found: dict[str, list[Chunk]] = {segment.name: [] for segment in segments}
    totals = {segment.name: segment.total for segment in segments}
    begin = 0
    for segment in segments:
        end = begin + segment.rows
        for chunk in pieces.chunks:
            first, last = max(begin, chunk.offsets[0]), min(end, chunk.offsets[0] + chunk.sizes[0])
            if first < last:
                view = chunk.tensor[first - chunk.offsets[0] : last - chunk.offsets[0]]
                found[segment.name].append(Chunk((segment.start + first - begin, *chunk.offsets[1:]), view))
        begin = end
    return {
        name: Pieces((totals[name], *pieces.shape[1:]), pieces.dtype, tuple(chunks)) for name, chunks in found.items()
    }


def elements(pieces: Mapping[str, Pieces]) -> int:
    """Values of all whole logical tensors together."""
    return sum(prod(p.shape) for p in pieces.values())
