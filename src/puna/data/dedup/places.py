"""Documents as numbers: 0, 1, 2 ... over the indexes of earlier data first, then over the parts of the corpus in order.

Dedup works on these numbers; features are found through them, and ids only where something is told. What earlier data
holds has the lower numbers, so that it always comes first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from puna.data.documents import read_arrow
from puna.data.steps.step import Part


@dataclass(frozen=True)
class Places:
    """Where the documents with certain numbers are.

    Attributes:
        features: Arrow file of each part.
        index: Arrow file of each part.
        alive: NumPy file of a mask for each part.
        names: Names of the parts.
        starts: `[parts + 1]` number of each part's first document.
        n_earlier: How many of the parts are earlier data.
        scratch: Folder for temporary files.
    """

    features: tuple[Path, ...]
    index: tuple[Path, ...]
    alive: tuple[Path, ...]
    names: tuple[str, ...]
    starts: NDArray[np.int64]
    n_earlier: int
    scratch: Path

    @classmethod
    def of(cls, parts: Sequence[Part], scratch: Path, before: Sequence[tuple[Path, Path]] = ()) -> "Places":
        """Number the documents.

        Args:
            parts: The corpus.
            scratch: Folder for temporary files.
            before: Feature and index file of each piece of earlier data.
        """
        scratch.mkdir(parents=True, exist_ok=True)
        counts = [read_arrow(index).num_rows for _, index in before] + [len(part.alive) for part in parts]
        masks = []
        alive = [np.ones(count, dtype=bool) for count in counts[: len(before)]] + [part.alive for part in parts]
        for number, mask in enumerate(alive):
            masks.append(scratch / f"alive-{number:05d}.npy")
            np.save(masks[-1], mask)
        return cls(
            (*(features for features, _ in before), *(part.features for part in parts)),
            (*(index for _, index in before), *(part.index for part in parts)),
            tuple(masks),
            (*("earlier" for _ in before), *(part.name for part in parts)),
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            len(before),
            scratch,
        )

    @property
    def n_documents(self) -> int:
        """All documents, earlier ones too."""
        return int(self.starts[-1])

    @property
    def first_new(self) -> int:
        """Number of the first document that is not earlier data."""
        return int(self.starts[self.n_earlier])

    def part_of(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """The part of each document."""
        return np.searchsorted(self.starts, numbers, side="right") - 1

    def mask(self, part: int) -> NDArray[np.bool_]:
        """Who is alive in a part."""
        return np.load(self.alive[part])

    def column(self, name: str, numbers: NDArray[np.int64]) -> list[object]:
        """A column of the index for certain documents, read part by part."""
        values: list[object] = [None] * len(numbers)
        parts = self.part_of(numbers)
        for part in np.unique(parts).tolist():
            here = np.flatnonzero(parts == part)
            rows = pa.array(numbers[here] - self.starts[part])
            for at, value in zip(
                here.tolist(), table(self.index[part]).column(name).take(rows).to_pylist(), strict=True
            ):
                values[at] = value
        return values


@lru_cache(maxsize=64)
def table(path: Path) -> pa.Table:
    """A mapped Arrow file; the last ones stay open."""
    return read_arrow(path)
