"""An adapter merged into its base and written as an ordinary model, one fused matrix in memory at a time.

W + s B A is computed in fp32 and rounded once to the type of the file; in fp32 the merged model is the adapted one but
for the rounding of that sum. An adapter of a packed base is merged into what the packed base stands for.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from puna.checkpoint import huggingface, peft
from puna.checkpoint.card import Card
from puna.checkpoint.format import (
    MAX_SHARD_BYTES,
    cut,
    load_config,
    load_tokenizer,
    read_weights,
    resolve,
    write_side,
)
from puna.checkpoint.safetensors_file import Entry, Written
from puna.checkpoint.tensors import write_sharded
from puna.checkpoint.whole import write_whole
from puna.core.files import need_free_space
from puna.model.config import ModelConfig


@dataclass(frozen=True)
class Merge:
    """What a merge did.

    Attributes:
        config: Shape of the model.
        matrices: Matrices that changed.
        rounding: Largest difference between a merged weight and what was written for it.
    """

    config: ModelConfig
    matrices: int
    rounding: float


def export_merged(
    source: Path | str,
    out: Path | str,
    *,
    base: Path | str | None = None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Callable[[int], None] = lambda n_bytes: None,
) -> Merge:
    """Write the merged model of an adapter as a sealed Hugging Face folder.

    Args:
        source: The adapter, or the run folder that holds it.
        out: The folder; it is new or empty.
        base: The adapter's base, where it is not found by what the adapter says.
        dtype: Of the weights; None keeps the base's.
        max_shard_bytes: Limit of one weights file.
        progress: Is told of bytes that were written.

    Raises:
        MissingError: The base is nowhere.
        PunaError: It is another model than the adapter was trained on; or the disk is too small.
    """
    folder, config = resolve(source).folder, load_config(source, base=base)
    from_base, adapter = peft.base_of(folder, base), peft.read_adapter(folder)
    kind = dtype or next(read_weights(from_base, config))[1].dtype
    parts_of = dict(huggingface.tensor_map(config))
    entries = [Entry(part.name, kind, part.shape) for parts in parts_of.values() for part in parts]
    need_free_space(out, sum(entry.nbytes for entry in entries) + (64 << 20))
    rounding = 0.0
    stored = ((name, tensor.float()) for name, tensor in read_weights(from_base, config))
    stream = (piece for name, tensor in peft.merged(stored, adapter, config) for piece in cut(tensor, parts_of[name]))

    def blocks(name: str) -> list[Tensor]:
        nonlocal rounding
        part, tensor = next(stream)
        assert part.name == name, f"{part.name} comes before {name}"
        written = tensor.to(kind)
        if name in adapter.tensors:
            rounding = max(rounding, float((written.float() - tensor).abs().max()))
        progress(written.nbytes)
        return [written]

    def write(target: Path) -> dict[str, Written]:
        card = Card(name=Path(out).name, made_by=f"merging an adapter into {from_base.name}")
        write_side(target, config, tokenizer=load_tokenizer(source, base=base), card=card, dtype=kind)
        return write_sharded(target, entries, blocks, max_shard_bytes=max_shard_bytes)

    write_whole(Path(out), write, kind="checkpoint")
    return Merge(config, len(adapter.tensors), rounding)
