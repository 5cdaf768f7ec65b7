"""Context parallelism with documents: one process's queries against the keys of the whole sequence.

A process holds two chunks of the tokens (`Split.own`). The causal mask inside documents then becomes a list of
*pieces*: a run of its queries that lie in one document, against the keys from the document's beginning to the run's
end. So nothing is masked but the last square of each piece, and the work of attention is dealt out as evenly as the
documents allow.

Keys and values are gathered whole before attention and their gradients summed back after it. That is little to send
with grouped queries (K of N + 2 K heads), and any mask works, unlike with a ring.

Source: The Llama 3 Herd of Models (2407.21783), section 3.3.2, "Context parallelism for long sequences".

T tokens of the micro-batch, t = T/cp own tokens, K kv heads, H head dim, C tokens of a chunk.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

from puna.model.layout import BLOCK, Block, DocumentLayout, causal_mask, to_device
from puna.model.split import Split, gather


@dataclass(frozen=True)
class Piece:
    """A run of own queries in one document.

    Attributes:
        first_row: First query among the own tokens.
        rows: Number of queries.
        first_key: First key among all tokens.
        columns: Number of keys; the last `rows` of them are the queries' own.
    """

    first_row: int
    rows: int
    first_key: int
    columns: int


class ContextLayout:
    """The documents of a micro-batch as one process of a context-parallel group sees them.

    Args:
        whole: The documents of all tokens.
        split: The process.
    """

    uniform_length = None

    def __init__(self, whole: DocumentLayout, split: Split) -> None:
        self._whole, self._split = whole, split
        self.device = whole.device
        self.n_tokens = whole.n_tokens // split.cp
        assert whole.n_tokens % (2 * split.cp) == 0, f"{whole.n_tokens} tokens cannot be cut into 2 x {split.cp} chunks"

    @property
    def positions(self) -> Tensor:
        """Position of each own token in its document."""
        return self._split.own(self._whole.positions)

    @cached_property
    def pieces(self) -> list[Piece]:
        """Runs of own queries, in order."""
        cp, rank, ends = self._split.cp, self._split.cp_rank, self._whole.ends
        chunk, found, row = self._whole.n_tokens // (2 * cp), [], 0
        for number in (rank, 2 * cp - 1 - rank):
            start, stop = number * chunk, (number + 1) * chunk
            while start < stop:
                document = int(np.searchsorted(ends, start, side="right"))
                first_key = int(ends[document] - self._whole.lengths[document])
                end = min(stop, int(ends[document]))
                found.append(Piece(row, end - start, first_key, end - first_key))
                row += end - start
                start = end
        return found

    @cached_property
    def blocks(self) -> list[Block]:
        """The rectangles of scores for the CPU kernel: bands of at most `BLOCK` queries."""
        blocks = []
        for piece in self.pieces:
            for first in range(0, piece.rows, BLOCK):
                rows = min(BLOCK, piece.rows - first)
                columns = piece.columns - piece.rows + first + rows
                blocks.append(Block(piece.first_row + first, rows, piece.first_key, columns, causal_mask(rows)))
        return blocks

    @cached_property
    def query_ends(self) -> Tensor:
        """0 and the cumulative queries of the pieces, int32."""
        return self._cumulative([piece.rows for piece in self.pieces])

    @cached_property
    def key_ends(self) -> Tensor:
        """0 and the cumulative keys of the pieces, int32."""
        return self._cumulative([piece.columns for piece in self.pieces])

    @cached_property
    def key_index(self) -> Tensor:
        """The keys of all pieces, piece after piece; a key occurs in each piece that sees it."""
        runs = [np.arange(p.first_key, p.first_key + p.columns) for p in self.pieces]
        return to_device(np.concatenate(runs), self.device)

    @property
    def longest(self) -> tuple[int, int]:
        """Most queries and most keys of a piece."""
        return max(p.rows for p in self.pieces), max(p.columns for p in self.pieces)

    def gather_keys(self, kv_tX: Tensor) -> Tensor:
        """All keys and values in the order of the sequence, from each process's own: `[t, ...]` to `[T, ...]`."""
        chunks = gather(kv_tX, self._split.cp_group).unflatten(0, (2 * self._split.cp, -1))
        return chunks[self._order].flatten(0, 1)

    @cached_property
    def _order(self) -> Tensor:
        """Where each chunk of the sequence lies among those gathered."""
        cp = self._split.cp
        order = [2 * c if c < cp else 2 * (2 * cp - 1 - c) + 1 for c in range(2 * cp)]
        return to_device(np.array(order), self.device)

    def _cumulative(self, counts: list[int]) -> Tensor:
        return to_device(np.concatenate(([0], np.cumsum(counts))).astype(np.int32), self.device)
