"""Rows that hold trees: a prompt once, and behind it all its answers, none of which sees another.

A preference pair shares its prompt, as do the K answers of a ranking and the G samples of a group. Computing the prompt
once is exact, since no token sees what comes after it, and saves (K - 1) P of K (P + R) tokens. On one condition: the
token that predicts an answer's first token must belong to the answer's own branch, because its target differs from
branch to branch. So where targets are asked for, the stem ends one token early and each branch begins with the prompt's
last token.

A tree without a stem is what it was before: each answer with its own copy of the prompt.

Source: The Llama 3 Herd of Models (2407.21783), section 4.1.2 (prompt and shuffled responses in one row).
Shapes: B rows, S tokens of a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PADDING, STEM = -1, -2
"""What a piece is that is no branch."""


@dataclass(frozen=True, slots=True)
class Tree:
    """Token ids of a stem (possibly none) and of what stands behind it."""

    stem: NDArray[np.int64]
    branches: tuple[NDArray[np.int64], ...]

    @property
    def n_tokens(self) -> int:
        """Tokens of the stem and of all branches."""
        return len(self.stem) + sum(map(len, self.branches))


@dataclass(frozen=True, slots=True)
class Forest:
    """B rows of S tokens that hold whole trees.

    Attributes:
        tokens: `[B, S]` int64.
        positions: `[B, S]` int32; branches go on counting where their stem ends.
        lengths: `[pieces]` int64 in row-major order; they sum to B * S, and no tree crosses a row.
        stems: `[pieces]` int64, the piece that each one continues, or -1.
        owners: `[pieces]` int64, number of the branch over the whole batch, or `STEM` or `PADDING`.
        starts: `[branches]` int64, place of each branch's first token in the flat batch.
        sizes: `[branches]` int64, tokens of each branch.
    """

    tokens: NDArray[np.int64]
    positions: NDArray[np.int32]
    lengths: NDArray[np.int64]
    stems: NDArray[np.int64]
    owners: NDArray[np.int64]
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]

    @property
    def lasts(self) -> NDArray[np.int64]:
        """`[branches]` place of each branch's last token in the flat batch."""
        return self.starts + self.sizes - 1


def plant(rows: Sequence[Sequence[Tree]], *, sequence_length: int, pad: int) -> Forest:
    """Lays trees out in rows.

    Args:
        rows: The trees of each row; they must fit.
        sequence_length: Tokens of a row.
        pad: Token id of the padding, which is a piece of its own.

    Returns:
        The batch.
    """
    size = len(rows) * sequence_length
    tokens, positions = np.full(size, pad, dtype=np.int64), np.empty(size, dtype=np.int32)
    lengths, stems, owners, starts, sizes = list[int](), list[int](), list[int](), list[int](), list[int]()
    filled = 0

    def put(ids: NDArray[np.int64], stem: int, first: int, owner: int) -> None:
        nonlocal filled
        place = slice(filled, filled + len(ids))
        tokens[place], positions[place] = ids, np.arange(first, first + len(ids))
        lengths.append(len(ids))
        stems.append(stem)
        owners.append(owner)
        filled += len(ids)

    for number, row in enumerate(rows):
        n_tokens, end = sum(tree.n_tokens for tree in row), (number + 1) * sequence_length
        assert n_tokens <= sequence_length, f"row {number} has {n_tokens} tokens, it holds {sequence_length}"
        for tree in row:
            stem = -1
            if len(tree.stem):
                stem = len(lengths)
                put(tree.stem, -1, 0, STEM)
            for branch in tree.branches:
                starts.append(filled)
                put(branch, stem, len(tree.stem), len(sizes))
                sizes.append(len(branch))
        if filled < end:
            put(np.full(end - filled, pad), -1, 0, PADDING)
    shape = len(rows), sequence_length
    numbers = (np.array(x, dtype=np.int64) for x in (lengths, stems, owners, starts, sizes))
    return Forest(tokens.reshape(shape), positions.reshape(shape), *numbers)
