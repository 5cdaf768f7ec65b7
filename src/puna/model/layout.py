"""Where documents lie in a packed batch: built once per batch on the host, used by every layer.

A batch is one flat run of T tokens; `lengths` cuts it into documents (pieces of documents, to be exact), and no token
may see another document. From the lengths follow the positions, and what each kind of attention kernel wants to know:

- CPU: `blocks`, the list of score rectangles that are computed at all. A long document is cut into bands of query
  rows, each against the keys up to its own end; neighbouring short documents share one small rectangle with a mask.
  So masked scores are computed only inside squares of at most `BLOCK` tokens.
- CUDA: `cu_seqlens`, the cumulative lengths that variable-length kernels take.

A piece may continue another one, its stem: then it sees the stem's tokens too, and its positions go on from there.
Several pieces behind one stem are the branches of a tree: a prompt that is computed once with all its answers behind
it, none of which sees another. To the blocks a tree is only a few more rectangles.

T packed tokens, R rows (queries) of a block, C columns (keys) of a block.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """An array as a tensor; on its way to a GPU without waiting for it."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


BLOCK = 128  # rows of one block: smaller wastes less on masked scores, larger feeds the matrix product better


@dataclass(frozen=True)
class Block:
    """A rectangle of attention scores: the keys of a stem, then keys whose last `rows` are the query tokens themselves.

    Attributes:
        first_row: First query token.
        rows: Number of query tokens.
        first_key: First key token.
        columns: Number of key tokens, those of the stem included.
        mask: `[R, R]`, added to the scores of the last R keys: 0 where the query (row) sees the key (column), else
            -inf. All earlier keys are seen by all rows.
        stem: First token and number of tokens of the stem, when its keys do not adjoin `first_key`.
    """

    first_row: int
    rows: int
    first_key: int
    columns: int
    mask: Float[Tensor, "R R"]
    stem: tuple[int, int] = (0, 0)


class DocumentLayout:
    """The documents of one packed batch.

    Args:
        lengths: Tokens of each document (or piece of a tree) in order, each at least 1.
        stems: For each piece the number of the piece that it continues, or -1. The branches of a stem follow it
            directly. None: there are no trees.
        device: Where the model runs.
    """

    def __init__(
        self,
        lengths: Sequence[int] | NDArray[np.int64],
        *,
        stems: Sequence[int] | NDArray[np.int64] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.lengths = np.asarray(lengths, dtype=np.int64)
        assert self.lengths.ndim == 1 and self.lengths.size > 0, "a layout needs a list of document lengths"
        assert self.lengths.min() > 0, f"document lengths must be positive, got {self.lengths.min()}"
        self.ends = np.cumsum(self.lengths)
        self.n_tokens = int(self.ends[-1])
        self.device = torch.device(device)
        self.stems = np.full(len(self.lengths), -1) if stems is None else np.asarray(stems, dtype=np.int64)
        assert self.stems.shape == self.lengths.shape, f"{len(self.stems)} stems for {len(self.lengths)} pieces"
        self.has_trees = bool((self.stems >= 0).any())
        if self.has_trees:
            last = np.maximum.accumulate(np.where(self.stems < 0, np.arange(len(self.stems)), -1))
            assert ((self.stems < 0) | (self.stems == last)).all(), "a branch follows its stem or another branch of it"

    @classmethod
    def from_lengths(
        cls, lengths: Sequence[int] | NDArray[np.int64], device: torch.device | str = "cpu"
    ) -> "DocumentLayout":
        """The layout of documents of these lengths, in order."""
        return cls(lengths, device=device)

    @cached_property
    def uniform_length(self) -> int | None:
        """The common length when all documents have one (plain batches do), else None."""
        return int(self.lengths[0]) if (self.lengths == self.lengths[0]).all() and not self.has_trees else None

    @property
    def max_length(self) -> int:
        """Tokens of the longest document."""
        return int(self.lengths.max())

    @cached_property
    def positions(self) -> Int[Tensor, " T"]:
        """Position of each token in its document, int64; branches go on where their stem ends."""
        starts = np.repeat(self.ends - self.lengths - self.stem_lengths, self.lengths)
        return to_device(np.arange(self.n_tokens) - starts, self.device)

    @property
    def stem_lengths(self) -> NDArray[np.int64]:
        """`[pieces]` tokens of each piece's stem; 0 for a document."""
        return np.where(self.stems < 0, 0, self.lengths[self.stems])

    @cached_property
    def cu_seqlens(self) -> Int[Tensor, " ends"]:
        """0 and the cumulative lengths, int32."""
        return to_device(np.concatenate(([0], self.ends)).astype(np.int32), self.device)

    @cached_property
    def blocks(self) -> list[Block]:
        """The rectangles of scores to compute, in order, each token a row of exactly one."""
        blocks: list[Block] = []
        group = list[int]()  # pieces of short documents and trees that wait for company
        roots = np.flatnonzero(self.stems < 0).tolist()
        for root, next_root in itertools.pairwise([*roots, len(self.lengths)]):
            tree = list(range(root, next_root))
            if group and self._size(group) + self._size(tree) > BLOCK:
                blocks.append(self._square(group))
                group = []
            if self._size(tree) > BLOCK:
                blocks.extend(self._tree(tree))
            else:
                group += tree
        return [*blocks, self._square(group)] if group else blocks

    @property
    def scores(self) -> int:
        """Scores that a causal kernel cannot avoid: of each piece n (n + 1) / 2, and n times its stem."""
        n = self.lengths
        return int((n * (n + 1) // 2 + n * self.stem_lengths).sum())

    def _size(self, pieces: Sequence[int]) -> int:
        return int(self.lengths[pieces].sum())

    def _tree(self, pieces: Sequence[int]) -> Iterator[Block]:
        """A long document, or a tree that is larger than a block: the stem, then its branches by the block."""
        root, *branches = pieces
        yield from self._bands(root) if self.lengths[root] > BLOCK else [self._square([root])]
        group = list[int]()
        for branch in branches:
            if group and self._size(group) + self.lengths[branch] > BLOCK:
                yield self._square(group)
                group = []
            if self.lengths[branch] > BLOCK:
                yield from self._bands(branch)
            else:
                group.append(branch)
        if group:
            yield self._square(group)

    def _square(self, pieces: Sequence[int]) -> Block:
        """Short pieces side by side: one square, causal inside each document or tree, hidden between them."""
        lengths = torch.from_numpy(self.lengths[pieces])
        piece = torch.repeat_interleave(torch.tensor(pieces), lengths)
        stem = torch.repeat_interleave(torch.from_numpy(self.stems[pieces]), lengths)
        seen = (piece[:, None] == piece) | (stem[:, None] == piece)
        mask = causal_mask(len(piece)).masked_fill(~seen, -math.inf)
        end = int(self.ends[pieces[-1]])
        return self._block(end - len(piece), end, end - len(piece), mask, pieces[0])

    def _bands(self, piece: int) -> Iterator[Block]:
        """One long piece: bands of at most `BLOCK` rows, as even as possible, each against all keys so far."""
        length, end = int(self.lengths[piece]), int(self.ends[piece])
        n_bands = -(-length // BLOCK)
        edges = [end - length + length * i // n_bands for i in range(n_bands + 1)]
        for first, last in itertools.pairwise(edges):
            yield self._block(first, last, end - length, causal_mask(last - first), piece)

    def _block(self, first_row: int, end: int, first_key: int, mask: Tensor, piece: int) -> Block:
        """A block with the stem of its first piece; a stem that adjoins needs no place of its own."""
        rows, stem = end - first_row, int(self.stems[piece])
        if stem < 0:
            return Block(first_row, rows, first_key, end - first_key, mask)
        start, length = int(self.ends[stem] - self.lengths[stem]), int(self.lengths[stem])
        if start + length == first_key:
            return Block(first_row, rows, start, end - start, mask)
        return Block(first_row, rows, first_key, length + end - first_key, mask, (start, length))


@lru_cache(maxsize=BLOCK)
def causal_mask(n: int) -> Float[Tensor, "n n"]:
    """0 on and below the diagonal, -inf above it."""
    return torch.full((n, n), -math.inf).triu(1)
