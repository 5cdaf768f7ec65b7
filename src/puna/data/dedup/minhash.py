"""Near copies: MinHash and locality-sensitive hashing find candidates, true Jaccard similarity decides.

A document is its set of word 5-grams (characters where a script has no spaces). Two documents with similarity s share
one of `bands` keys with probability 1 - (1 - s^rows)^bands: .988 at s = .8 for 24 bands of 8 rows. What shares a key is
a candidate and no more: every candidate pair is then compared by its sets, since hashing alone over-deletes (others
found half of their removals false). Then, in order of preference, a document goes if it is similar enough to one that
stays. So every removal names the document that it repeats and how similar the two are, and a chain of copies of copies
never removes what is unlike all that stays.

Differs: a key's `rows` values come from `rows` disjoint parts of the set, all bands hash the same parts (one
permutation hashing within a band; Li, Owen, Zhang 2012). This costs `bands` hashes for each shingle, not `bands *
rows`. The probability above then holds but for a little in sets of a few dozen shingles
(`tests/data/dedup/test_minhash.py` measures it).

Source: Broder 1997; the banding of Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, section 3.4.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from puna.data.dedup import earlier, pairs, twins
from puna.data.dedup.places import Places
from puna.data.document import Document
from puna.data.steps.step import Barrier, Decision, Question, StepConfig
from puna.data.word_hashes import batches, compose, mix, ngrams, odd_constants, words_of

_EMPTY = np.uint32(0xFFFFFFFF)  # of a part of the set without shingles


class MinhashConfig(StepConfig):
    """Near copies, found by MinHash and confirmed by true Jaccard similarity."""

    kind: Literal["minhash"] = "minhash"
    """Which kind of step this is."""
    ngram: int = Field(default=5, ge=1, le=64)
    """Words of a shingle."""
    bands: int = Field(default=24, ge=1, le=1024)
    """Keys of a document; more find more."""
    rows: int = Field(default=8, ge=1, le=64)
    """Hashes of a key; more look at fewer pairs in vain."""
    min_similarity: float = Field(default=0.8, gt=0, le=1)
    """Jaccard similarity of the shingle sets from which a document counts as a copy."""
    keep: Literal["first", "newest", "longest"] = "first"
    """Which copy stays: the first in the order of the sources, the last captured, or the longest."""
    against: Path | None = None
    """A corpus made before with `save_index`, or a folder of such: what is in them is never kept again."""
    save_index: bool = False
    """Keep the features of what stays in the corpus, for a later `against`: some 2 KB a document."""
    neighbours: int = Field(default=16, ge=1)
    """Of many documents with one key, each is compared with the first and with so many before it."""
    seed: int = 1
    """Seed of the hashes."""
    memory_mib: int = Field(default=512, ge=1)
    """Memory for one bucket of keys or pairs."""


def shingle_sets(texts: Sequence[str], ngram: int) -> list[NDArray[np.uint32]]:
    """The shingles of each text: sorted, each once, 32 bits."""
    sets: list[NDArray[np.uint32]] = []
    for batch in batches(texts):
        hashes, first = ngrams(words_of([compose(text) for text in batch]), ngram)
        owner = np.repeat(np.arange(len(batch), dtype=np.uint64), np.diff(first))
        rows = np.sort(owner << np.uint64(32) | hashes >> np.uint64(32))  # one sort for all texts of the batch
        new = np.ones(len(rows), dtype=bool)
        new[1:] = rows[1:] != rows[:-1]
        rows = rows[new]
        bounds = np.searchsorted(rows, np.arange(len(batch) + 1, dtype=np.uint64) << np.uint64(32))
        values = rows.astype(np.uint32)
        sets += [values[start:stop] for start, stop in pairwise(bounds.tolist())]
    return sets


def band_keys(sets: Sequence[NDArray[np.uint32]], *, bands: int, rows: int, seed: int) -> NDArray[np.uint64]:
    """The LSH keys of some documents.

    Args:
        sets: Shingles of each, rising.
        bands: Keys of a document.
        rows: Minima that make a key.
        seed: Of the hashes.

    Returns:
        `[documents, bands]`.
    """
    counts = np.fromiter(map(len, sets), dtype=np.int64, count=len(sets))
    keys = np.empty((len(sets), bands), dtype=np.uint64)
    for begin in range(0, len(sets), _DOCUMENTS_AT_ONCE):
        few = slice(begin, begin + _DOCUMENTS_AT_ONCE)
        keys[few] = _keys(sets[few], counts[few], bands=bands, rows=rows, seed=seed)
    return keys


_DOCUMENTS_AT_ONCE = 32


def _keys(
    sets: Sequence[NDArray[np.uint32]], counts: NDArray[np.int64], *, bands: int, rows: int, seed: int
) -> NDArray[np.uint64]:
    ordered = np.concatenate(sets)
    # a part of the set is a range of shingles, so that sorted sets are sorted by part
    parts = (ordered.astype(np.uint64) * np.uint64(rows) >> np.uint64(32)).astype(np.uint16)
    parts += np.repeat((np.arange(len(sets)) * rows).astype(np.uint16), counts)
    begins = np.flatnonzero(np.diff(parts, prepend=np.uint16(0xFFFF)))
    minima = np.full((bands, len(sets) * rows), _EMPTY, dtype=np.uint32)
    factors = (odd_constants(2 * bands, seed) >> np.uint64(32)).astype(np.uint32)
    places = parts[begins]
    for band in range(bands if len(begins) else 0):
        values = ordered * (factors[2 * band] | np.uint32(1))
        values += factors[2 * band + 1]
        minima[band, places] = np.minimum.reduceat(values, begins)
    mixed = minima.reshape(bands, len(sets), rows).astype(np.uint64) * odd_constants(rows, seed + 1)
    return mix(mixed.sum(axis=2, dtype=np.uint64)).T


def features(documents: Sequence[Document], config: MinhashConfig) -> Mapping[str, Any]:
    """`keys` and `shingles` of each document; a document that is not this step's business has none."""
    sets = shingle_sets([d.text if config.applies(d) else "" for d in documents], config.ngram)
    return {"keys": band_keys(sets, bands=config.bands, rows=config.rows, seed=config.seed), "shingles": sets}


def decide(question: Question[MinhashConfig]) -> Iterator[Decision]:
    """Candidates by key, edges by true similarity, decisions by preference."""
    config = question.config
    before = earlier.open_indexes(config.against, "minhash", earlier.parameters(config, _SHAPE))
    places = Places.of(question.parts, question.scratch, before)
    memory_bytes = config.memory_mib << 20
    candidates = pairs.candidates(
        question.run, places, bands=config.bands, neighbours=config.neighbours, memory_bytes=memory_bytes
    )
    edges, looked_at = pairs.confirm(question.run, places, candidates, config.min_similarity, memory_bytes=memory_bytes)
    choice = twins.choose(places, edges, keep=config.keep)
    twins.report(
        question.report,
        places,
        choice,
        rows=[
            ("candidate pairs", looked_at),
            ("pairs refused by the similarity itself", looked_at - len(edges.first)),
            ("least similarity of a copy", config.min_similarity),
        ],
    )
    if config.save_index:
        earlier.save_index(
            question.report / "index", question.parts, choice, places, earlier.parameters(config, _SHAPE)
        )
    yield from twins.decisions(places, choice, reason="minhash: near duplicate", earlier_reason="minhash: seen before")


_SHAPE = ("kind", "ngram", "bands", "rows", "seed")  # what an index must have in common with who reads it

MINHASH = Barrier(
    config=MinhashConfig,
    features=features,
    decide=decide,
    judged_by=("min_similarity", "keep", "against", "save_index", "neighbours", "memory_mib"),
)
