"""Llama 3's rule for documents of odd tokens: Kullback-Leibler divergence of a document from the corpus.

The divergence of an empirical distribution from a large one falls with the number of words: measured on clean held-out
articles it has a median of 4.0 nats at 100 tokens and 2.4 at 1000, so one threshold would delete everything short, and
code before noise. A document is therefore compared with those of its own length, language and domain, and the rule is a
quantile: the farthest `drop_fraction` of each group goes, if it is also farther than `min_excess` nats above the
group's median. The paper publishes no threshold. Words are hashed into 2^16 cells.

Source: "The Llama 3 Herd of Models" (arXiv:2407.21783), section 3.1.1, heuristic filtering.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from puna.core.files import write_json
from puna.data.document import Document
from puna.data.documents import list_column, read_arrow
from puna.data.steps.step import Barrier, Decision, Part, Question, StepConfig
from puna.data.words import words

CELLS = 1 << 16
_SHOWN = 20  # groups, on the page


class DivergenceConfig(StepConfig):
    """Drops documents whose words are far from those of their group."""

    kind: Literal["divergence"] = "divergence"
    """Which kind of step this is."""
    drop_fraction: float = Field(default=0.005, ge=0, lt=1)
    """Fraction of each group (length, language, domain) that goes."""
    min_excess: float = Field(default=1.0, ge=0)
    """Nats above the group's median that a document must have to go."""
    min_group: int = Field(default=100, ge=2)
    """Groups with fewer documents are left alone."""
    min_words: int = Field(default=50, ge=1)
    """Shorter documents are left alone."""


def _features(documents: Sequence[Document], config: DivergenceConfig) -> Mapping[str, Any]:
    cells, counts = [], []
    for document in documents:
        hashed = [zlib.crc32(word.encode()) % CELLS for word in words(document.text, document.language)]
        values, n = np.unique(np.array(hashed, dtype=np.uint16), return_counts=True)
        cells.append(values)
        counts.append(n.astype(np.uint32))
    return {"cell": cells, "count": counts}


def _groups(part: Part) -> list[str]:
    table = read_arrow(part.index).select(["language", "domain"])
    return [f"{domain}/{language}" for language, domain in zip(*(c.to_pylist() for c in table.columns), strict=True)]


def _decide(question: Question[DivergenceConfig]) -> Iterator[Decision]:
    config = question.config
    totals: dict[str, NDArray[np.float64]] = {}
    for part in question.parts:
        cells, counts, offsets = _read(part)
        groups = np.array(_groups(part), dtype=object)
        for name in sorted(set(groups)):
            mask = np.repeat(part.alive & (groups == name), np.diff(offsets))
            total = totals.setdefault(name, np.zeros(CELLS))
            total += np.bincount(cells[mask], weights=counts[mask], minlength=CELLS)
    measured = [_divergences(part, totals) for part in question.parts]
    limits = _limits(question, measured)
    for part, (nats, lengths) in zip(question.parts, measured, strict=True):
        keys = _keys(part, lengths)
        limit = np.array([limits.get(key, np.inf) for key in keys])
        keep = ~((nats > limit) & (lengths >= config.min_words))
        yield Decision(keep, ["divergence: far from its group"] * len(keep), nats)


def _read(part: Part) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.int64]]:
    table = read_arrow(part.features)
    cells, offsets = list_column(table, "cell")
    counts, _ = list_column(table, "count")
    return cells, counts.astype(np.float64), offsets


def _divergences(part: Part, totals: Mapping[str, NDArray[np.float64]]) -> tuple[NDArray[np.float64], NDArray[Any]]:
    """Nats of each document from its group, and its words."""
    cells, counts, offsets = _read(part)
    nats = np.zeros(len(offsets) - 1)
    lengths = np.zeros(len(offsets) - 1, dtype=np.int64)
    for i, name in enumerate(_groups(part)):
        mine = slice(offsets[i], offsets[i + 1])
        n = counts[mine].sum()
        lengths[i] = int(n)
        if n:
            p = counts[mine] / n
            total = totals[name]
            q = (total[cells[mine]] + 0.5) / (total.sum() + 0.5 * CELLS)
            nats[i] = float((p * np.log(p / q)).sum())
    return nats, lengths


def _keys(part: Part, lengths: NDArray[Any]) -> list[str]:
    octave = np.floor(np.log2(np.maximum(lengths, 1))).astype(int)
    return [f"{group}/{o}" for group, o in zip(_groups(part), octave.tolist(), strict=True)]


def _limits(
    question: Question[DivergenceConfig], measured: Sequence[tuple[NDArray[Any], NDArray[Any]]]
) -> dict[str, float]:
    config = question.config
    by_group: dict[str, list[float]] = {}
    for part, (nats, lengths) in zip(question.parts, measured, strict=True):
        for i, key in enumerate(_keys(part, lengths)):
            if part.alive[i] and lengths[i] >= config.min_words:
                by_group.setdefault(key, []).append(float(nats[i]))
    limits, table = {}, {}
    for key in sorted(by_group):
        values = np.array(by_group[key])
        if len(values) >= config.min_group:
            middle = float(np.median(values))
            limits[key] = max(float(np.quantile(values, 1 - config.drop_fraction)), middle + config.min_excess)
            table[key] = {"documents": len(values), "median": round(middle, 4), "limit": round(limits[key], 4)}
    write_json(question.report / "groups.json", table)
    rows = [
        [_named(key), f"{row['documents']} documents, median {row['median']:.2f} nats, limit {row['limit']:.2f}"]
        for key, row in list(table.items())[:_SHOWN]
    ]
    if left := len(by_group) - len(table):
        rows.append([f"groups of fewer than {config.min_group} documents, left alone", str(left)])
    write_json(question.report / "summary.json", {"rows": rows})
    return limits


def _named(key: str) -> str:
    """`en/prose/7` for a reader."""
    *group, octave = key.split("/")
    return f"{', '.join(filter(None, group))}: {2 ** int(octave)} to {2 ** (int(octave) + 1) - 1} words"


DIVERGENCE = Barrier(
    DivergenceConfig, _features, _decide, judged_by=("drop_fraction", "min_excess", "min_group", "min_words")
)
