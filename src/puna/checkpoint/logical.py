"""From a model's own tensors to the logical ones that a checkpoint names, and back: both are views of the same memory.

Our fused matrices are Hugging Face's separate ones stacked by rows (`huggingface.py`), so on one process a checkpoint
of a run is a Hugging Face folder, and under any parallel layout its names are the same. Optimizer moments and fp32
masters have the shapes of their weights and are cut alike.
"""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from puna.checkpoint import huggingface
from puna.checkpoint.pieces import Pieces, Segment, pieces_of, split_rows
from puna.model.config import ModelConfig

Segments = Mapping[str, Sequence[Segment]]
Boxes = Callable[[str, Tensor], Pieces]


def segments_of(config: ModelConfig) -> dict[str, list[Segment]]:
    """For each of our parameters the logical tensors that its rows belong to.

    A layout that permutes fused rows (tensor parallelism) makes its own.
    """
    return {
        ours: [Segment(part.name, part.rows, 0, part.rows) for part in parts]
        for ours, parts in huggingface.tensor_map(config)
    }


def logical(
    tensors: Mapping[str, Tensor], segments: Segments, *, pattern: str = "{}", of: Boxes | None = None
) -> dict[str, Pieces]:
    """The logical pieces of named tensors.

    Args:
        tensors: By our parameter names; plain or DTensor. What is no part of a Llama model keeps its name.
        segments: From `segments_of`.
        of: What of a tensor is here, by parameter name; None asks the tensor (plain or DTensor).
        pattern: Makes a name of a logical one: `optimizer/{}/exp_avg`.

    Returns:
        Views, by logical name.
    """
    found: dict[str, Pieces] = {}
    for name, tensor in tensors.items():
        pieces = of(name, tensor) if of is not None and name in segments else pieces_of(tensor)
        parts = split_rows(pieces, segments[name]) if name in segments else {name: pieces}
        found |= {pattern.format(part): piece for part, piece in parts.items()}
    return found


def logical_names(name: str, segments: Segments) -> list[str]:
    """The logical tensors that one of our parameters consists of."""
    return list(dict.fromkeys(s.name for s in segments[name])) if name in segments else [name]
