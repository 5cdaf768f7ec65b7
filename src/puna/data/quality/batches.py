"""Labelled texts as packed batches for the one training loop: the class is the next token, at every place.

A small transformer becomes a classifier without a new head, a new loss or a new loop: two reserved special tokens stand
for the classes, and the target of every token of a text is its class. So each place learns to say what the text so far
is, and a text's log-odds are the mean over the later places of `logit(positive) - logit(negative)`. That is pooling,
and as much supervision as language modelling has.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.core.batch import IGNORE, PackedBatch
from puna.tokenizer.bpe import Tokenizer

_NEGATIVE, _POSITIVE = 11, 12  # offsets among the special tokens: reserved in every release


def class_tokens(tokenizer: Tokenizer) -> tuple[int, int]:
    """Ids that stand for negative and positive."""
    return tokenizer.specials.first_id + _NEGATIVE, tokenizer.specials.first_id + _POSITIVE


def encode(texts: Sequence[str], tokenizer: Tokenizer, *, max_tokens: int) -> list[NDArray[np.int64]]:
    """Begin-of-text and the first tokens of each text."""
    characters = 16 * max_tokens  # no text needs more of them for so many tokens, or hardly any
    encoded = tokenizer.encode_batch([text[:characters] for text in texts])
    bos = np.array([tokenizer.specials.bos], dtype=np.int64)
    return [np.concatenate([bos, np.asarray(ids[: max_tokens - 1], dtype=np.int64)]) for ids in encoded]


class LabelBatches:
    """Endless batches, shuffled anew each epoch; resumes from two numbers.

    Args:
        texts: What to learn from.
        labels: Whether each is positive.
        tokenizer: The model's.
        rows: Rows of a batch.
        sequence_length: Tokens of a row; longer texts are cut.
        seed: Of the order.
    """

    def __init__(
        self,
        texts: Sequence[str],
        labels: NDArray[np.bool_],
        tokenizer: Tokenizer,
        *,
        rows: int,
        sequence_length: int,
        seed: int,
    ) -> None:
        self._pieces = encode(texts, tokenizer, max_tokens=sequence_length)
        self._targets = np.where(labels, *reversed(class_tokens(tokenizer)))
        self._pad = tokenizer.specials.pad
        self._rows, self._length, self._seed = rows, sequence_length, seed
        self._epoch = self._place = 0

    @property
    def n_tokens(self) -> int:
        """Tokens of an epoch."""
        return sum(map(len, self._pieces))

    def next_batch(self) -> PackedBatch:
        """The next rows: whole texts one after the other, the room at a row's end without targets."""
        tokens = np.full((self._rows, self._length), self._pad, dtype=np.int64)
        targets = np.full((self._rows, self._length), IGNORE, dtype=np.int64)
        positions = np.zeros((self._rows, self._length), dtype=np.int32)
        lengths: list[int] = []
        for row in range(self._rows):
            used = 0
            while True:
                index = self._next()
                piece = self._pieces[index]
                if used + len(piece) > self._length:
                    break
                here = slice(used, used + len(piece))
                tokens[row, here], targets[row, here] = piece, self._targets[index]
                positions[row, here] = np.arange(len(piece))
                lengths.append(len(piece))
                used += len(piece)
                self._place += 1
            if used < self._length:
                lengths.append(self._length - used)
                positions[row, used:] = np.arange(self._length - used)
        return PackedBatch(
            tokens, targets, positions, np.array(lengths, dtype=np.int64), int(np.count_nonzero(targets != IGNORE))
        )

    def _next(self) -> int:
        if self._place == len(self._pieces):
            self._epoch, self._place = self._epoch + 1, 0
        rng = np.random.default_rng([self._seed, self._epoch])
        if getattr(self, "_ordered", None) != self._epoch:
            self._order, self._ordered = rng.permutation(len(self._pieces)), self._epoch
        return int(self._order[self._place])

    def state(self) -> dict[str, Any]:
        """Where it stands."""
        return {"epoch": self._epoch, "place": self._place}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on there."""
        self._epoch, self._place = int(state["epoch"]), int(state["place"])
