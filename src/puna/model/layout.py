"""Where documents lie in a packed batch: built once per batch on the host, used by every layer.

A batch is one flat run of T tokens; `lengths` cuts it into documents (pieces of documents, to be exact), and no token
may see another document. From the lengths follow the positions, and what each kind of attention kernel wants to know:

- CPU: `blocks`, the list of score rectangles that are computed at all. A long document is cut into bands of query
  rows, each against the keys up to its own end; neighbouring short documents share one small rectangle with a mask.
  So masked scores are computed only inside squares of at most `BLOCK` tokens.
- CUDA: `cu_seqlens`, the cumulative lengths that variable-length kernels take.

T packed tokens, R rows (queries) of a block, C columns (keys) of a block.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

BLOCK = 128  # rows of one block: smaller wastes less on masked scores, larger feeds the matrix product better


@dataclass(frozen=True)
class Block:
    """A rectangle of attention scores; the last `rows` of its keys are those of the query tokens themselves.

    Attributes:
        first_row: First query token.
        rows: Number of query tokens.
        first_key: First key token.
        columns: Number of key tokens.
        mask: `[R, R]`, added to the scores of the last R keys: 0 where the query (row) sees the key (column), else
            -inf. All earlier keys are seen by all rows.
    """

    first_row: int
    rows: int
    first_key: int
    columns: int
    mask: Float[Tensor, "R R"]


class DocumentLayout:
    """The documents of one packed batch.

    Args:
        lengths: Tokens of each document in order, each at least 1.
        device: Where the model runs.
    """

    def __init__(self, lengths: Sequence[int] | NDArray[np.int64], *, device: torch.device | str = "cpu") -> None:
        self.lengths = np.asarray(lengths, dtype=np.int64)
        assert self.lengths.ndim == 1 and self.lengths.size > 0, "a layout needs a list of document lengths"
        assert self.lengths.min() > 0, f"document lengths must be positive, got {self.lengths.min()}"
        self.ends = np.cumsum(self.lengths)
        self.n_tokens = int(self.ends[-1])
        self.device = torch.device(device)

    @classmethod
    def from_lengths(
        cls, lengths: Sequence[int] | NDArray[np.int64], device: torch.device | str = "cpu"
    ) -> "DocumentLayout":
        """The layout of documents of these lengths, in order."""
        return cls(lengths, device=device)

    @cached_property
    def uniform_length(self) -> int | None:
        """The common length when all documents have one (plain batches do), else None."""
        return int(self.lengths[0]) if (self.lengths == self.lengths[0]).all() else None

    @property
    def max_length(self) -> int:
        """Tokens of the longest document."""
        return int(self.lengths.max())

    @cached_property
    def positions(self) -> Int[Tensor, " T"]:
        """Position of each token in its document, int64."""
        starts = np.repeat(self.ends - self.lengths, self.lengths)
        return torch.from_numpy(np.arange(self.n_tokens) - starts).to(self.device)

    @cached_property
    def cu_seqlens(self) -> Int[Tensor, " ends"]:
        """0 and the cumulative lengths, int32."""
        return torch.from_numpy(np.concatenate(([0], self.ends)).astype(np.int32)).to(self.device)

    @cached_property
    def blocks(self) -> list[Block]:
        """The rectangles of scores to compute, in order, each token a row of exactly one."""
        blocks: list[Block] = []
        start, group = 0, list[int]()  # first token and lengths of the short documents that wait for company
        for length in self.lengths.tolist():
            if group and sum(group) + length > BLOCK:
                blocks.append(_square(start, group))
                start, group = start + sum(group), []
            if length > BLOCK:
                blocks.extend(_bands(start, length))
                start += length
            else:
                group.append(length)
        return [*blocks, _square(start, group)] if group else blocks

    @property
    def scores(self) -> int:
        """Scores that a causal kernel cannot avoid: the sum of n (n + 1) / 2 over the documents."""
        return int((self.lengths * (self.lengths + 1) // 2).sum())


def _square(start: int, group: list[int]) -> Block:
    """Short documents side by side: one square, causal inside each document, hidden between them."""
    document = torch.repeat_interleave(torch.arange(len(group)), torch.tensor(group))
    mask = causal_mask(len(document)).masked_fill(document[:, None] != document, -math.inf)
    return Block(start, len(document), start, len(document), mask)


def _bands(start: int, length: int) -> list[Block]:
    """One long document: bands of at most `BLOCK` rows, as even as possible, each against all keys so far."""
    n_bands = -(-length // BLOCK)
    edges = [start + length * i // n_bands for i in range(n_bands + 1)]
    return [
        Block(first, end - first, start, end - start, causal_mask(end - first))
        for first, end in itertools.pairwise(edges)
    ]


@lru_cache(maxsize=BLOCK)
def causal_mask(n: int) -> Float[Tensor, "n n"]:
    """0 on and below the diagonal, -inf above it."""
    return torch.full((n, n), -math.inf).triu(1)
