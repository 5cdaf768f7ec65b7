"""Shards: tokens on disk as the loader reads them, with the way back from every token to its document.

    NAME.tokens.bin              uint32, little endian: each document as <|begin_of_text|> tokens <|end_of_text|>
    NAME.ends.bin                uint64, little endian: where each document ends, in tokens
    NAME.documents.jsonl.zst     for each document its id, source, url, licence, language and metadata
    manifest.json                tokenizer, and for each shard its source, split, counts and checksums

A shard belongs to one source and one split, so that a mix by weight needs no other files; packed with `group_by`, its
documents lie group by group and each group is read as a source (`groups.py`). `build_shards` in `shard_writer.py`
makes a set.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from puna.core.errors import CorruptError, MissingError, UsageError
from puna.core.files import read_json, sha256_file
from puna.data.groups import group_names, group_spans
from puna.data.lines import read_records
from puna.data.work import MANIFEST

FORMAT = "puna-shards/1"
SUFFIXES = {"tokens": ".tokens.bin", "ends": ".ends.bin", "documents": ".documents.jsonl.zst"}
Split = Literal["train", "held_out"]


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a token comes from.

    Attributes:
        document: The document's record: id, source, url, licence, language, metadata.
        index: The document's place in the shard.
        start: Its first token.
        stop: One past its last token.
    """

    document: dict[str, Any]
    index: int
    start: int
    stop: int


class Shard:
    """One memory-mapped shard.

    Args:
        folder: The shard set.
        record: Its entry in the manifest.
    """

    def __init__(self, folder: Path, record: dict[str, Any]) -> None:
        self.folder = folder
        self.name: str = record["name"]
        self.n_tokens: int = record["tokens"]
        self.n_documents: int = record["documents"]
        self.tokens: NDArray[np.uint32] = self._map("tokens", "<u4", self.n_tokens)
        self.ends: NDArray[np.uint64] = self._map("ends", "<u8", self.n_documents)
        if self.n_documents and int(self.ends[-1]) != self.n_tokens:
            raise CorruptError(f"{self.path('ends')} ends at {self.ends[-1]}, the shard has {self.n_tokens} tokens")

    def path(self, part: str) -> Path:
        """One of the shard's three files."""
        return self.folder / f"{self.name}{SUFFIXES[part]}"

    def _map(self, part: str, dtype: str, count: int) -> NDArray[Any]:
        path = self.path(part)
        if not path.is_file():
            raise CorruptError(f"{path} is missing, though {MANIFEST} lists it. Make {self.folder} again.")
        size, width = path.stat().st_size, np.dtype(dtype).itemsize
        if size != count * width:
            raise CorruptError(
                f"{path} has {size} bytes, {MANIFEST} says {count * width}. Make {self.folder} again, or restore it."
            )
        # a plain array over the map: slicing a np.memmap costs ten times as much
        return np.asarray(np.memmap(path, dtype=dtype, mode="r")) if count else np.empty(0, dtype)

    def trace(self, offset: int) -> Provenance:
        """The document that token `offset` belongs to.

        Raises:
            UsageError: The shard has no such token.
            CorruptError: The provenance file is damaged.
        """
        if not 0 <= offset < self.n_tokens:
            raise UsageError(f"shard {self.name} has tokens 0 to {self.n_tokens - 1}, not {offset}")
        index = int(np.searchsorted(self.ends, np.uint64(offset), side="right"))
        start = int(self.ends[index - 1]) if index else 0
        for number, line in enumerate(read_records(self.path("documents"))):
            if number == index:
                return Provenance(json.loads(line), index, start, int(self.ends[index]))
        raise CorruptError(f"{self.path('documents')} has no line {index + 1}. Make {self.folder} again.")


@dataclass(frozen=True, slots=True)
class ShardPart:
    """Documents of a shard that follow each other: all of them, or a group.

    Attributes:
        shard: The shard.
        first: The first document.
        n_documents: How many.
        n_tokens: Their tokens.
    """

    shard: Shard
    first: int
    n_documents: int
    n_tokens: int

    @property
    def start(self) -> int:
        """The first document's first token."""
        return int(self.shard.ends[self.first - 1]) if self.first else 0

    @property
    def ends(self) -> NDArray[np.int64]:
        """Where each document ends in the shard, `[documents]`."""
        return self.shard.ends[self.first : self.first + self.n_documents].astype(np.int64)

    @property
    def whole(self) -> bool:
        """Whether it is the whole shard."""
        return self.n_documents == self.shard.n_documents


class TokenSource:
    """The documents of one source and split, or of one group of it, over all its shards.

    Args:
        name: Name of the source.
        parts: Its parts of shards, in order.
        fingerprint: Says which content this is; part of a loader's state.
    """

    def __init__(self, name: str, parts: list[ShardPart], fingerprint: str) -> None:
        self.name = name
        self.fingerprint = fingerprint
        self.parts = parts
        self.n_documents = sum(part.n_documents for part in parts)
        self.n_tokens = sum(part.n_tokens for part in parts)
        self.tokens = [part.shard.tokens for part in parts]
        self._ends = [part.shard.ends for part in parts]
        self._begins = np.array([part.first for part in parts])
        self._first = np.cumsum([0, *(part.n_documents for part in parts)])

    def spans(self, documents: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Shard, first token and one past the last token of each document."""
        shard = np.searchsorted(self._first, documents, side="right") - 1
        local = documents - self._first[shard] + self._begins[shard]
        start, stop = np.empty_like(documents), np.empty_like(documents)
        order = np.argsort(shard, kind="stable")
        for at in np.split(order, np.flatnonzero(np.diff(shard[order])) + 1):
            ends = self._ends[int(shard[at[0]])]
            stop[at] = ends[local[at]]
            start[at] = np.where(local[at] > 0, ends[np.maximum(local[at] - 1, 0)], 0)
        return shard, start, stop


class ShardSet:
    """A folder of shards.

    Attributes:
        path: The folder.
        manifest: The content of `manifest.json`.
        shards: The shards by name.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self.shards = {record["name"]: Shard(path, record) for record in manifest["shards"]}

    @classmethod
    def open(cls, path: Path | str, *, verify: Literal["full", "sizes"] = "full") -> "ShardSet":
        """Open a set.

        Args:
            path: The folder.
            verify: `full` reads every byte and compares checksums (about 1 GB/s); `sizes` looks at sizes only.

        Raises:
            MissingError: It is not there, or is not finished.
            CorruptError: A file is missing, cut short or changed; the message names it.
        """
        path = Path(path)
        if not (path / MANIFEST).is_file():
            raise MissingError(f"{path} is not a finished shard set: it has no {MANIFEST}. Make it with: puna tokenize")
        manifest = read_json(path / MANIFEST)
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise CorruptError(f"{path / MANIFEST} is not the manifest of a shard set ({FORMAT})")
        shards = cls(path, manifest)
        if verify == "full":
            shards.verify()
        return shards

    @property
    def tokenizer(self) -> str:
        """Fingerprint of the tokenizer that made the tokens."""
        return self.manifest["tokenizer"]

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self.manifest["vocab_size"]

    def verify(self) -> None:
        """Compare every file with its checksum.

        Raises:
            CorruptError: A byte changed; the message names the file.
        """
        for record in self.manifest["shards"]:
            for part, digest in record["sha256"].items():
                path = self.shards[record["name"]].path(part)
                if not path.is_file() or sha256_file(path) != digest:
                    raise CorruptError(
                        f"{path} is not what its checksum says: bytes changed. Make {self.path} again, or restore it."
                    )

    def sources(self, split: Split = "train") -> dict[str, TokenSource]:
        """The sources that have tokens in a split, by name; of a source that is packed by groups, those."""
        found: dict[str, list[ShardPart]] = {}
        for name, part in self.parts(split):
            found.setdefault(name, []).append(part)
        digests = {record["name"]: record["sha256"]["tokens"] for record in self.manifest["shards"]}
        return {name: TokenSource(name, parts, _fingerprint(parts, digests)) for name, parts in found.items()}

    def parts(self, split: Split = "train") -> list[tuple[str, ShardPart]]:
        """Names of sources, or of their groups, with their parts of shards, in the order of the shards."""
        return [
            (name, ShardPart(self.shards[record["name"]], *span))
            for record in self.manifest["shards"]
            if record["split"] == split and record["documents"]
            for name, span in zip(group_names(record), group_spans(record), strict=True)
        ]

    def trace(self, shard: str, offset: int) -> Provenance:
        """The document that a token belongs to.

        Args:
            shard: Name of the shard.
            offset: Token in the shard.

        Raises:
            UsageError: There is no such shard or token.
        """
        if shard not in self.shards:
            raise UsageError(f"{self.path} has no shard {shard!r}; it has {', '.join(self.shards)}")
        return self.shards[shard].trace(offset)


def _fingerprint(parts: list[ShardPart], digests: dict[str, str]) -> str:
    contents = [
        digests[part.shard.name] + ("" if part.whole else f":{part.first}:{part.n_documents}") for part in parts
    ]
    return hashlib.sha256("".join(contents).encode()).hexdigest()[:16]
