"""A corpus: a sealed folder of documents as compressed JSON Lines, with the funnel that made it.

documents-SOURCE-00000.jsonl.zst    one document a line, in the order of the source
dropped.jsonl.zst                   a sample of what each filter dropped, with the reason and the measured value
quarantine.jsonl                    what could not be read: where, why
manifest.json                       per source: documents and bytes in, dropped by reason, duplicates, kept
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from puna.core.errors import CorruptError, MissingError, UsageError
from puna.core.files import atomic_open, read_json
from puna.data.compressed import Damage, read_lines
from puna.data.document import Document

FORMAT = "puna-corpus/1"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Corpus:
    """A finished corpus.

    Attributes:
        path: Its folder.
        manifest: The content of `manifest.json`.
    """

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: Path | str) -> "Corpus":
        """Open a corpus folder.

        Raises:
            MissingError: It is not there, or is not finished.
            CorruptError: Its manifest cannot be read.
        """
        path = Path(path)
        if not (path / MANIFEST).is_file():
            raise MissingError(f"{path} is not a finished corpus: it has no {MANIFEST}. Make it with: puna curate")
        manifest = read_json(path / MANIFEST)
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise CorruptError(f"{path / MANIFEST} is not the manifest of a corpus ({FORMAT})")
        return cls(path, manifest)

    @property
    def sources(self) -> list[str]:
        """Names of the sources, in the recipe's order."""
        return list(self.manifest["order"])

    def domain(self, source: str) -> str:
        """Domain of a source."""
        return self.manifest["sources"][source]["domain"]

    def files(self, source: str) -> list[Path]:
        """The document files of a source, in order.

        Raises:
            UsageError: There is no such source.
        """
        if source not in self.manifest["sources"]:
            raise UsageError(f"{self.path} has no source {source!r}; it has {', '.join(self.sources)}")
        return [self.path / name for name in self.manifest["sources"][source]["files"]]

    def documents(self, sources: Sequence[str] | None = None) -> Iterator[Document]:
        """Every document, source by source."""
        for source in sources or self.sources:
            for path in self.files(source):
                yield from read_documents(path)

    def texts(self, sources: Sequence[str] | None = None, *, bytes_per_source: int | None = None) -> Iterator[str]:
        """Texts for training a tokenizer.

        Args:
            sources: Names; None means all.
            bytes_per_source: Stop a source after about so many bytes of text; None reads all.
        """
        for source in sources or self.sources:
            left = bytes_per_source
            for document in self.documents([source]):
                yield document.text
                if left is not None:
                    left -= document.n_bytes
                    if left <= 0:
                        break


def write_lines(path: Path, lines: Iterable[str]) -> int:
    """Write lines to a Zstandard file, atomically.

    Returns:
        How many.
    """
    count = 0
    compressor = zstandard.ZstdCompressor(level=3)
    with atomic_open(path, "wb") as file, compressor.stream_writer(file, closefd=False) as out:
        for line in lines:
            out.write(line.encode("utf-8"))
            out.write(b"\n")
            count += 1
    return count


def read_records(path: Path) -> Iterator[bytes]:
    """Lines of one of our own compressed files.

    Raises:
        CorruptError: The file is damaged; its name is in the message.
    """

    def damaged(damage: Damage) -> None:
        raise CorruptError(f"{path} is damaged at byte {damage.offset}: {damage.detail}. Make {path.parent} again.")

    try:
        yield from read_lines(path, damaged)
    except FileNotFoundError as error:
        raise CorruptError(f"{path} is missing, though its manifest lists it. Make {path.parent} again.") from error


def read_documents(path: Path) -> Iterator[Document]:
    """Documents of one file of a corpus.

    Raises:
        CorruptError: The file is damaged.
    """
    for number, line in enumerate(read_records(path), start=1):
        try:
            yield Document.from_json(line)
        except (ValueError, json.JSONDecodeError) as error:
            raise CorruptError(f"{path}:{number} is not a document: {error}. Make {path.parent} again.") from error
