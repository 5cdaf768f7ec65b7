"""The unit of text: a document knows where it came from, under which licence, and in which language.

Its id is derived from source, address and text as they were read, so the same document has the same id on every machine
and in every run, and a document that changed is another one. Steps that edit the text keep the id: it names the record
in the source, and leads back to it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Document:
    """A text with its provenance.

    Attributes:
        text: The content.
        source: Name of the source in the recipe.
        url: Address: a URL, or a path relative to the source's root. Never an absolute local path.
        licence: SPDX identifier, or the licence in the publisher's words, or `""` when unknown.
        language: BCP 47 tag of a natural language (`"en"`), or a programming language's name (`"python"`), or `""`.
        metadata: Anything else worth keeping, in JSON scalars: `robots`, `tdm_reservation`, `content_type`.
        domain: Domain of its source (`prose`, `code`).
        confidence: How sure the language is, 0 to 1; 1 where the source said it, 0 where nobody did.
        date: When it was captured, ISO 8601, or `""`.
        file: File of the source that holds its record, relative to the source's root.
        offset: Place of the record in that file: a byte offset (WARC), a line (JSON Lines) or a row (Parquet); -1 when
            the file is the record.
        id: 32 hexadecimal digits over source, address and text; empty derives it.
    """

    text: str
    source: str
    url: str
    licence: str = ""
    language: str = ""
    metadata: Mapping[str, Scalar] = field(default_factory=dict)
    domain: str = ""
    confidence: float = 0.0
    date: str = ""
    file: str = ""
    offset: int = -1
    id: str = ""

    def __post_init__(self) -> None:
        if not self.id:
            object.__setattr__(self, "id", document_id(self.source, self.url, self.text))

    @property
    def n_bytes(self) -> int:
        """Size of the text in UTF-8."""
        return len(self.text) if self.text.isascii() else len(self.text.encode("utf-8"))

    def with_text(self, text: str) -> "Document":
        """The same record with an edited text."""
        return self if text == self.text else replace(self, text=text)

    def provenance(self) -> dict[str, Any]:
        """All but the text: what a shard keeps for each document."""
        return {
            "id": self.id,
            "source": self.source,
            "url": self.url,
            "licence": self.licence,
            "language": self.language,
            "confidence": round(self.confidence, 4),
            "date": self.date,
            "file": self.file,
            "offset": self.offset,
            "metadata": dict(self.metadata),
        }


class Size(NamedTuple):
    """How large a document is.

    Attributes:
        n_bytes: Of its text in UTF-8.
        n_tokens: None where they are not counted.
    """

    n_bytes: int
    n_tokens: int | None = None


def document_id(source: str, url: str, text: str) -> str:
    """The id of a record: 128 bits over its source, its address and its text."""
    content = hashlib.sha256(text.encode("utf-8")).digest()
    return hashlib.sha256(f"{source}\0{url}\0".encode() + content).hexdigest()[:32]


def record_place(file: str, offset: int) -> str:
    """Where a document's record lies, in words: `file:offset`, or the file where it is the record."""
    return file if offset < 0 else f"{file}:{offset}"


def metadata_text(metadata: Mapping[str, Scalar]) -> str:
    """Metadata as one line of JSON with sorted keys; empty for none."""
    return json.dumps(dict(metadata), sort_keys=True, ensure_ascii=False, separators=(",", ":")) if metadata else ""
