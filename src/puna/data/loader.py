"""The loader: packed batches from shards, mixed by weight, the same on any number of ranks, exactly resumable.

A row holds documents of one source, so every row counts the same number of tokens, and a mix by weight of tokens is
a mix of rows. The source of each row is chosen by error diffusion: every source earns its weight a row, the richest
one gives the row and pays one. After n rows each source has given its share of n to within one row or so. Which row
comes next depends on counters alone: rank r of w ranks reads its slice of the same global batch. The weights may change
at certain rows (annealing); since the rows read are part of the state, a resumed run changes them where it must.

A document that does not fit is continued in another row as a piece of its own: it attends to itself, its positions
start at 0, and its last target is the document's next token. So in an epoch every token is read once, and every
token but each document's first is a target once.

    loader = PackedLoader([ShardSet.open("runs/demo/shards")], weights={"code": 0.5, "prose": 0.5},
                          rows=8, sequence_length=512, seed=0)
    batch = loader.next_batch()
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.core.batch import IGNORE, PackedBatch
from puna.core.errors import ConfigError, MissingError
from puna.data.shards import ShardSet, Split
from puna.data.window import Row, SourceStream

_STATE_VERSION = 1


class PackedLoader:
    """An endless iterator of packed batches.

    Args:
        shard_sets: Where the tokens are. A source's name may occur in one set only.
        weights: Share of the tokens by source name, normalised. None means by size. A source without a weight, or with
            0, is left out. The name of a source that is packed by groups stands for those without a weight of their
            own, by size.
        later: Other weights from certain rows of the global stream on: `(row, weights)`, rows rising from above 0.
        cuts: Shorter pieces from certain rows on: `(row, tokens)`, rows rising; a piece that is longer, counted from
            the row's beginning, is cut into several, which do not see each other. Which tokens a row holds stays.
        rows: Rows of the global batch.
        sequence_length: Tokens of a row.
        seed: Seed of the order.
        rank: This process's number; it reads rows `rank * rows / world` and on.
        world: Number of processes; it divides `rows`.
        split: Which documents.
        window_rows: Rows packed together: more cut fewer documents and shuffle wider, and need more memory.

    Raises:
        ConfigError: Weights, rows, or sets that do not fit together.
        MissingError: There is nothing to read.
    """

    def __init__(
        self,
        shard_sets: Sequence[ShardSet],
        *,
        weights: Mapping[str, float] | None = None,
        later: Sequence[tuple[int, Mapping[str, float]]] = (),
        cuts: Sequence[tuple[int, int]] = (),
        rows: int,
        sequence_length: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        split: Split = "train",
        window_rows: int = 256,
    ) -> None:
        sources = _merge(shard_sets, split)
        if weights is not None and split == "held_out":  # a small source may have no document held out
            known = {name for shard_set in shard_sets for name in shard_set.sources("train")}
            weights = {name: weight for name, weight in weights.items() if name in sources or name not in known}
        sizes = {name: source.n_tokens for name, source in sources.items()}
        self._phases = [(0, _check_weights(weights, sizes))]
        for row, shares in later:
            if row <= self._phases[-1][0]:
                raise ConfigError([f"the mix changes at row {row}, after row {self._phases[-1][0]}; rows must rise"])
            self._phases.append((row, _check_weights(shares, sizes)))
        chosen = sorted({name for _, shares in self._phases for name in shares})
        if rows < 1 or rows % world or not 0 <= rank < world:
            raise ConfigError([f"a batch of {rows} rows cannot be shared by {world} processes; make rows a multiple"])
        if sequence_length < 2:
            raise ConfigError([f"sequence_length is {sequence_length}; it must be at least 2"])
        if bad := [n for _, n in cuts if n < 2 or sequence_length % n]:
            raise ConfigError([f"rows of {sequence_length} tokens cannot be cut every {bad[0]}; name a divisor"])
        self._row, self._cuts = 0, tuple(cuts)
        self._streams = {
            name: SourceStream(sources[name], sequence_length=sequence_length, window_rows=window_rows, seed=seed)
            for name in chosen
        }
        self._credit = dict.fromkeys(chosen, 0.0)
        self._rows, self._length = rows, sequence_length
        self._mine = range(rank * rows // world, (rank + 1) * rows // world)
        self._identity = {
            "seed": seed,
            "split": split,
            "sequence_length": sequence_length,
            "window_rows": window_rows,
            "sources": {name: sources[name].fingerprint for name in sorted(chosen)},
        }
        n = len(self._mine) * sequence_length
        self._places = np.arange(n, dtype=np.int32)

    @property
    def weights(self) -> dict[str, float]:
        """Share of the tokens by source at the next row; they sum to 1."""
        return dict(self._shares())

    def _shares(self) -> dict[str, float]:
        return next(shares for start, shares in reversed(self._phases) if self._row >= start)

    @property
    def epochs(self) -> dict[str, float]:
        """How often each source has been read."""
        return {name: stream.epochs for name, stream in self._streams.items()}

    @property
    def tokens_per_epoch(self) -> dict[str, int]:
        """Size of each source in tokens."""
        return {name: stream.source.n_tokens for name, stream in self._streams.items()}

    def next_batch(self) -> PackedBatch:
        """The next batch, or this rank's rows of it."""
        rows: list[tuple[str, Row]] = []
        every = next((n for start, n in reversed(self._cuts) if self._row >= start), self._length)
        for index in range(self._rows):
            name = self._choose()
            if index in self._mine:
                rows.append((name, self._streams[name].next_row()))
            else:
                self._streams[name].skip_row()
        return self._fill(rows, every)

    def state(self) -> dict[str, Any]:
        """Where the loader stands, in JSON types; a few hundred bytes. The same on every rank."""
        return {
            "version": _STATE_VERSION,
            "identity": self._identity,
            "credit": dict(self._credit),
            "sources": {name: stream.state() for name, stream in self._streams.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken. Rows of a batch, ranks and weights may differ; the data may not.

        Raises:
            ConfigError: The state belongs to other data, another seed or another sequence length.
        """
        problems = [] if state.get("version") == _STATE_VERSION else [f"its version is {state.get('version')!r}"]
        theirs = state.get("identity", {})
        problems += [
            f"{key} was {theirs.get(key)!r} and is now {value!r}"
            for key, value in self._identity.items()
            if theirs.get(key) != value
        ]
        if problems:
            raise ConfigError(problems, title="the loader cannot go on from this state")
        self._credit = {name: float(state["credit"][name]) for name in self._streams}
        for name, stream in self._streams.items():
            stream.restore(state["sources"][name])
        self._row = sum(stream.rows_read for stream in self._streams.values())

    def _choose(self) -> str:
        credit = self._credit
        best, most = "", -1.0
        for name, weight in self._shares().items():
            credit[name] = mine = credit[name] + weight
            if mine > most:  # of equal ones the first, by name
                best, most = name, mine
        credit[best] -= 1.0
        self._row += 1
        return best

    def _fill(self, rows: Sequence[tuple[str, Row]], every: int) -> PackedBatch:
        shape = len(rows), self._length
        n = shape[0] * shape[1]
        views: list[NDArray[np.uint32]] = []
        counts: dict[str, int] = {}
        for name, row in rows:
            shards = self._streams[name].source.tokens
            counts[name] = counts.get(name, 0) + self._length
            views += [shards[shard][start:stop] for shard, start, stop in row.spans]
        tokens, targets = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.int64)
        np.concatenate(views, out=tokens)
        lengths = np.concatenate([row.lengths for _, row in rows])
        following = np.concatenate([row.following for _, row in rows])
        ends = np.cumsum(lengths)
        targets[:-1] = tokens[1:]
        targets[ends - 1] = following
        if every < self._length:  # the last token before a cut still has the one behind it as its target
            ends = np.union1d(ends, np.arange(every, n + 1, every))
            lengths = np.diff(ends, prepend=0)
        positions = self._places - np.repeat((ends - lengths).astype(np.int32), lengths)
        return PackedBatch(
            tokens=tokens.reshape(shape),
            targets=targets.reshape(shape),
            positions=positions.reshape(shape),
            lengths=lengths,
            n_targets=n - int(np.count_nonzero(following == IGNORE)),
            sources=counts,
        )


def _merge(shard_sets: Sequence[ShardSet], split: Split) -> dict[str, Any]:
    sources: dict[str, Any] = {}
    for shard_set in shard_sets:
        if shard_set.tokenizer != shard_sets[0].tokenizer:
            raise ConfigError(
                [f"{shard_set.path} and {shard_sets[0].path} have different tokenizers; make one of them again"]
            )
        for name, source in shard_set.sources(split).items():
            if name in sources:
                raise ConfigError([f"source {name!r} is in two shard sets, {shard_set.path} is the second; rename one"])
            sources[name] = source
    if not sources:
        places = ", ".join(str(shard_set.path) for shard_set in shard_sets) or "no shard set"
        raise MissingError(f"{places}: no documents in the split {split!r}")
    return sources


def _spread(weights: Mapping[str, float], sizes: Mapping[str, int]) -> dict[str, float]:
    """The weight of a source that is packed by groups, over its groups by size."""
    found: dict[str, float] = {}
    for name, weight in weights.items():
        mine = [n for n in sizes if n.startswith(f"{name}/") and n not in weights] if name not in sizes else []
        whole = sum(sizes[n] for n in mine)
        found |= {n: weight * sizes[n] / whole for n in mine} if mine else {name: weight}
    return found


def _check_weights(weights: Mapping[str, float] | None, sizes: Mapping[str, int]) -> dict[str, float]:
    weights = sizes if weights is None else _spread(weights, sizes)
    problems = []
    for name, weight in weights.items():
        if name not in sizes:
            near = difflib.get_close_matches(name, sizes, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(sizes)}."
            problems.append(f"there is no source {name!r} to weigh. {hint}")
        elif not 0 <= weight < float("inf"):
            problems.append(f"the weight of {name!r} is {weight}; it must be a finite number and not negative")
    if not problems and not sum(weights.values()) > 0:
        problems.append("every weight is 0; at least one source must have a share")
    if problems:
        raise ConfigError(problems, title="the mix cannot be used")
    total = sum(weights.values())
    return {name: weights[name] / total for name in sorted(weights) if weights[name] > 0}
