"""Making shards: a corpus and a tokenizer in, a sealed set out.

Each document file of the corpus is one task and becomes one shard for each split (more when `shard_tokens` is
reached). Tasks run in processes; a task's record in `work/` is written last, so a killed run goes on at the next file
and ends with the same bytes.

A held-out document is chosen by its id alone, so it is held out in every set that it gets into. With `group_by` the
documents of a shard are sorted by group (`groups.py`).
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import IO, Any

import numpy as np
import zstandard
from numpy.typing import NDArray
from pydantic import Field

from puna.core import console
from puna.core.config import Config, as_dict
from puna.core.errors import MissingError, Stopped
from puna.core.files import atomic_open, need_free_space, read_json, sha256_file, write_json
from puna.core.files import fingerprint as fingerprint_of
from puna.core.interrupt import StopRequest
from puna.data.corpus import Corpus
from puna.data.document import Document
from puna.data.documents import read_documents
from puna.data.encoder import Encoder
from puna.data.groups import GroupField, GroupSorter, empty_fields, group_names
from puna.data.pool import default_workers, in_order
from puna.data.shards import FORMAT, SUFFIXES, ShardSet, Split
from puna.data.work import Work

GROUPED_TOKENS = 1 << 24  # of a shard that is sorted by group: until then it is held in memory
_BATCH_BYTES = 4 << 20
_BYTES_PER_DOCUMENT = 64  # its end, and its line of provenance compressed


class ShardsConfig(Config):
    """How a corpus is cut into shards."""

    sources: tuple[str, ...] = ()
    """Names of the corpus's sources to take; none means all."""
    shard_tokens: int = Field(default=1 << 28, ge=1)
    """A shard is closed after this many tokens."""
    held_out_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of the documents kept out of training, for the loss on unseen text."""
    group_by: tuple[GroupField, ...] = ()
    """What splits a source into parts that a mix can weigh, read as `SOURCE/VALUE`: `language`, `domain`, `licence`, or
    a field of the records, `metadata.topic`."""


class ShardWriter:
    """Writes one shard, which appears whole or not at all. Use it as a context manager, then read `record`.

    Args:
        folder: The shard set.
        name: Name of the shard.
        source: Source of its documents.
        split: Split of its documents.
        bos: Token before each document.
        end: Token after each document.
        group_by: Sort the documents by group. They are then held until the shard is full, some ten bytes a token.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        source: str,
        split: Split,
        bos: int,
        end: int,
        group_by: Sequence[str] = (),
    ) -> None:
        self._folder, self._name = folder, name
        self._bos, self._end = np.array([bos], "<u4"), np.array([end], "<u4")
        self._stack = ExitStack()
        self._ends: list[int] = []
        self._counts = {"bytes": 0, "licences": Counter[str](), "languages": Counter[str]()}
        self._source, self._split = source, split
        self._sorter = GroupSorter(group_by) if group_by else None
        self._groups: list[dict[str, Any]] = []
        self.n_tokens = 0
        self.record: dict[str, Any] = {}

    def __enter__(self) -> "ShardWriter":
        self._tokens: IO[bytes] = self._stack.enter_context(atomic_open(self._path("tokens"), "wb"))
        out = self._stack.enter_context(atomic_open(self._path("documents"), "wb"))
        compressor = zstandard.ZstdCompressor(level=3)
        self._documents = self._stack.enter_context(compressor.stream_writer(out, closefd=False))
        return self

    def add(self, document: Document, tokens: NDArray[np.uint32]) -> None:
        """Append a document with its tokens (special tokens are added here)."""
        self.n_tokens += len(tokens) + 2
        if self._sorter is not None:
            self._sorter.add(document, tokens)
        else:
            self._write(document, tokens)

    def _write(self, document: Document, tokens: NDArray[np.uint32]) -> None:
        for part in (self._bos, tokens.astype("<u4", copy=False), self._end):
            self._tokens.write(part.tobytes())
        self._ends.append((self._ends[-1] if self._ends else 0) + len(tokens) + 2)
        line = json.dumps(document.provenance(), ensure_ascii=False, separators=(",", ":"))
        self._documents.write(line.encode() + b"\n")
        self._counts["bytes"] += document.n_bytes
        self._counts["licences"][document.licence] += 1
        self._counts["languages"][document.language] += 1

    def _write_groups(self) -> None:
        for name, held in self._sorter.sorted() if self._sorter is not None else ():
            n_documents, n_tokens = len(self._ends), self._ends[-1] if self._ends else 0
            for document, tokens in held:
                self._write(document, tokens)
            counts = {"documents": len(self._ends) - n_documents, "tokens": self._ends[-1] - n_tokens}
            self._groups.append({"name": name, **counts})
        self._sorter = None

    def __exit__(self, *error: Any) -> None:
        if error[0] is None and not self.record:
            try:
                self._write_groups()
            except BaseException as failure:
                self._stack.__exit__(type(failure), failure, failure.__traceback__)
                raise
        self._stack.__exit__(*error)
        if error[0] is not None or self.record:
            return
        with atomic_open(self._path("ends"), "wb") as file:
            file.write(np.array(self._ends, dtype="<u8").tobytes())
        self.record = {
            "name": self._name,
            "source": self._source,
            "split": self._split,
            "documents": len(self._ends),
            "tokens": self.n_tokens,
            "bytes": self._counts["bytes"],
            "licences": dict(self._counts["licences"]),
            "languages": dict(self._counts["languages"]),
            **({"groups": self._groups} if self._groups else {}),
            "sha256": {part: sha256_file(self._path(part)) for part in SUFFIXES},
        }

    def _path(self, part: str) -> Path:
        return self._folder / f"{self._name}{SUFFIXES[part]}"


def build_shards(
    corpus: Corpus,
    tokenizer: Encoder,
    folder: Path | str,
    config: ShardsConfig | None = None,
    *,
    workers: int | None = None,
) -> ShardSet:
    """Tokenise a corpus, or finish doing so.

    Args:
        corpus: The documents.
        tokenizer: What encodes them.
        folder: Where the set goes; its `work/` holds what is half done.
        config: How it is cut.
        workers: Processes; None means `min(2, processors)`. The result does not depend on it.

    Returns:
        The sealed set.

    Raises:
        MissingError: The corpus has no document in these sources.
        CorruptError: A file of the corpus is damaged.
        Stopped: Ctrl-C or SIGTERM; the same call goes on from there.
    """
    folder, config = Path(folder), config or ShardsConfig()
    made_of = {"corpus": fingerprint_of(corpus.path), "tokenizer": tokenizer.fingerprint, "config": as_dict(config)}
    recipe = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
    products = tuple(f"*{suffix}" for suffix in SUFFIXES.values())
    work = Work(folder, "shards", recipe, products, "tokenize")
    if work.finished():
        return ShardSet.open(folder)
    work.begin()
    sources = config.sources or corpus.sources
    tasks = [ShardTask(source, path) for source in sources for path in corpus.files(source)]
    sizes = {source: corpus.manifest["sources"][source]["kept"]["bytes"] for source in sources}
    if not tasks:
        raise MissingError(f"{corpus.path} has no documents in {', '.join(sources)}")
    need_free_space(folder, 2 * sum(sizes.values()))  # at two bytes of text a token; usually it is less
    todo = [task for task in tasks if not task.done(work).exists()]
    workers = min(workers or default_workers(sum(sizes.values())), max(1, len(todo)))
    # with one task at a time the encoder's own threads use the cores
    threads = default_workers() if workers == 1 else 1
    run = partial(_run_task, work, tokenizer, threads, config)
    ahead = sum(record["bytes"] for task in tasks if task not in todo for record in read_json(task.done(work)))
    with StopRequest() as stop, console.progress("tokenize", total=sum(sizes.values()), unit="bytes") as bar:
        bar.advance(ahead)
        with closing(in_order(run, todo, workers=workers)) as results:
            for task, n_bytes in zip(todo, results, strict=True):
                bar.advance(n_bytes)
                bar.note(task.stem)
                if stop.requested:
                    raise Stopped("tokenize stopped; finished shards are kept. The same command goes on from here.")
    return _finish(work, tasks, tokenizer, config.group_by)


@dataclass(frozen=True)
class ShardTask:
    """One document file of a corpus."""

    source: str
    path: Path

    @property
    def stem(self) -> str:
        """First part of the names of its shards."""
        return self.path.stem

    def done(self, work: Work) -> Path:
        """The record that ends it."""
        return work.path / f"{self.stem}.json"


def _run_task(work: Work, tokenizer: Encoder, threads: int, config: ShardsConfig, task: ShardTask) -> int:
    records = _write_task(
        work.folder, task.stem, task.source, _encoded(task.path, tokenizer, threads), tokenizer, config
    )
    write_json(task.done(work), records)
    return sum(record["bytes"] for record in records)


def _encoded(path: Path, tokenizer: Encoder, threads: int) -> Iterator[tuple[Document, NDArray[np.uint32]]]:
    for batch in _batches(read_documents(path)):
        yield from zip(batch, tokenizer.encode_batch([d.text for d in batch], threads=threads), strict=True)


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def held_out(document: Document, fraction: float) -> bool:
    """Whether a document is kept out of training."""
    return int(document.id[:8], 16) < fraction * 2**32


def _write_task(
    folder: Path,
    stem: str,
    source: str,
    encoded: Iterator[tuple[Document, NDArray[np.uint32]]],
    tokenizer: Encoder,
    config: ShardsConfig,
) -> list[dict[str, Any]]:
    writers: dict[Split, ShardWriter] = {}
    numbers: dict[Split, Iterator[int]] = {"train": count(), "held_out": count()}
    records: list[dict[str, Any]] = []
    bos, end = tokenizer.specials.bos, tokenizer.specials.end_of_text
    most = min(config.shard_tokens, GROUPED_TOKENS) if config.group_by else config.shard_tokens

    with ExitStack() as stack:
        for document, tokens in encoded:
            split: Split = "held_out" if held_out(document, config.held_out_fraction) else "train"
            writer = writers.get(split)
            if writer is None:
                name = f"{stem}-{split.replace('_', '-')}-{next(numbers[split]):03d}"
                writer = ShardWriter(
                    folder, name, source=source, split=split, bos=bos, end=end, group_by=config.group_by
                )
                writers[split] = stack.enter_context(writer)
            writer.add(document, tokens)
            if writer.n_tokens >= most:
                writer.__exit__(None, None, None)
                records.append(writers.pop(split).record)
    return records + [writer.record for writer in writers.values()]


def _finish(work: Work, tasks: Sequence[ShardTask], tokenizer: Encoder, group_by: Sequence[str]) -> ShardSet:
    records = [record for task in tasks for record in read_json(task.done(work))]
    sources: dict[str, Counter[str]] = {}
    groups: dict[str, Counter[str]] = {}
    for record in records:
        counts = sources.setdefault(record["source"], Counter())
        counts.update({key: record[key] for key in ("documents", "tokens", "bytes")})
        for name, group in zip(group_names(record), record.get("groups", ()), strict=False):
            groups.setdefault(name, Counter()).update({key: group[key] for key in ("documents", "tokens")})
    for field in empty_fields(group_by, [name.partition("/")[2] for name in groups]):
        known = "the step `language` finds it" if field == "language" else "is it among the source's metadata_fields?"
        console.warn(f"group_by: no document has {field}, so all are in one group; {known}")
    manifest = {
        "format": FORMAT,
        "tokenizer": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "sources": {name: dict(counts) for name, counts in sources.items()},
        **({"groups": {name: dict(groups[name]) for name in sorted(groups)}} if groups else {}),
        "shards": records,
    }
    work.finish(manifest)
    return ShardSet.open(work.folder, verify="sizes")
