"""Loader throughput: packed batches from memory-mapped shards, against a plain copy of the same tokens.

    python benchmarks/loader.py --quick --json

The floor is what no loader can beat: reading uint32 tokens from the map in order and writing them as int64 tokens and
shifted int64 targets, with int32 positions from one count. The loader does the same with documents in random order,
packed, mixed from two sources, with masked targets and positions that restart. Both run in turns in one process, so
that other work on the machine disturbs both; the best turn of each counts, and CPU time is printed beside it.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from puna.core.files import write_json
from puna.data.document import Document
from puna.data.loader import PackedLoader
from puna.data.shard_writer import ShardWriter
from puna.data.shards import FORMAT, MANIFEST, ShardSet

VOCABULARY = 128_000
HEADLINE = (600, 8, 8192)  # mean document tokens, rows, sequence length
CASES = (HEADLINE, (600, 32, 2048), (600, 8, 512), (128, 8, 8192), (128, 8, 512))


def make_shards(folder: Path, *, mean: int, tokens: int) -> ShardSet:
    """A set of two sources with log-normal document lengths."""
    rng = np.random.default_rng(mean)
    records = []
    for name in ("code", "prose"):
        with ShardWriter(folder, name, source=name, split="train", bos=VOCABULARY, end=VOCABULARY + 1) as writer:
            while writer.n_tokens < tokens // 2:
                n = max(1, int(rng.lognormal(np.log(mean) - 0.5, 1.0)))
                document = Document("", name, str(writer.n_tokens))
                writer.add(document, rng.integers(0, VOCABULARY, n, dtype=np.uint32))
        records.append(writer.record)
    manifest = {"format": FORMAT, "tokenizer": "random", "vocab_size": VOCABULARY + 256, "shards": records}
    write_json(folder / MANIFEST, manifest)
    return ShardSet.open(folder)


class Floor:
    """The plain copy."""

    def __init__(self, shards: ShardSet, *, rows: int, sequence_length: int) -> None:
        self._tokens = next(iter(shards.sources().values())).tokens[0]
        self._n, self._at = rows * sequence_length, 0

    def next_batch(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens, shifted tokens and positions."""
        if self._at + self._n >= len(self._tokens):
            self._at = 0
        part = self._tokens[self._at : self._at + self._n + 1]
        self._at += self._n
        return part[:-1].astype(np.int64), part[1:].astype(np.int64), np.arange(self._n, dtype=np.int32)


def rate(next_batch: Callable[[], object], batch_tokens: int, seconds: float) -> tuple[float, float]:
    """Tokens per second of wall clock and of CPU time."""
    n, wall, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < seconds:
        next_batch()
        n += batch_tokens
    return n / (time.perf_counter() - wall), n / (time.process_time() - cpu)


def main() -> None:
    """Run every case and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under 50 s")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    arguments = parser.parse_args()
    seconds, turns, tokens = (0.6, 4, 4_000_000) if arguments.quick else (2.0, 8, 40_000_000)
    headline = 0.0
    print(
        f"{'document':>8} {'batch':>9} {'loader':>8} {'per CPU s':>9} {'floor':>8} {'fraction':>8}  (M tokens/s)  cut"
    )
    with tempfile.TemporaryDirectory() as temporary:
        sets = {m: make_shards(Path(temporary) / str(m), mean=m, tokens=tokens) for m in {case[0] for case in CASES}}
        for mean, rows, length in CASES:
            weights = {"code": 0.3, "prose": 0.7}
            loader = PackedLoader([sets[mean]], weights=weights, rows=rows, sequence_length=length, seed=0)
            floor = Floor(sets[mean], rows=rows, sequence_length=length)
            ours, theirs = [], []
            for _ in range(turns):
                ours.append(rate(loader.next_batch, rows * length, seconds))
                theirs.append(rate(floor.next_batch, rows * length, seconds))
            wall, cpu, low = max(o[0] for o in ours), max(o[1] for o in ours), max(t[0] for t in theirs)
            cut = cut_fraction(sets[mean], rows, length)
            print(
                f"{mean:8d} {rows}x{length:<7d} {wall / 1e6:8.1f} {cpu / 1e6:9.1f} {low / 1e6:8.1f} "
                f"{wall / low:8.2f}                {cut:.1%}"
            )
            if (mean, rows, length) == HEADLINE:
                headline = wall
    if arguments.json:
        print(json.dumps({"tokens_per_s": headline}))


def cut_fraction(shards: ShardSet, rows: int, length: int) -> float:
    """Pieces that do not end their document, per document; documents longer than a row count too."""
    loader = PackedLoader([shards], rows=rows, sequence_length=length, seed=0)
    batches = [loader.next_batch() for _ in range(max(1, 500_000 // (rows * length)))]
    pieces = sum(len(batch.lengths) for batch in batches)
    ends = sum(batch.tokens.size - batch.n_targets for batch in batches)
    return (pieces - ends) / ends


if __name__ == "__main__":
    main()
