"""A corpus: a sealed folder of documents with the account of how they were chosen.

documents/SOURCE-00000.parquet   what was kept, in the order of the source; any Parquet reader opens it
ledger/SOURCE-00000.parquet      one row for everything that was read: what became of it, why, all scores
dropped/SOURCE-00000.parquet     texts of what was dropped: a few for each reason, or all (`keep = "all"`)
reports/STEP/                    what barriers found: clusters, matches
quarantine.jsonl                 what could not be read: where, why
manifest.json                    the funnel: for each source and step documents and bytes in, out and by reason
README.md                        the data card
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.core.errors import CorruptError, MissingError, UsageError
from puna.core.files import read_json
from puna.data.document import Document
from puna.data.documents import read_documents
from puna.data.token_counts import how_counted
from puna.data.work import MANIFEST
from puna.lineage.artifact import read_record

FORMAT = "puna-corpus/2"


def _maker(path: Path) -> str:
    """The command that makes what a folder does not hold yet."""
    record = read_record(path) if path.is_dir() else None
    if record is None:
        return "Make it with `puna curate RECIPE`, whose out= is this folder."
    state = f"failed: {record.error}" if record.error else f"is {record.status}"
    return f"Its last run {state}. Finish it with: {record.command or 'puna curate RECIPE'}"


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
            raise MissingError(f"{path} is not a finished corpus: it has no {MANIFEST}. {_maker(path)}")
        manifest = read_json(path / MANIFEST)
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise CorruptError(f"{path / MANIFEST} is not the manifest of a corpus ({FORMAT})")
        corpus = cls(path, manifest)
        for file in (file for source in corpus.sources for file in corpus.files(source)):
            if not file.is_file():
                raise CorruptError(f"{file} is missing, though its manifest lists it. Make {path} again.")
        return corpus

    @property
    def sources(self) -> list[str]:
        """Names of the sources, in the recipe's order."""
        return list(self.manifest["order"])

    @property
    def token_count(self) -> dict[str, Any]:
        """How its tokens were counted: `how` is counted, sampled or estimated."""
        return how_counted(self.manifest)

    def domain(self, source: str) -> str:
        """Domain of a source."""
        return self.manifest["sources"][source]["domain"]

    def tasks(self, source: str) -> list[str]:
        """Names of a source's tasks that kept documents, in order: stems of its files.

        Raises:
            UsageError: There is no such source.
        """
        if source not in self.manifest["sources"]:
            raise UsageError(f"{self.path} has no source {source!r}; it has {', '.join(self.sources)}")
        return list(self.manifest["sources"][source]["tasks"])

    def files(self, source: str) -> list[Path]:
        """The document files of a source, in order.

        Raises:
            UsageError: There is no such source.
        """
        return [self.path / "documents" / f"{name}.parquet" for name in self.tasks(source)]

    def ledgers(self, source: str | None = None) -> list[Path]:
        """The ledgers, in the corpus's order."""
        return self._all("ledger", source)

    def dropped(self, source: str | None = None) -> list[Path]:
        """The files of dropped texts, in the corpus's order."""
        return self._all("dropped", source)

    def _all(self, what: str, source: str | None) -> list[Path]:
        names = [source] if source else self.sources
        return [p for name in names for p in sorted((self.path / what).glob(f"{name}-[0-9]*.parquet"))]

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
