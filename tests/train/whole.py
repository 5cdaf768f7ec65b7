"""Whole parameters from the shards of all ranks, for comparing them: memory is no matter here."""

import torch
import torch.distributed as dist

from puna.checkpoint.logical import logical, segments_of


def whole_tensors(ranks, tensors):
    """Every parameter, or a tensor of its shape, whole on the first process and None elsewhere, by our names.

    Each rank tells the boxes that it holds of the logical tensors; the first one puts them together.
    """
    config, weights = ranks.weights.config, ranks.weights
    segments = segments_of(config)
    boxes = logical(tensors, segments, of=weights.pieces)
    told = [
        (name, piece.shape, chunk.offsets, chunk.tensor.detach().clone())
        for name, piece in boxes.items()
        for chunk in piece.chunks
    ]
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, told)
    if not ranks.speaks:
        return {}
    found = {}
    for name, shape, offsets, box in (item for of_rank in everyone for item in of_rank):
        whole = found.setdefault(name, torch.full(shape, float("nan")))
        whole[tuple(slice(o, o + n) for o, n in zip(offsets, box.shape, strict=True))] = box
    return {
        ours: torch.cat([found[s.name] for s in parts]) for ours, parts in segments.items() if parts[0].name in found
    }
