"""The keys and values of earlier tokens, kept per row, so that a new token costs one forward of one token.

A cache holds B independent rows of up to C tokens; each row has its own length. One step is prepared with `extend`,
which says how many new tokens which rows get, and handed to the model together with those tokens, flat and in the same
order. So prefilling ragged prompts (many tokens a row), continuing a conversation and decoding (one token a row) are
one thing:

    step = cache.extend([5, 9, 2])                      # prefill three prompts packed into 16 tokens
    logits_BV = model.next_logits(tokens_T, cache=step)
    step = cache.extend([1, 1, 1])                      # decode one token a row
    logits_BV = model.next_logits(tokens_B, cache=step)

It does not share prefixes between rows and has no pages.

L layers, B rows, K kv heads, C capacity in tokens, H head dim, T new tokens of all rows.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from puna.model.config import ModelConfig
from puna.model.layout import DocumentLayout


class KVCache:
    """Room for B rows of up to `max_len` tokens.

    Args:
        config: Gives layers, kv heads and head width.
        batch: Rows (B).
        max_len: Tokens that each row can hold (C).
        dtype: Of the activations.
        device: Where the model runs.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        batch: int,
        max_len: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (config.n_layers, batch, config.n_kv_heads, max_len, config.head_dim)
        self.keys: Float[Tensor, "L B K C H"] = torch.zeros(shape, dtype=dtype, device=device)
        self.values: Float[Tensor, "L B K C H"] = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths: NDArray[np.int64] = np.zeros(batch, dtype=np.int64)
        self.max_len = max_len

    @property
    def batch(self) -> int:
        """Rows."""
        return len(self.lengths)

    def extend(self, counts: Sequence[int] | NDArray[np.int64], rows: Sequence[int] | None = None) -> "CacheStep":
        """Make room for new tokens and say where they go. Their keys are written when the model runs with the step.

        Args:
            counts: New tokens of each row, at least 1.
            rows: Which rows, all different; by default the first `len(counts)`.
        """
        counts = np.asarray(counts, dtype=np.int64)
        chosen = np.arange(len(counts)) if rows is None else np.asarray(rows, dtype=np.int64)
        assert len(chosen) == len(counts) == len(set(chosen.tolist())), "one count for each of a set of rows"
        assert counts.min() > 0, f"every row of a step gets at least one token, got {counts.min()}"
        longest = int((self.lengths[chosen] + counts).max())
        assert longest <= self.max_len, f"{longest} tokens do not fit into a cache of {self.max_len} per row"
        starts = self.lengths[chosen]
        self.lengths[chosen] += counts
        return CacheStep(self, chosen, starts, counts)

    def truncate(self, row: int, length: int = 0) -> None:
        """Forget all but the first `length` tokens of a row; 0 frees it for another request."""
        assert 0 <= length <= self.lengths[row], f"row {row} holds {self.lengths[row]} tokens, cannot keep {length}"
        self.lengths[row] = length

    def move(self, source: int, target: int) -> None:
        """Copy a row over another, so that the rows in use stay side by side (decoding then copies nothing)."""
        length = int(self.lengths[source])
        for store in (self.keys, self.values):
            store[:, target, :, :length] = store[:, source, :, :length]
        self.lengths[target] = length


class CacheStep:
    """Where the new tokens of one forward go, and what they see. Made by `KVCache.extend`.

    Attributes:
        cache: The cache.
        rows: `[rows]` row of each run of new tokens.
        starts: `[rows]` tokens that the row held before.
        counts: `[rows]` new tokens of the row.
    """

    def __init__(
        self, cache: KVCache, rows: NDArray[np.int64], starts: NDArray[np.int64], counts: NDArray[np.int64]
    ) -> None:
        self.cache, self.rows, self.starts, self.counts = cache, rows, starts, counts
        self.is_decode = bool((counts == 1).all())
        self.is_prefill = not starts.any()
        self.device = cache.keys.device

    @cached_property
    def layout(self) -> DocumentLayout:
        """The new tokens of each row as documents."""
        return DocumentLayout(self.counts, device=self.device)

    @cached_property
    def positions(self) -> Int[Tensor, " T"]:
        """Position of each new token in its row."""
        starts = torch.from_numpy(np.repeat(self.starts, self.counts)).to(self.device)
        return self.layout.positions + starts

    @cached_property
    def last(self) -> Int[Tensor, " rows"]:
        """Index of each row's last new token among the T new tokens."""
        return torch.from_numpy(self.layout.ends - 1).to(self.device)

    @cached_property
    def _row_index(self) -> Int[Tensor, " T"]:
        return torch.from_numpy(np.repeat(self.rows, self.counts)).to(self.device)

    @cached_property
    def _side_by_side(self) -> bool:
        return bool((np.diff(self.rows) == 1).all())

    @cached_property
    def padding(self) -> Bool[Tensor, "rows C"] | None:
        """True where the window of a row is beyond its length; None when all rows have one length."""
        lengths = self.cache.lengths[self.rows]
        if (lengths == lengths[0]).all():
            return None
        return torch.from_numpy(np.arange(lengths.max()) >= lengths[:, None]).to(self.device)

    def write(self, layer: int, k_TKH: Tensor, v_TKH: Tensor) -> None:
        """Store the keys and values of the new tokens."""
        for store, new in ((self.cache.keys, k_TKH), (self.cache.values, v_TKH)):
            store[layer].transpose(1, 2)[self._row_index, self.positions] = new.to(store.dtype)

    def window(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values `[rows, K, C, H]` of the step's rows, C the longest of them; a view when rows adjoin."""
        longest = int(self.cache.lengths[self.rows].max())
        stores = self.cache.keys[layer, :, :, :longest], self.cache.values[layer, :, :, :longest]
        if self._side_by_side:
            first = int(self.rows[0])
            return stores[0][first : first + len(self.rows)], stores[1][first : first + len(self.rows)]
        index = torch.from_numpy(self.rows).to(self.device)
        return stores[0][index], stores[1][index]
