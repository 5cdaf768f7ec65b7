"""The unit of text: a document knows where it came from, under which licence, and in which language.

Its id is derived from source, address and text, so the same document has the same id on every machine and in every run,
and a document that changed is another one. Documents travel as one JSON object a line.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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
        metadata: Anything else worth keeping, in JSON scalars.
    """

    text: str
    source: str
    url: str
    licence: str = ""
    language: str = ""
    metadata: Mapping[str, Scalar] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """32 hexadecimal digits over source, address and text."""
        content = hashlib.sha256(self.text.encode("utf-8")).hexdigest()
        return hashlib.sha256(f"{self.source}\0{self.url}\0{content}".encode()).hexdigest()[:32]

    @property
    def n_bytes(self) -> int:
        """Size of the text in UTF-8."""
        return len(self.text) if self.text.isascii() else len(self.text.encode("utf-8"))

    def provenance(self) -> dict[str, Any]:
        """All but the text: what a shard keeps for each document."""
        return {
            "id": self.id,
            "source": self.source,
            "url": self.url,
            "licence": self.licence,
            "language": self.language,
            "metadata": dict(self.metadata),
        }

    def to_json(self) -> str:
        """One line of JSON without its line end."""
        return json.dumps({**self.provenance(), "text": self.text}, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str | bytes) -> "Document":
        """The document that `to_json` wrote; its id is derived again, never read.

        Raises:
            ValueError: The line is not such an object.
        """
        record = json.loads(line)
        try:
            fields = {key: record[key] for key in ("text", "source", "url", "licence", "language", "metadata")}
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a document record: {error}") from error
        return cls(**fields)
