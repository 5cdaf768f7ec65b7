"""What a deduplication put together: the groups of a report with their texts, to look at before a threshold moves.

The largest groups say what the step lives on (boilerplate, mirrors, a bad threshold); the weakest pairs say whether
`min_similarity` is too low: read some of them, and raise it where they are no copies.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from puna.core.errors import MissingError, UsageError
from puna.data.corpus import Corpus
from puna.data.dedup.twins import CLUSTERS
from puna.data.documents import read_batches

Order = Literal["largest", "weakest"]


@dataclass(frozen=True)
class Member:
    """A document of a cluster.

    Attributes:
        id: Of the document.
        url: Of the document.
        place: File and offset of its record; ids are of what was read, so two captures of a page share one.
        source: Of the document; empty for the one that stays, whose ledger says it.
        similarity: To the one that stays; 1 for that one.
        text: Its text, or "" where the corpus does not hold it (`keep = "samples"` keeps a few of what goes).
    """

    id: str
    url: str
    place: str
    source: str
    similarity: float
    text: str


@dataclass(frozen=True)
class Cluster:
    """A document that stays, and those that go because of it.

    Attributes:
        step: Name of the step, `02-minhash`.
        size: Documents, with the one that stays.
        kept: The one that stays.
        gone: Some that go, the least similar first.
    """

    step: str
    size: int
    kept: Member
    gone: Sequence[Member]


def steps_with_clusters(corpus: Corpus) -> list[str]:
    """Names of the steps whose report has clusters, in order."""
    return [path.parent.name for path in sorted((corpus.path / "reports").glob(f"*/{CLUSTERS}"))]


def clusters(
    corpus: Corpus, step: str | None = None, *, order: Order = "largest", count: int = 10, members: int = 4
) -> list[Cluster]:
    """Groups of copies with their texts.

    Args:
        corpus: A finished corpus.
        step: Name of a step or its kind; None takes every step that has clusters.
        order: `largest` groups first, or those with the `weakest` pair first.
        count: Clusters of each step.
        members: Documents of a cluster that go and are shown.

    Raises:
        UsageError: The corpus has no such step.
        MissingError: No step of the corpus finds clusters.
        CorruptError: A report is damaged.
    """
    there = steps_with_clusters(corpus)
    if not there:
        raise MissingError(
            f"{corpus.path} has no clusters: none of its steps is minhash, semantic or another that finds copies"
        )
    wanted = [name for name in there if step in (None, name, name.partition("-")[2])]
    if not wanted:
        raise UsageError(f"{corpus.path} has no clusters of a step {step!r}; it has them of {', '.join(there)}")
    return with_texts(corpus, [c for name in wanted for c in without_texts(corpus, name, order, count, members)])


def with_texts(corpus: Corpus, found: Sequence[Cluster]) -> list[Cluster]:
    """The same clusters with their texts; one look through the ids of the corpus for all of them."""
    texts = _texts(corpus, {member.id for cluster in found for member in (cluster.kept, *cluster.gone)})
    return [
        Cluster(c.step, c.size, _with_text(c.kept, texts), [_with_text(member, texts) for member in c.gone])
        for c in found
    ]


def without_texts(corpus: Corpus, step: str, order: Order, count: int, members: int) -> list[Cluster]:
    """Clusters of the step of that name, their texts still empty; arguments as in `clusters`."""
    batches = list(read_batches(corpus.path / "reports" / step / CLUSTERS))
    if not any(batch.num_rows for batch in batches):
        return []
    table = pa.Table.from_batches(batches)
    groups = table.group_by("kept").aggregate([("similarity", "min"), ("similarity", "count")])
    sizes, least = groups["similarity_count"].to_numpy(), groups["similarity_min"].to_numpy()
    ids = groups["kept"].to_pylist()
    keys = (ids, least, -sizes) if order == "largest" else (ids, -sizes, least)
    found = []
    for place in np.lexsort(keys)[:count].tolist():
        rows = table.filter(pc.field("kept") == ids[place]).sort_by([("similarity", "ascending"), ("id", "ascending")])
        gone = [
            Member(row["id"], row["url"], row["place"], row["source"], row["similarity"], "")
            for row in rows[:members].to_pylist()
        ]
        kept = Member(ids[place], rows["kept_url"][0].as_py(), rows["kept_place"][0].as_py(), "", 1.0, "")
        found.append(Cluster(step, int(sizes[place]) + 1, kept, gone))
    return found


def _texts(corpus: Corpus, ids: Collection[str]) -> dict[str, str]:
    wanted = pa.array(sorted(ids), pa.string())
    kept = [path for source in corpus.sources for path in corpus.files(source)]
    found: dict[str, str] = {}
    for path in [*kept, *corpus.dropped()]:
        if len(found) == len(ids):
            break
        if not any(pc.call_function("any", [_among(batch, wanted)]).as_py() for batch in read_batches(path, ["id"])):
            continue
        for batch in read_batches(path, ["id", "text"]):
            rows = batch.filter(_among(batch, wanted))
            found |= dict(zip(rows.column("id").to_pylist(), rows.column("text").to_pylist(), strict=True))
    return found


def _among(batch: pa.RecordBatch, wanted: pa.Array) -> Any:
    return pc.call_function("is_in", [batch.column("id")], pc.SetLookupOptions(wanted))


def _with_text(member: Member, texts: Mapping[str, str]) -> Member:
    return Member(member.id, member.url, member.place, member.source, member.similarity, texts.get(member.id, ""))
