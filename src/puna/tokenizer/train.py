"""Training a vocabulary: count pre-tokens, then merge the most frequent pair until the vocabulary is full.

Three steps. The texts are read once into a spill file on disk. rustbpe counts pre-tokens from there, in parallel, and
merges; ties go to the pair with the lower ids, so the same texts give the same vocabulary, in any order of documents
and with any number of threads. The first 256 ranks are the single bytes.

Memory is bounded by `max_text_bytes`, not by the corpus. The trainer holds one entry for each *distinct* pre-token
(about 300,000 in 100 MB of English and code), whose number grows with the text counted; the text itself stays on disk.
When the texts exceed the bound, half of the documents are dropped, by their hash, as often as needed: what is counted
is a uniform sample of documents that depends on nothing but the set of texts. Nothing is estimated for the rest.

The backend is a measurement: on 100 MB of docs and code, 32,768 ranks, two cores, Hugging Face's trainer takes four
times as long (`benchmarks/tokenizer.py`).

Source: Sennrich et al. 2016; Llama 3 §3.2 for the size of the vocabulary.
"""

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from typing import IO

import rustbpe

from puna.core import console
from puna.core.errors import MissingError, PunaError, UsageError
from puna.tokenizer.bpe import Tokenizer
from puna.tokenizer.engines import mend
from puna.tokenizer.specials import COUNT
from puna.tokenizer.split import PATTERN, chunks, official_pieces

MIN_VOCAB_SIZE = 256 + COUNT
MAX_VOCAB_SIZE = 128_000 + COUNT
_CHUNK_CHARACTERS = 1 << 16
_CHUNKS_AT_ONCE = 256
_LENGTH_BYTES = 8


def vocab_size_problem(vocab_size: int) -> str | None:
    """Why a vocabulary cannot have this many ids; None where it can."""
    if MIN_VOCAB_SIZE <= vocab_size <= MAX_VOCAB_SIZE:
        return None
    return (
        f"{MIN_VOCAB_SIZE} (256 bytes and {COUNT} special tokens, no merges) to {MAX_VOCAB_SIZE:,} (as Llama 3) "
        "are allowed"
    )


def train_bpe(
    texts: Iterable[str],
    *,
    vocab_size: int,
    max_text_bytes: int = 4 << 30,
) -> Tokenizer:
    """Train a tokenizer.

    Args:
        texts: Documents; read once.
        vocab_size: Ids in all, the 256 special tokens included: 512 (bytes alone) to 128,256.
        max_text_bytes: At most this much UTF-8 text is counted; beyond it, a sample of the documents.

    Returns:
        The tokenizer. Its vocabulary is smaller than asked for when the texts run out of pairs; a warning says so.

    Raises:
        UsageError: `vocab_size` is out of range.
        MissingError: There was no text.
    """
    if problem := vocab_size_problem(vocab_size):
        raise UsageError(f"vocab_size is {vocab_size}: {problem}")
    with Spill(max_text_bytes) as spill:
        with console.progress("reading text", total=None, unit="bytes") as bar:
            for text in texts:
                bar.advance(spill.add(text))
        if not spill.n_bytes:
            raise MissingError("there is no text to train a tokenizer on: every document was empty, or there was none")
        if spill.level:
            share = 1 / 2**spill.level
            console.say(f"training on a {share:.2%} sample of the documents ({console.short_bytes(spill.n_bytes)})")
        trainer = rustbpe.Tokenizer()  # pyright: ignore[reportAttributeAccessIssue] - it has no stubs
        trainer.train_from_iterator(_counted(spill), vocab_size - COUNT, buffer_size=_CHUNKS_AT_ONCE, pattern=PATTERN)
    tokenizer = Tokenizer({bytes(token): rank for token, rank in trainer.get_mergeable_ranks()})
    if tokenizer.vocab_size < vocab_size:
        console.warn(
            f"the text ran out of pairs to merge: the vocabulary has {tokenizer.vocab_size} ids, not {vocab_size}. "
            "Add text, or ask for a smaller one."
        )
    return tokenizer


def _counted(spill: "Spill") -> Iterator[str]:
    with console.progress("counting pre-tokens", total=spill.n_bytes, unit="bytes") as bar:
        for text in spill:
            for piece in official_pieces(text):
                yield from chunks(piece, characters=_CHUNK_CHARACTERS)
            bar.advance(len(text.encode()))
        bar.note("merging")


class Spill:
    """Texts on disk, at most so many bytes of them: a uniform sample of documents once there are more.

    A document is kept at level k when the last k bits of its hash are 0. Going over the bound raises the level by one
    and rewrites the file. Whether a document stays depends on the set of texts alone, not on their order.

    Args:
        max_bytes: Bound on the UTF-8 text held.
    """

    def __init__(self, max_bytes: int) -> None:
        assert max_bytes > 0, f"max_bytes is {max_bytes}"
        self.level = 0
        self.n_bytes = 0
        self._max_bytes = max_bytes
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__

    def __enter__(self) -> "Spill":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, text: str) -> int:
        """Offer a document; return its size in bytes."""
        try:
            data = text.encode()
        except UnicodeEncodeError:
            data = mend(text).encode()
        if data and self._stays(data):
            self._append(data)
            while self.n_bytes > self._max_bytes and self.level < 64:
                self._halve()
        return len(data)

    def __iter__(self) -> Iterator[str]:
        for data in _records(self._file):
            yield data.decode()

    def _stays(self, data: bytes) -> bool:
        if not self.level:
            return True
        bits = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
        return bits & ((1 << self.level) - 1) == 0

    def _append(self, data: bytes) -> None:
        try:
            self._file.write(len(data).to_bytes(_LENGTH_BYTES, "little"))
            self._file.write(data)
        except OSError as error:
            raise PunaError(
                f"cannot keep {console.short_bytes(self.n_bytes)} of text in {tempfile.gettempdir()}: {error}. "
                "Free space there, point TMPDIR to another folder, or set a smaller max_text_bytes."
            ) from error
        self.n_bytes += len(data)

    def _halve(self) -> None:
        old, self._file = self._file, tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self.level += 1
        self.n_bytes = 0
        with old:
            for data in _records(old):
                if self._stays(data):
                    self._append(data)


def _records(file: IO[bytes]) -> Iterator[bytes]:
    file.seek(0)
    while length := file.read(_LENGTH_BYTES):
        yield file.read(int.from_bytes(length, "little"))
    file.seek(0, 2)
