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
from pathlib import Path

import numpy as np

from puna.core.errors import MissingError
from puna.core.files import atomic_open, need_free_space
from puna.data.shards import ShardSet, Split

MAGIC = b"MMIDIDX\x00\x00"
_CODES = {"<i4": 4, "<u2": 8}
_MAX_UINT16_VOCABULARY = 65_500


def export(shards: ShardSet, prefix: Path, *, sources: Sequence[str] = (), split: Split = "train") -> int:
    """Write a shard set in Megatron's form.

    Args:
        shards: The set.
        prefix: Path without a suffix.
        sources: Names of the sources to take; none means all.
        split: Which documents.

    Returns:
        Number of documents.

    Raises:
        MissingError: There is nothing to write.
    """
    records = [r for r in shards.manifest["shards"] if r["split"] == split and (not sources or r["source"] in sources)]
    lengths = [np.diff(np.concatenate([[0], shards.shards[r["name"]].ends.astype(np.int64)])) for r in records]
    if not sum(map(len, lengths)):
        raise MissingError(
            f"{shards.path} has no documents in the split {split!r} of {', '.join(sources) or 'any source'}"
        )
    kind = "<u2" if shards.vocab_size < _MAX_UINT16_VOCABULARY else "<i4"
    n_tokens = sum(int(part.sum()) for part in lengths)
    need_free_space(prefix.parent, n_tokens * np.dtype(kind).itemsize)
    with atomic_open(prefix.with_name(prefix.name + ".bin"), "wb") as out:
        for record in records:
            tokens = shards.shards[record["name"]].tokens
            for at in range(0, len(tokens), 1 << 22):
                out.write(tokens[at : at + (1 << 22)].astype(kind).tobytes())
    sizes = np.concatenate(lengths).astype("<i4")
    width = np.dtype(kind).itemsize
    offsets = np.concatenate([[0], np.cumsum(sizes[:-1].astype(np.int64) * width)]).astype("<i8")
    with atomic_open(prefix.with_name(prefix.name + ".idx"), "wb") as out:
        out.write(MAGIC + struct.pack("<QBQQ", 1, _CODES[kind], len(sizes), len(sizes) + 1))
        for array in (sizes, offsets, np.arange(len(sizes) + 1, dtype="<i8")):
            out.write(array.tobytes())
    provenance = [shards.shards[r["name"]].path("documents") for r in records]
    with atomic_open(prefix.with_name(prefix.name + ".documents.jsonl.zst"), "wb") as out:
        for path in provenance:  # Zstandard frames can follow each other
            with path.open("rb") as file:
                shutil.copyfileobj(file, out)
    return len(sizes)
