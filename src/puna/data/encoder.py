"""What this room needs of a tokenizer: a Protocol, so that tests and shards of any tokenizer fit."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Encoder(Protocol):
    """Text to token ids."""

    @property
    def fingerprint(self) -> str:
        """Content hash."""
        ...

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        ...

    @property
    def specials(self) -> Any:
        """Ids by name: `bos` and `end_of_text` are used."""
        ...

    def encode_batch(self, texts: Sequence[str], *, threads: int = 1) -> list[NDArray[np.uint32]]:
        """Token ids of each text, without special tokens."""
        ...
