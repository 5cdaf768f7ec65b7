"""The one batch type: rows of packed document pieces, in NumPy.

`data` fills it for pretraining and `post` for dialogs; `train` turns it into tensors. A row holds whole pieces of
documents back to back. `lengths` says where they end, and that is all that attention needs: a piece sees itself only.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

IGNORE = -100  # the target that no loss counts (the field's convention, from PyTorch's cross_entropy)


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """B rows of S tokens.

    Attributes:
        tokens: `[B, S]` int64.
        targets: `[B, S]` int64, the next token of the same piece, or `IGNORE`.
        positions: `[B, S]` int32, counted from 0 in each piece.
        lengths: `[pieces]` int64, piece lengths in row-major order; they sum to B * S, and no piece crosses a row.
        n_targets: How many targets count.
        sources: Tokens of this batch by source name, for the metrics.
        weights: `[B, S]` float32, how much each target counts; None: all alike.
    """

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]
    positions: NDArray[np.int32]
    lengths: NDArray[np.int64]
    n_targets: int
    sources: dict[str, int] = field(default_factory=dict)
    weights: NDArray[np.float32] | None = None

    def rows(self, start: int, stop: int) -> "PackedBatch":
        """The batch of rows `start:stop` alone (a micro-batch, or one rank's part)."""
        width = self.tokens.shape[1]
        ends = np.cumsum(self.lengths)
        first, last = np.searchsorted(ends, [start * width, stop * width], side="right")
        if start == 0:
            first = 0
        targets = self.targets[start:stop]
        return PackedBatch(
            tokens=self.tokens[start:stop],
            targets=targets,
            positions=self.positions[start:stop],
            lengths=self.lengths[first:last],
            n_targets=int(np.count_nonzero(targets != IGNORE)),
            sources=self.sources,
            weights=None if self.weights is None else self.weights[start:stop],
        )
