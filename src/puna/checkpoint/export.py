"""A model streams from one folder into a Hugging Face folder, a block of rows at a time, whatever its size and layout.

`export` does it in one process; `export_together` with all ranks of a run: the files of the result are dealt out, each
rank reads the boxes that its files need from the pieces that all ranks saved, and the first one seals. A rank holds
`tensors.BLOCK_BYTES` of one tensor, never a whole one, and files stay open only as far as a process may have them.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from puna.checkpoint import huggingface, whole
from puna.checkpoint.card import Card
from puna.checkpoint.format import (
    MAX_SHARD_BYTES,
    check_shapes,
    find_tokenizer,
    load_model,
    read_config,
    resolve,
    save_model,
    write_side,
)
from puna.checkpoint.ranks import Ranks
from puna.checkpoint.safetensors_file import Entry, Written, write_file
from puna.checkpoint.tensors import TensorReader, deal_out, write_index, write_sharded
from puna.core.files import is_sealed, need_free_space
from puna.lineage import artifact
from puna.model.config import ModelConfig

Progress = Callable[[int], None]


def export(
    source: Path | str,
    out: Path | str,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Progress = lambda n_bytes: None,
) -> ModelConfig:
    """Write the model at a path as a sealed Hugging Face folder without ever holding it: a block of rows at a time.

    Args:
        source: See `format.resolve`; a folder with safetensors, in one piece or many.
        out: The folder; it is new or empty.
        dtype: Of the weights; None keeps each tensor's.
        max_shard_bytes: Limit of one weights file.
        progress: Is told of bytes that were written.

    Returns:
        The model's shape.

    Raises:
        PunaError: As `load_model`; or the disk is too small.
    """
    found, out = resolve(source), Path(out)
    if found.layout == "meta":
        model, config = load_model(source, dtype=dtype)
        save_model(out, model, config, tokenizer=find_tokenizer(found.folder), max_shard_bytes=max_shard_bytes)
        return config
    config = read_config(found.folder)
    if is_sealed(found.folder):
        artifact.check(found.folder)
    with TensorReader.of_folder(found.folder) as reader:
        entries = _entries(reader, config, found.folder, dtype)
        need_free_space(out, sum(entry.nbytes for entry in entries) + (64 << 20))

        def write(folder: Path) -> dict[str, Written]:
            kind = entries[0].dtype
            tokenizer = find_tokenizer(found.folder)
            write_side(folder, config, tokenizer=tokenizer, card=Card(name=out.name), dtype=kind)
            if dtype is None and (found.folder / "README.md").is_file():  # it knows what the model was made from
                shutil.copyfile(found.folder / "README.md", folder / "README.md")
            return write_sharded(
                folder, entries, lambda name: _blocks(reader, name, dtype, progress), max_shard_bytes=max_shard_bytes
            )

        whole.write_whole(out, write, kind="checkpoint")
    return config


def export_together(
    source: Path,
    out: Path,
    *,
    ranks: Ranks,
    card: Card,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> str:
    """The same by all ranks of a run from a checkpoint that is known to be whole. Collective.

    Ranks that see the first one's folders share the work, file by file; the others only wait.

    Args:
        source: The checkpoint; the first machine has all its files.
        out: Replaced, as `whole.write_whole` does.
        ranks: The processes.
        card: What the model card says.
        dtype: Of the weights; None keeps each tensor's.
        max_shard_bytes: Limit of one weights file.

    Returns:
        The fingerprint of the folder.

    Raises:
        PunaError: On every rank, when one cannot write or read.
    """
    workers = ranks.nodes[0]
    temporary, config = whole.temporary_of(out), ranks.gather(read_config(source) if ranks.is_first else None)[0]
    assert config is not None, "the first rank has read it"

    def begin() -> list[Entry]:
        if not ranks.is_first:
            return []
        whole.refuse_foreign(out)
        with TensorReader.of_folder(source) as reader:
            entries = _entries(reader, config, source, dtype)
        need_free_space(out, sum(entry.nbytes for entry in entries) + (64 << 20))
        write_side(whole.begin(out), config, tokenizer=find_tokenizer(source), card=card, dtype=entries[0].dtype)
        return entries

    written: dict[str, Written] = {}
    try:
        entries = ranks.gather(ranks.together(begin))[0]
        files = deal_out(entries, max_shard_bytes=max_shard_bytes)
        names = list(files)

        def write(number: int) -> dict[str, Written]:
            if ranks.rank not in workers or number >= len(names):
                return {}
            return {names[number]: _write_part(temporary / names[number], source, files[names[number]], dtype)}

        for start in range(0, len(names), len(workers)):  # round by round, so that nobody waits for longer than a file
            number = start + (workers.index(ranks.rank) if ranks.rank in workers else 0)
            own = ranks.together(lambda number=number: write(number))
            for part in ranks.gather(own):
                written |= part

        def finish() -> str:
            if not ranks.is_first:
                return ""
            if len(names) > 1:
                write_index(temporary, {e.key: name for name, part in files.items() for e in part}, entries)
            return whole.commit(out, kind="checkpoint", known=written)

        return ranks.gather(ranks.together(finish))[0]
    finally:
        if ranks.is_first:
            shutil.rmtree(temporary, ignore_errors=True)


def _write_part(path: Path, source: Path, entries: Sequence[Entry], dtype: torch.dtype | None) -> Written:
    with TensorReader.of_folder(source, only={entry.key for entry in entries}) as reader:
        blocks = (block for entry in entries for block in _blocks(reader, entry.key, dtype, lambda n: None))
        return write_file(path, entries, blocks)


def _entries(reader: TensorReader, config: ModelConfig, folder: Path, dtype: torch.dtype | None) -> list[Entry]:
    check_shapes({name: reader.shape(name) for name in reader}, config, where=folder)
    names = [part.name for _, parts in huggingface.tensor_map(config) for part in parts]
    return [Entry(name, dtype or reader.dtype(name), reader.shape(name)) for name in names]


def _blocks(reader: TensorReader, name: str, dtype: torch.dtype | None, progress: Progress) -> Iterator[Tensor]:
    for block in reader.blocks(name):
        block = block if dtype is None else block.to(dtype)
        yield block
        progress(block.nbytes)
    reader.forget()
