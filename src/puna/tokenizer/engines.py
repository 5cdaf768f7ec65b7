"""The two engines that turn one piece of ordinary text into ids: gigatoken, and tiktoken where that is not installed.

Both are compiled, take the same ranks and give the same ids; the tests compare them over every Unicode character.
Gigatoken recognises Llama 3's pattern and splits with vector instructions instead of a regex engine, remembers the ids
of pre-tokens it has met, and is 10 to 20 times faster on one thread. It is given no special tokens, so no text can make
one. Tiktoken is the reference.

Neither takes half of a surrogate pair; like tiktoken's own front door, `mend` replaces it by U+FFFD.
"""

import json
from collections.abc import Mapping, Sequence
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
        assert gigatoken is not None, "gigatoken is installed"
        self._backend = gigatoken.Tokenizer.from_json(json.dumps(to_json(ranks, None), ensure_ascii=False))

    def encode(self, piece: str) -> Ids:
        try:
            return self._backend.encode(piece)
        except TypeError:
            return self._backend.encode(mend(piece))

    def encode_many(self, pieces: Sequence[str], *, threads: int) -> list[Ids]:
        if threads == 1:
            return [self.encode(piece) for piece in pieces]
        try:
            rows = self._backend.encode_batch(list(pieces), parallel=True)
        except TypeError:
            rows = self._backend.encode_batch([mend(piece) for piece in pieces], parallel=True)
        layout: Any = rows.layout  # awkward's ListOffsetArray
        offsets, ids = layout.offsets.data, layout.content.data
        return [np.asarray(ids[a:b]) for a, b in pairwise(offsets)]


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
