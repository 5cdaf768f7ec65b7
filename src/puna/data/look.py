"""Looking at a corpus: what a rule dropped, what became of a document, what there is.

Everything is read from the sealed corpus: ledgers for reasons and scores, dropped texts for reading, documents for the
rest. No source is opened again but by `record_bytes`, which leads a document back to the bytes it was read from.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute

from puna.core.errors import MissingError, UsageError
from puna.data.corpus import Corpus
from puna.data.document import Document, record_place
from puna.data.documents import from_table, read_batches, read_table
from puna.data.funnel import totals
from puna.data.ledger import COLUMNS
from puna.data.places import join, open_binary
from puna.data.sources.warc_records import record_at
from puna.data.steps.url_list import host_of

pc: Any = pyarrow.compute  # its functions are made when it is imported: a type checker sees none


@dataclass(frozen=True)
class Dropped:
    """A document that a rule dropped.

    Attributes:
        document: It, with its text as the rule saw it.
        reason: The rule.
        value: What was measured.
        twin: Id of the document that it repeats, or "".
    """

    document: Document
    reason: str
    value: float
    twin: str


def dropped_by(corpus: Corpus, rule: str = "") -> Iterator[Dropped]:
    """Documents that a rule dropped, as far as their texts were kept.

    Args:
        corpus: The corpus.
        rule: A reason (`c4: lorem ipsum`) or its end (`lorem ipsum`), a step (`03-c4`), its kind (`c4`) or a reason's
            beginning; empty takes all.

    Raises:
        UsageError: No reason fits; those that there are, are told.
    """
    steps = totals(corpus.manifest)["steps"]
    reasons = [reason for step in steps.values() for reason in step["dropped"]]
    if rule in steps:
        wanted = set(steps[rule]["dropped"])
    else:
        wanted = {r for r in reasons if r.startswith(rule) or rule in (r.partition(":")[0], r.partition(": ")[2])}
    if not wanted:
        known = "; ".join(sorted(set(reasons))) or "none"
        raise UsageError(f"nothing in {corpus.path} was dropped by {rule!r}. Reasons are: {known}")
    for path in corpus.dropped():
        for batch in read_batches(path):
            columns = [batch.column(name).to_pylist() for name in ("reason", "value", "twin")]
            for document, reason, value, twin in zip(from_table(batch), *columns, strict=True):
                if reason in wanted:
                    yield Dropped(document, reason, value, twin)


def edited_by(corpus: Corpus, step: str) -> Iterator[tuple[Document, dict[str, float]]]:
    """Documents that a step changed, as they are now, with what it did to each: `{"email": 2}`.

    Dropped ones are among them as far as their texts were kept.

    Args:
        corpus: The corpus.
        step: Name of a step or its kind.

    Raises:
        UsageError: No step of that name changed anything; those that did are told.
    """
    edits = {name: record["edits"] for name, record in totals(corpus.manifest)["steps"].items() if record["edits"]}
    wanted = [name for name in edits if step in (name, name.partition("-")[2])]
    if not wanted:
        raise UsageError(f"nothing in {corpus.path} was edited by {step!r}. Steps that edited are: {', '.join(edits)}")
    columns = {
        f"{label}.{what}": what for name in wanted for label in (name, name.partition("-")[2]) for what in edits[name]
    }
    for path in corpus.ledgers():
        table = read_table(path)
        there = [name for name in columns if name in table.column_names]
        if not there:
            continue
        done: dict[tuple[str, str, int], dict[str, float]] = {}
        for row in table.select(["id", "file", "offset", *there]).to_pylist():
            if counts := {columns[name]: row[name] for name in there if row[name]}:
                done[row["id"], row["file"], row["offset"]] = counts
        for texts in (path.parent.parent / what / path.name for what in ("documents", "dropped")):
            for batch in read_batches(texts) if texts.exists() and done else ():
                for document in from_table(batch):
                    if counts := done.get((document.id, document.file, document.offset)):
                        yield document, counts


def why(corpus: Corpus, document_id: str) -> list[dict[str, Any]]:
    """What became of a document: its ledger rows with every score, by the beginning of its id or by its address.

    `scores` also hold what edits did (`pii.email`) and what barriers measured (`divergence.value`); `twin_place` says
    where the record lies that a dropped one repeats.

    Raises:
        UsageError: There is no such document, or no id was given.
    """
    if not document_id:
        raise UsageError("the id is empty: every document begins with it. Give the beginning of an id, or a URL.")
    found = []
    for path in corpus.ledgers():
        table = read_table(path)
        begins = pc.call_function("starts_with", [table.column("id")], pc.MatchSubstringOptions(document_id))
        hits = table.append_column("begins", begins).filter(pc.field("begins") | (pc.field("url") == document_id))
        for row in hits.drop_columns("begins").to_pylist():
            scores = {k: v for k, v in row.items() if k not in COLUMNS and v is not None}
            found.append({"task": path.stem, **{k: row[k] for k in COLUMNS}, "scores": scores})
    if not found:
        raise UsageError(f"{corpus.path} never read a document {document_id!r}. Give the beginning of an id, or a URL.")
    stays = _kept_places(corpus, {row["twin"] for row in found if row["twin"]})
    return [{**row, "twin_place": stays.get(row["twin"], "")} for row in found]


def _kept_places(corpus: Corpus, ids: set[str]) -> dict[str, str]:
    """Where the records of kept documents lie: two captures of one page have the same id."""
    found: dict[str, str] = {}
    for path in corpus.ledgers() if ids else ():
        table = read_table(path, ["id", "file", "offset", "step"])
        rows = table.filter((pc.field("step") == 0) & pc.field("id").isin(sorted(ids)))
        found |= {row["id"]: record_place(row["file"], row["offset"]) for row in rows.to_pylist()}
    return found


def document_of(corpus: Corpus, document_id: str) -> Document | None:
    """A kept document by its id."""
    for source in corpus.sources:
        for path in corpus.files(source):
            if read_table(path, ["id"]).filter(pc.field("id") == document_id).num_rows:
                return next(d for batch in read_batches(path) for d in from_table(batch) if d.id == document_id)
    return None


def stats(corpus: Corpus) -> dict[str, list[list[Any]]]:
    """Tables: `languages`, `licences`, `hosts` (the largest), `lengths` (quantiles of bytes)."""
    total = totals(corpus.manifest)
    hosts: Counter[str] = Counter()
    sizes = []
    for source in corpus.sources:
        for path in corpus.ledgers(source):
            table = read_table(path, ["url", "bytes", "step"])
            kept = table.filter(pc.field("step") == 0)
            hosts.update(host_of(url) or "(no host)" for url in kept.column("url").to_pylist())
            sizes.append(kept.column("bytes").to_numpy())
    lengths = np.concatenate(sizes) if sizes else np.zeros(0)
    quantiles = [0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1]

    def rows(counts: dict[str, dict[str, int]]) -> list[list[Any]]:
        ordered = sorted(counts.items(), key=lambda item: (-item[1]["bytes"], item[0]))
        return [[name or "(unknown)", n["documents"], n["bytes"]] for name, n in ordered]

    return {
        "languages": rows(total["languages"]),
        "licences": rows(total["licences"]),
        "hosts": [[host, n] for host, n in sorted(hosts.items(), key=lambda item: (-item[1], item[0]))[:20]],
        "lengths": [[f"{q:.0%}", int(np.quantile(lengths, q))] for q in quantiles] if len(lengths) else [],
    }


def record_bytes(root: Path | str, file: str, offset: int) -> bytes:
    """The bytes that a document was read from: a WARC record's block, a line, or a whole file.

    Args:
        root: Where the source lies.
        file: The document's `file`.
        offset: The document's `offset`.

    Raises:
        MissingError: The file is not there, or holds no such record.
    """
    place = join(root, file)
    try:
        if ".warc" in file or ".wet" in file:
            return record_at(partial(open_binary, place), offset).block
        with open_binary(place) as stream:
            if offset < 0:
                return stream.read()
        if ".jsonl" in file or ".ndjson" in file or ".json." in file:
            from puna.data.compressed import read_lines

            for number, line in enumerate(read_lines(place, lambda damage: None), start=1):
                if number == offset:
                    return line
    except OSError as error:
        raise MissingError(f"{place} cannot be read: {error.strerror or error}") from error
    raise MissingError(f"{place} holds no record {offset} that can be shown")
