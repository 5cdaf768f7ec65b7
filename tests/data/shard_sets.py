"""Small shard sets for the tests of the loader: every token's id tells its document and its place in it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from puna.core.files import write_json
from puna.data.document import Document
from puna.data.shard_writer import ShardWriter
from puna.data.shards import FORMAT, MANIFEST, ShardSet

BOS, END, STRIDE = 1, 2, 1 << 12


def make_set(
    folder: Path, lengths: dict[str, list[int]], *, documents_per_shard: int = 1 << 30, held_out: Sequence[str] = ()
) -> ShardSet:
    """A set whose source `name` has documents of `lengths[name]` content tokens.

    The sources in `held_out` are in that split too. Content token j of document i of a set has id `(i + 1) * STRIDE + j`, counted over all sources.
    """
    records, number = [], 0
    for name, sizes in lengths.items():
        for shard, at in enumerate(range(0, len(sizes), documents_per_shard)):
            with ShardWriter(folder, f"{name}-{shard}", source=name, split="train", bos=BOS, end=END) as writer:
                for size in sizes[at : at + documents_per_shard]:
                    number += 1
                    tokens = number * STRIDE + np.arange(size)
                    writer.add(Document(f"text {number}", name, f"{name}/{number}"), tokens.astype(np.uint32))
            records.append(writer.record)
            if name in held_out:
                records.append(writer.record | {"split": "held_out"})
    write_json(folder / MANIFEST, {"format": FORMAT, "tokenizer": "t", "vocab_size": 1 << 31, "shards": records})
    return ShardSet.open(folder)
