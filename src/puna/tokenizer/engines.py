"""The two engines that turn one piece of ordinary text into ids: gigatoken, and tiktoken where that is not installed.

Both are compiled, take the same ranks and give the same ids; the tests compare them around every Unicode character.
Gigatoken recognises Llama 3's pattern and splits with vector instructions instead of a regex engine, remembers the ids
of pre-tokens it has met, and is 10 to 20 times faster on one thread. It is given no special tokens, so no text can make
one. Tiktoken is the reference.

The one difference between them is their Unicode: gigatoken knows the 4,657 letters that Unicode 17 added, tiktoken
takes them for symbols, as it did when Llama 3 was made. A text with one of those goes through tiktoken.

Gigatoken never forgets a pre-token, about 60 bytes each, so it is built anew after every `RENEW_BYTES` of text: half a
second for the largest vocabulary, and memory stays bounded however much is encoded.

Neither takes half of a surrogate pair; like tiktoken's own front door, `mend` replaces it by U+FFFD.
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import tiktoken

from puna.core import console
from puna.core.errors import UsageError
from puna.tokenizer.huggingface import to_json
from puna.tokenizer.split import PATTERN

try:
    import gigatoken
except ImportError:
    gigatoken = None

EngineName = Literal["gigatoken", "tiktoken"]
Ids = npt.NDArray[np.uint32]
_said: set[str] = set()
RENEW_BYTES = 512 << 20

# Letters of Unicode 17 that are not in Unicode 16, first and last of each range: all code points where the two engines
# differ, found by trying each.
_UNICODE_17_LETTERS = [
    *((0x088F, 0x088F), (0x0C5C, 0x0C5C), (0x0CDC, 0x0CDC), (0xA7CE, 0xA7CF), (0xA7D2, 0xA7D2), (0xA7D4, 0xA7D4)),
    *((0xA7F1, 0xA7F1), (0x10940, 0x10959), (0x10EC5, 0x10EC7), (0x11DB0, 0x11DDB), (0x11DE0, 0x11DE9)),
    *((0x16EA0, 0x16EB8), (0x16EBB, 0x16ED3), (0x16FF2, 0x16FF6), (0x187F8, 0x187FF), (0x18D09, 0x18D1E)),
    *((0x18D80, 0x18DF2), (0x1E6C0, 0x1E6DE), (0x1E6E0, 0x1E6E2), (0x1E6E4, 0x1E6E5), (0x1E6E7, 0x1E6ED)),
    *((0x1E6F0, 0x1E6F4), (0x1E6FE, 0x1E6FF), (0x2B73A, 0x2B73F), (0x2CEA2, 0x2CEAD), (0x323B0, 0x33479)),
]
_NEW_LETTER = re.compile("[" + "".join(f"{chr(a)}-{chr(b)}" for a, b in _UNICODE_17_LETTERS) + "]")
# Searching text for such a class is slower than encoding it; searching bytes for these beginnings is not.
_BEGINNINGS = sorted(
    {chr(p).encode()[: 3 if p < 0x30000 else 2] for a, b in _UNICODE_17_LETTERS for p in range(a, b + 1)}
)
_SHORT_BEGINNINGS = [each for each in _BEGINNINGS if each[0] != 0xF0]
_LONG_BEGINNINGS = [each for each in _BEGINNINGS if each[0] == 0xF0]


class Engine(Protocol):
    """Encodes pieces of text that are short enough by `split.official_pieces`."""

    name: EngineName

    def encode(self, piece: str) -> Ids:
        """Ids of one piece."""
        ...

    def encode_many(self, pieces: Sequence[str], *, threads: int) -> list[Ids]:
        """Ids of many pieces, in order."""
        ...


def open_engine(ranks: Mapping[bytes, int], *, name: EngineName | None = None) -> Engine:
    """Build an engine for a vocabulary.

    Args:
        ranks: Bytes -> rank.
        name: Which engine; None takes the faster one that is installed and says once when that is the slower.

    Raises:
        UsageError: The engine asked for is not installed.
    """
    if name == "gigatoken" and gigatoken is None:
        raise UsageError("the engine gigatoken is not installed. Type: pip install gigatoken")
    if name == "tiktoken" or gigatoken is None:
        if name is None and "slow" not in _said:
            _said.add("slow")
            console.warn("gigatoken is not installed: encoding with tiktoken, about ten times slower, same ids")
        return _Tiktoken(ranks)
    return _Gigatoken(ranks)


def mend(text: str) -> str:
    """Replace halves of surrogate pairs, which no UTF-8 text has, as tiktoken does."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class _Gigatoken:
    name: EngineName = "gigatoken"

    def __init__(self, ranks: Mapping[bytes, int]) -> None:
        self._json = json.dumps(to_json(ranks, None), ensure_ascii=False)
        self._ranks = ranks
        self._renew()

    @cached_property
    def _reference(self) -> "_Tiktoken":
        return _Tiktoken(self._ranks)

    def encode(self, piece: str) -> Ids:
        data = _utf8(piece)
        if _has_new_letter(data):
            return self._reference.encode(piece)
        return self._fresh_backend(len(data)).encode(data)

    def encode_many(self, pieces: Sequence[str], *, threads: int) -> list[Ids]:
        if threads == 1:
            return [self.encode(piece) for piece in pieces]
        together = [_utf8(piece) for piece in pieces]
        apart = [i for i, data in enumerate(together) if _has_new_letter(data)]
        for i in apart:
            together[i] = b""
        backend = self._fresh_backend(sum(map(len, together)))
        layout: Any = backend.encode_batch(together, parallel=True).layout  # awkward's ListOffsetArray
        offsets, ids = layout.offsets.data, layout.content.data
        encoded = [np.asarray(ids[a:b]) for a, b in pairwise(offsets)]
        for i in apart:
            encoded[i] = self._reference.encode(pieces[i])
        return encoded

    def _fresh_backend(self, n_bytes: int) -> Any:
        # Threads may race here; then a renewal comes a little early or late, which changes no id.
        if self._bytes_until_renewal <= 0:
            self._renew()
        self._bytes_until_renewal -= n_bytes
        return self._backend

    def _renew(self) -> None:
        assert gigatoken is not None, "gigatoken is installed"
        self._backend = gigatoken.Tokenizer.from_json(self._json)
        self._bytes_until_renewal = RENEW_BYTES


class _Tiktoken:
    name: EngineName = "tiktoken"

    def __init__(self, ranks: Mapping[bytes, int]) -> None:
        self._encoding = tiktoken.Encoding(name="puna", pat_str=PATTERN, mergeable_ranks=dict(ranks), special_tokens={})

    def encode(self, piece: str) -> Ids:
        return np.asarray(self._encoding.encode_ordinary(piece), dtype=np.uint32)

    def encode_many(self, pieces: Sequence[str], *, threads: int) -> list[Ids]:
        if threads == 1:
            return [self.encode(piece) for piece in pieces]
        rows = self._encoding.encode_ordinary_batch(list(pieces), num_threads=threads)
        return [np.asarray(row, dtype=np.uint32) for row in rows]


def _utf8(piece: str) -> bytes:
    try:
        return piece.encode()
    except UnicodeEncodeError:
        return mend(piece).encode()


def _has_new_letter(data: bytes) -> bool:
    if data.isascii():
        return False
    suspicious = any(each in data for each in _SHORT_BEGINNINGS) or (
        b"\xf0" in data and any(each in data for each in _LONG_BEGINNINGS)
    )
    return suspicious and _NEW_LETTER.search(data.decode()) is not None
