"""Averaging checkpoints: the mean of the weights of models that began from one another.

Llama 3 averages models from experiments with other data or settings at each stage of post-training. Tensors are read
one by one from each folder, averaged in fp64 and written, so memory holds one tensor of each model and one shard of the
result, whatever the models' size.

Source: The Llama 3 Herd of Models (2407.21783), section 4.1.5; Wortsman et al. 2022, "Model soups" (arXiv 2203.05482).
"""

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from puna.checkpoint import card as cards
from puna.checkpoint.card import Card
from puna.checkpoint.format import MAX_SHARD_BYTES, load_config, resolve
from puna.checkpoint.safetensors_file import Entry, Written
from puna.checkpoint.tensors import TensorReader, dtype_name, write_sharded
from puna.checkpoint.whole import write_whole
from puna.core.errors import UsageError
from puna.core.files import SEAL, is_sealed, need_free_space
from puna.lineage import artifact


def average(
    models: Sequence[Path | str],
    out: Path | str,
    *,
    weights: Sequence[float] = (),
    card: Card | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> str:
    """Write the weighted mean of some models as a sealed checkpoint folder.

    Args:
        models: At least two checkpoints of the same shape (Hugging Face layout, or run folders).
        out: The new folder.
        weights: Weight of each model, scaled to sum to 1; by default all equal.
        card: What the model card says beside the shape.
        max_shard_bytes: Limit of one weights file.

    Returns:
        The folder's fingerprint.

    Raises:
        UsageError: Fewer than two models, weights that do not fit, or models of other shapes or tokenizers.
        CorruptError: A model is damaged.
    """
    if len(models) < 2:
        raise UsageError(f"averaging needs at least two models, got {len(models)}")
    shares = list(weights) or [1.0] * len(models)
    if len(shares) != len(models) or min(shares) < 0 or sum(shares) <= 0:
        raise UsageError(f"weights are {shares} for {len(models)} models; give one of 0 or more for each, not all 0")
    total = sum(shares)
    found = [resolve(path) for path in models]
    adapters = [str(path) for path, f in zip(models, found, strict=True) if f.layout == "adapter"]
    if adapters:
        raise UsageError(f"{adapters[0]} is an adapter; merge it first: `puna export hf {adapters[0]} FOLDER`")
    meta = [str(path) for path, f in zip(models, found, strict=True) if f.layout != "huggingface"]
    if meta:
        raise UsageError(f"{meta[0]} has Meta's layout; open it in Hugging Face's first")
    folders = [f.folder for f in found]
    config = load_config(folders[0])
    for path, folder in zip(models, folders, strict=True):
        if is_sealed(folder):
            artifact.check(folder)
        if load_config(folder) != config:
            raise UsageError(f"{path} has another shape than {models[0]}; only models of one shape can be averaged")
        if _tokenizer(folder) != _tokenizer(folders[0]):
            raise UsageError(f"{path} has another tokenizer than {models[0]}; its embeddings mean other tokens")
    with ExitStack() as stack:
        readers = [stack.enter_context(TensorReader.of_folder(folder)) for folder in folders]
        names = list(readers[0])
        for path, reader in zip(models, readers, strict=True):
            if set(reader) != set(names):
                raise UsageError(f"{path} has other tensors than {models[0]}: {sorted(set(reader) ^ set(names))[:3]}")
        dtype = readers[0].read(names[0]).dtype
        need_free_space(Path(out), config.parameters() * dtype.itemsize + (64 << 20))

        entries = [Entry(name, readers[0].dtype(name), readers[0].shape(name)) for name in names]

        def write(temporary: Path) -> dict[str, Written]:
            _copy_rest(folders[0], temporary)
            text = cards.render(card or Card(made_by="averaging of checkpoints"), config, dtype=dtype_name(dtype))
            (temporary / "README.md").write_text(text, encoding="utf-8")
            parts = [share / total for share in shares]
            return write_sharded(
                temporary, entries, lambda name: [_mean(readers, name, parts)], max_shard_bytes=max_shard_bytes
            )

        return write_whole(Path(out), write, kind="checkpoint")


@torch.no_grad()
def _mean(readers: Sequence[TensorReader], name: str, shares: Sequence[float]) -> Tensor:
    first = readers[0].read(name)
    mean = first.double() * shares[0]
    for reader, share in zip(readers[1:], shares[1:], strict=True):
        mean.add_(reader.read(name).double(), alpha=share)
    return mean.to(first.dtype)


def _tokenizer(folder: Path) -> bytes:
    path = folder / "tokenizer.json"
    return path.read_bytes() if path.is_file() else b""


def _copy_rest(source: Path, target: Path) -> None:
    """Everything but the weights, the seal and the card."""
    for path in sorted(source.iterdir()):
        if path.is_file() and not path.name.startswith("model") and path.name not in {SEAL, "README.md"}:
            shutil.copyfile(path, target / path.name)
