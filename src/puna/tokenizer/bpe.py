"""The tokenizer: byte-level BPE over ranks, with Llama 3's split pattern and special tokens.

Encoding: the text is cut (`split.py`), each pre-token becomes UTF-8 bytes, and adjacent tokens are merged lowest rank
first; a pre-token that is itself a token is taken whole. Every text can be encoded, since all 256 bytes are tokens, and
decoding gives it back exactly. Encoding never makes a special token: `"<|eot_id|>"` in a user's text is ten ordinary
characters. Special ids are placed by code that means them (`chat_format.py`, the shard writer).

Given the official `tokenizer.model` of Llama 3 the ids are the official ones, including its cuts of very long runs.

Files: `tokenizer.model` (ranks), `tokenizer.json` and `tokenizer_config.json` (Hugging Face).

Source: Sennrich et al. 2016 (BPE), Radford et al. 2019 §2.2 (bytes), Llama 3 (arXiv:2407.21783) §3.2.
"""

import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from puna.core.errors import MissingError, UsageError
from puna.tokenizer.engines import Engine, EngineName, Ids, open_engine
from puna.tokenizer.huggingface import read_tokenizer_json, write_folder
from puna.tokenizer.ranks import Ranks, check_ranks, format_ranks, is_ranks_file, read_ranks, write_ranks
from puna.tokenizer.specials import Layout, Specials
from puna.tokenizer.split import PATTERN, official_pieces
from puna.tokenizer.stream import StreamDecoder

RANKS_FILE = "tokenizer.model"
JSON_FILE = "tokenizer.json"

ShowSpecials = Literal["show", "skip"]


class Tokenizer:
    """Text to ids and back; immutable, picklable, usable from several threads.

    Args:
        ranks: Bytes -> rank, 0 to n-1, with all 256 single bytes.
        specials: The special tokens after them; Llama 3.1's names when None.
        engine: Which compiled encoder to use; None takes the fastest that is installed.

    Raises:
        CorruptError: The ranks have a hole or lack a byte.
        UsageError: The specials do not follow the ranks.
    """

    def __init__(self, ranks: Ranks, specials: Specials | None = None, *, engine: EngineName | None = None) -> None:
        check_ranks(ranks, where="the vocabulary")
        self.ranks = ranks
        self.specials = specials or Specials.of(len(ranks))
        if self.specials.first_id != len(ranks):
            raise UsageError(
                f"special ids begin at {self.specials.first_id}, after {len(ranks)} ranks they must follow"
            )
        self._engine_name: EngineName | None = engine
        by_id = sorted(ranks, key=ranks.__getitem__)
        self._bytes: list[bytes] = [*by_id, *(name.encode() for name in self.specials.names)]

    # --- files

    @classmethod
    def load(cls, path: Path | str, *, layout: Layout = "llama3.1") -> "Tokenizer":
        """Load a tokenizer folder, a `tokenizer.json`, or a ranks file such as Llama 3's `tokenizer.model`.

        Args:
            path: Folder (its `tokenizer.json` is taken, else its `tokenizer.model`) or file.
            layout: Names of the special tokens for a ranks file, which has none. The ids are the same.

        Raises:
            MissingError: There is no tokenizer at that path.
            CorruptError: The file is damaged.
            UsageError: It is a tokenizer of another kind.
        """
        path = Path(path)
        file = path
        if path.is_dir():
            present = [path / name for name in (JSON_FILE, RANKS_FILE) if (path / name).is_file()]
            if not present:
                raise MissingError(f"{path} holds neither {JSON_FILE} nor {RANKS_FILE}: it is not a tokenizer folder")
            file = present[0]
        if file.suffix == ".json":
            return cls(*read_tokenizer_json(file))
        if file.is_file() and file.suffix == ".model" and not is_ranks_file(file):
            raise UsageError(
                f"{file} is not a tiktoken ranks file (a SentencePiece model, perhaps). "
                "Such a tokenizer can be compared with (`puna tokenize report`), not trained with."
            )
        ranks = read_ranks(file)
        return cls(ranks, Specials.of(len(ranks), layout=layout))

    def save(self, folder: Path | str) -> None:
        """Write `tokenizer.json`, `tokenizer_config.json` and `tokenizer.model`; the caller seals the folder."""
        folder = Path(folder)
        write_folder(folder, self.ranks, self.specials)
        write_ranks(folder / RANKS_FILE, self.ranks)

    @property
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of all that decides ids and their meaning: ranks, special names, split pattern."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(format_ranks(self.ranks))
        digest.update("\0".join([PATTERN, *self.specials.names]).encode())
        return digest.hexdigest()

    @property
    def vocab_size(self) -> int:
        """Number of ids: ranks and 256 specials."""
        return len(self._bytes)

    # --- text to ids

    @cached_property
    def engine(self) -> Engine:
        """The compiled encoder, built at first use (about two seconds for 128,000 ranks)."""
        return open_engine(self.ranks, name=self._engine_name)

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text; never a special id, no begin-of-text in front."""
        return self.encode_array(text).tolist()

    def encode_array(self, text: str) -> Ids:
        """Ids of ordinary text as uint32 `[T]`."""
        pieces = official_pieces(text)
        if len(pieces) == 1:
            return self.engine.encode(text)
        return np.concatenate([self.engine.encode(piece) for piece in pieces])

    def encode_batch(self, texts: Iterable[str], *, threads: int = 1) -> list[Ids]:
        """Ids of many texts.

        Args:
            texts: Ordinary texts.
            threads: 1 works in this thread; more uses the engine's pool, which for gigatoken has one thread a
                core. In a forked worker process use 1: a pool does not survive a fork.

        Returns:
            One uint32 array `[T]` a text, in order.
        """
        assert threads >= 1, f"threads is {threads}"
        split = [official_pieces(text) for text in texts]
        ids = iter(self.engine.encode_many([piece for pieces in split for piece in pieces], threads=threads))
        return [np.concatenate([next(ids) for _ in pieces]) if len(pieces) > 1 else next(ids) for pieces in split]

    # --- ids to text

    def token_bytes(self, token_id: int) -> bytes:
        """Bytes of one id; a special token's are its name.

        Raises:
            UsageError: The id is outside the vocabulary.
        """
        if not 0 <= token_id < len(self._bytes):
            raise UsageError(
                f"token id {token_id} is outside this vocabulary of {len(self._bytes)} (0 to {len(self._bytes) - 1})"
            )
        return self._bytes[token_id]

    def decode_bytes(self, ids: Sequence[int] | Ids, *, specials: ShowSpecials = "show") -> bytes:
        """Bytes of ids, exactly.

        Args:
            ids: Any ids of the vocabulary.
            specials: `"show"` spells special tokens by name, `"skip"` leaves them out.

        Raises:
            UsageError: An id is outside the vocabulary.
        """
        plain = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
        if not plain:
            return b""
        for extreme in (min(plain), max(plain)):
            self.token_bytes(extreme)
        if specials == "skip":
            plain = [i for i in plain if i < self.specials.first_id]
        return b"".join(map(self._bytes.__getitem__, plain))

    def decode(self, ids: Sequence[int] | Ids, *, specials: ShowSpecials = "show") -> str:
        """Text of ids; bytes that are no UTF-8 (a cut character) become U+FFFD.

        Args:
            ids: Any ids of the vocabulary.
            specials: `"show"` spells special tokens by name, `"skip"` leaves them out.
        """
        return self.decode_bytes(ids, specials=specials).decode("utf-8", errors="replace")

    def stream_decoder(self, *, specials: ShowSpecials = "skip") -> StreamDecoder:
        """A decoder for ids that arrive one by one.

        Args:
            specials: As in `decode`, except that a stream skips them unless told otherwise.
        """

        def shown(token_id: int) -> bytes:
            found = self.token_bytes(token_id)
            return b"" if specials == "skip" and token_id in self.specials else found

        return StreamDecoder(shown)

    # --- plumbing

    def __reduce__(self) -> tuple[Any, tuple[str, Ranks, Specials]]:
        return _unpickle, (self.fingerprint, self.ranks, self.specials)

    def __repr__(self) -> str:
        return f"Tokenizer({len(self.ranks):,} ranks + {len(self.specials.names)} specials, {self.fingerprint[:12]})"


_unpickled: dict[str, Tokenizer] = {}


def _unpickle(fingerprint: str, ranks: Ranks, specials: Specials) -> Tokenizer:
    """The tokenizer of a pickle, the same object as before if it is the last one that came.

    A pool pickles it with every task, and its engine takes a second to build.
    """
    if fingerprint not in _unpickled:
        _unpickled.clear()
        _unpickled[fingerprint] = Tokenizer(ranks, specials)
    return _unpickled[fingerprint]
