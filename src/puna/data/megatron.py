"""Shards as Megatron's indexed data set: `.bin` and `.idx`, which Megatron-LM and its descendants train from.

    PREFIX.bin   tokens end to end: uint16 below 65,500 ids, int32 above
    PREFIX.idx   "MMIDIDX" and two zero bytes, version 1, code of the type, number of sequences, documents + 1, then
                 int32 lengths, int64 byte offsets, int64 first sequence of each document

One of our documents (with its begin and end token) is one sequence and one document there.

Source: Megatron-LM `megatron/core/datasets/indexed_dataset.py`.
"""

import shutil
import struct
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np
import zstandard

from puna.core.errors import MissingError
from puna.core.files import atomic_open, need_free_space
from puna.data.lines import read_records
from puna.data.shards import ShardPart, ShardSet, Split

MAGIC = b"MMIDIDX\x00\x00"
_CODES = {"<i4": 4, "<u2": 8}
_MAX_UINT16_VOCABULARY = 65_500


def export(shards: ShardSet, prefix: Path, *, sources: Sequence[str] = (), split: Split = "train") -> int:
    """Write a shard set in Megatron's form.

    Args:
        shards: The set.
        prefix: Path without a suffix.
        sources: Names of the sources to take, or of their groups (`crawl/de`); none means all.
        split: Which documents.

    Returns:
        Number of documents.

    Raises:
        MissingError: There is nothing to write.
    """
    there = shards.parts(split)
    names = sorted({name for name, _ in there} | {name.partition("/")[0] for name, _ in there})
    parts = [part for name, part in there if not sources or name in sources or name.partition("/")[0] in sources]
    missing = [name for name in sources if name not in names]
    if missing or not parts:
        wanted = ", ".join(missing) or "any source"
        raise MissingError(
            f"{shards.path} has no documents in the split {split!r} of {wanted}; "
            f"there are: {', '.join(names) or 'none'}"
        )
    lengths = [np.diff(part.ends, prepend=part.start) for part in parts]
    kind = "<u2" if shards.vocab_size < _MAX_UINT16_VOCABULARY else "<i4"
    n_tokens = sum(int(part.sum()) for part in lengths)
    need_free_space(prefix.parent, n_tokens * np.dtype(kind).itemsize)
    with atomic_open(prefix.with_name(prefix.name + ".bin"), "wb") as out:
        for part in parts:
            tokens = part.shard.tokens[part.start : part.start + part.n_tokens]
            for at in range(0, len(tokens), 1 << 22):
                out.write(tokens[at : at + (1 << 22)].astype(kind).tobytes())
    sizes = np.concatenate(lengths).astype("<i4")
    width = np.dtype(kind).itemsize
    offsets = np.concatenate([[0], np.cumsum(sizes[:-1].astype(np.int64) * width)]).astype("<i8")
    with atomic_open(prefix.with_name(prefix.name + ".idx"), "wb") as out:
        out.write(MAGIC + struct.pack("<QBQQ", 1, _CODES[kind], len(sizes), len(sizes) + 1))
        for array in (sizes, offsets, np.arange(len(sizes) + 1, dtype="<i8")):
            out.write(array.tobytes())
    with atomic_open(prefix.with_name(prefix.name + ".documents.jsonl.zst"), "wb") as out:
        for part in parts:  # Zstandard frames can follow each other
            _copy_provenance(part, out)
    return len(sizes)


def _copy_provenance(part: ShardPart, out: IO[bytes]) -> None:
    path = part.shard.path("documents")
    if part.whole:
        with path.open("rb") as file:
            shutil.copyfileobj(file, out)
        return
    with zstandard.ZstdCompressor(level=3).stream_writer(out, closefd=False) as stream:
        for line in islice(read_records(path), part.first, part.first + part.n_documents):
            stream.write(line + b"\n")
