"""Tokens in the funnel: counted by a tokenizer, counted on a sample of the documents, or estimated from bytes.

A document is encoded when it was read, and again when an edit or a cut changed its text; filters cost nothing. Its
count travels in the ledger (`tokens.read`, `tokens.left`), so later passes and a judging anew encode nothing.

With a fraction below 1 the documents are chosen by a hash of their ids: the same ones in every run, at every step and
on any number of workers. Tokens of all documents are then bytes times the sample's tokens per byte, a ratio estimate,
whose error is far below that of counting documents since long texts have many tokens.

    R = sum t / sum b        T = R B        se(T) = N sqrt((1 - n/N) / n  *  sum (t - R b)^2 / (n - 1))

with n documents of the sample, N documents in all, B their bytes. Tokens are those of the texts: the two marks that a
shard puts around each document are not among them.

Source: Cochran, Sampling Techniques (1977), equation 6.13.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from puna.core import console
from puna.core.errors import PunaError
from puna.data.document import Document, Size
from puna.data.encoder import Encoder
from puna.data.ledger import Ledger
from puna.tokenizer.bpe import Tokenizer

BYTES_PER_TOKEN = 4.4  # English web text under a 128K vocabulary; other scripts and code differ
READ, LEFT = "tokens.read", "tokens.left"
ESTIMATED: dict[str, Any] = {"how": "estimated", "bytes_per_token": BYTES_PER_TOKEN}


@dataclass(frozen=True)
class TokenCounter:
    """Which tokenizer counts which documents; it travels to worker processes, which load the tokenizer themselves.

    Attributes:
        path: The tokenizer.
        fingerprint: Of its content.
        fraction: Part of the documents that is counted.
    """

    path: Path
    fingerprint: str
    fraction: float = 1.0

    @classmethod
    def open(cls, path: Path, fraction: float = 1.0) -> "TokenCounter":
        """Look at a tokenizer.

        Raises:
            MissingError: There is none.
            CorruptError: It is damaged.
        """
        return cls(path.resolve(), Tokenizer.load(path).fingerprint, fraction)

    @property
    def record(self) -> dict[str, Any]:
        """What a manifest says about the counts; it also decides whether stored counts still hold."""
        if self.fraction == 1:
            return {"how": "counted", "tokenizer": self.fingerprint}
        return {"how": "sampled", "tokenizer": self.fingerprint, "fraction": self.fraction}

    def takes(self, document_id: str) -> bool:
        """Whether a document is counted; other digits than those that hold documents out decide."""
        return self.fraction == 1 or int(document_id[8:16], 16) < self.fraction * 2**32

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text."""
        return [len(ids) for ids in _encoder(self.path, self.fingerprint).encode_batch(texts)]


@lru_cache(maxsize=1)
def _encoder(path: Path, fingerprint: str) -> Encoder:
    """The tokenizer, once a process: its engine takes a second to build."""
    tokenizer = Tokenizer.load(path)
    if tokenizer.fingerprint != fingerprint:
        raise PunaError(f"the tokenizer {path} changed while its tokens were counted. Give the command again.")
    return tokenizer


class TaskTokens:
    """The tokens of one task's documents as their texts stand, kept in its ledger.

    Args:
        counter: None counts nothing.
        ledger: The task's.
    """

    def __init__(self, counter: TokenCounter | None, ledger: Ledger) -> None:
        self._counter, self._ledger = counter, ledger

    def size(self, document: Document, row: int) -> Size:
        """Bytes and tokens of a document."""
        return Size(document.n_bytes, self._of(row))

    def _of(self, row: int) -> int | None:
        if self._counter is None:
            return None
        value = self._ledger.score_at(LEFT, row)
        return None if value is None else int(value)

    def read(self, documents: Sequence[Document], rows: Sequence[int]) -> None:
        """Count documents that were just read."""
        if self._counter is None:
            return
        chosen = [k for k, document in enumerate(documents) if self._counter.takes(document.id)]
        for k, n in zip(chosen, self._counter.count([documents[k].text for k in chosen]), strict=True):
            self._ledger.score("tokens", [rows[k]], [{"read": n, "left": n}])

    def changed(self, before: Document, after: Document, row: int) -> None:
        """Count a document anew if its text is another."""
        if self._of(row) is not None and after.text != before.text:
            assert self._counter is not None
            self._ledger.score("tokens", [row], [{"left": self._counter.count([after.text])[0]}])


# ---- what a counter of documents says about tokens ----


@dataclass(frozen=True)
class Tokens:
    """Tokens of some documents.

    Attributes:
        n: How many.
        error: Standard error; 0 where all were counted, None where they are estimated from bytes or from one document.
    """

    n: int
    error: float | None

    def __str__(self) -> str:
        if not self.error:
            return console.short_number(self.n) if self.error == 0 else f"~{console.short_number(self.n)}"
        return f"{console.short_number(self.n)} ± {console.short_number(float(f'{self.error:.2g}'))}"


def tokens_in(counts: Mapping[str, int], how: Mapping[str, Any]) -> Tokens:
    """The tokens of the documents that a counter counted.

    Args:
        counts: `documents`, `bytes`, and what `Tally` added about tokens.
        how: What `how_counted` says of the manifest.
    """
    if how["how"] == "counted":
        return Tokens(counts.get("tokens", 0), 0.0)
    n_all, n, n_bytes = counts["documents"], counts.get("sampled_documents", 0), counts["bytes"]
    if not n_all:
        return Tokens(0, 0.0 if how["how"] == "sampled" else None)
    if not n or not counts["sampled_bytes"]:
        return Tokens(round(n_bytes / BYTES_PER_TOKEN), None)
    ratio = counts["sampled_tokens"] / counts["sampled_bytes"]
    if n == n_all:
        return Tokens(counts["sampled_tokens"], 0.0)
    if n == 1:
        return Tokens(round(ratio * n_bytes), None)
    squares = counts["tokens_tokens"] - 2 * ratio * counts["tokens_bytes"] + ratio**2 * counts["bytes_bytes"]
    error = n_all * math.sqrt((1 - n / n_all) / n * max(0.0, squares) / (n - 1))
    return Tokens(round(ratio * n_bytes), error)


def how_counted(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """How the tokens of a corpus were counted, by its manifest: `how` is counted, sampled or estimated."""
    return dict(manifest.get("token_count", ESTIMATED))


def head(how: Mapping[str, Any]) -> str:
    """Head of a column of tokens."""
    return {"counted": "tokens", "sampled": "tokens ± error", "estimated": "tokens, estimated"}[how["how"]]


def told(how: Mapping[str, Any]) -> str:
    """One sentence about where figures of tokens come from."""
    if how["how"] == "estimated":
        return (
            f"Tokens are estimated, not counted: bytes / {how['bytes_per_token']}. With `tokenizer` they are counted."
        )
    name = f"the tokenizer {how['tokenizer'][:12]}"
    if how["how"] == "counted":
        return f"Tokens are counted by {name}."
    return f"Tokens are counted by {name} on {how['fraction']:.3g} of the documents; ± is the standard error."
