"""One task of one pass: documents in, filters and edits, documents, ledger and features out.

A task depends on its own input and the decisions about it, on nothing else; it may be killed at any moment and done
again, since `task.json` is written last. Everything streams in batches, so memory is that of a batch and of the ledger.
"""

import contextlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from puna.core.files import write_json
from puna.data.decisions import load_decision
from puna.data.document import Document
from puna.data.documents import (
    INDEX_COLUMNS,
    SCHEMA,
    ArrowWriter,
    TableWriter,
    feature_array,
    from_table,
    read_batches,
    to_table,
)
from puna.data.ledger import Ledger
from puna.data.lines import write_lines
from puna.data.passes import NamedStep, Pass
from puna.data.sources import read_task
from puna.data.sources.task import Problem, Skipped, SourceConfig, Task
from puna.data.steps.registry import STEPS
from puna.data.steps.step import Barrier, Edit, Filter, StepConfig, Verdict

DONE = "task.json"
_BATCH_DOCUMENTS = 512
_BATCH_BYTES = 8 << 20
_KEPT_PROBLEMS = 10_000  # of one task, in the quarantine file; all of them are counted
_ROW = pa.schema([("row", pa.int64())])
_DROPPED = pa.schema(
    [*SCHEMA, ("row", pa.int64()), ("reason", pa.string()), ("value", pa.float64()), ("twin", pa.string())]
)


@dataclass(frozen=True)
class Job:
    """What every task of a pass is told; it travels to worker processes.

    Attributes:
        this: The pass.
        before: The pass before it, None for the first.
        work: The `work/` folder.
        sources: Sources by name.
        keep_all: Whether texts of dropped documents stay, and whether they are measured by all filters.
        samples: How many of them stay for each reason otherwise.
    """

    this: Pass
    before: Pass | None
    work: Path
    sources: Mapping[str, SourceConfig]
    keep_all: bool
    samples: int

    def folder(self, task: Task) -> Path:
        """Where the task's results go."""
        return self.work / self.this.folder / task.name

    def done(self, task: Task) -> bool:
        """Whether the task is finished."""
        return (self.folder(task) / DONE).exists()


def run_task(job: Job, task: Task) -> None:
    """Do one task; its record ends it."""
    _Run(job, task).run()


class _Run:
    """The state of one task while it runs."""

    def __init__(self, job: Job, task: Task) -> None:
        self.job, self.task = job, task
        self.here = job.folder(task)
        self.source = job.sources[task.source]
        self.all = job.keep_all and job.before is None
        self.ledger = Ledger()
        self.funnel: dict[str, Any] = {}
        self.sampled = Counter[str]()
        self.problems = Counter[str]()
        self.skipped = Counter[str]()
        self.quarantine: list[str] = []
        self.kept = Counter[str]()
        self.languages: dict[str, dict[str, int]] = {}
        self.licences: dict[str, dict[str, int]] = {}
        self.read = Counter[str]()
        self._configs: dict[tuple[int, str], StepConfig] = {}

    def run(self) -> None:
        """Do it."""
        start, cpu = time.perf_counter(), time.process_time()
        shutil.rmtree(self.here, ignore_errors=True)
        self.here.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            self._open(stack)
            batches = self._first() if self.job.before is None else self._later()
            for documents, rows in batches:
                documents = self._steps(documents, rows)
                self._store(documents, rows)
        for writer in (self.documents, self.dropped):
            if writer is not None and self.dropped is not None and not writer.rows:
                writer.path.unlink()
        self.ledger.write(self._target("ledger"))
        write_lines(self.here / "quarantine.jsonl.zst", self.quarantine)
        record = {
            "task": self.task.name,
            "parts": len(self.task.parts),
            "bytes": self.task.n_bytes,
            "read": dict(self.read),
            "steps": self.funnel,
            "kept": dict(self.kept),
            "languages": self.languages,
            "licences": self.licences,
            "scores_key": self.job.this.scores_key,
            "problems": dict(self.problems),
            "skipped": dict(self.skipped),
            "seconds": round(time.perf_counter() - start, 3),
            "cpu_seconds": round(time.process_time() - cpu, 3),
        }
        write_json(self.here / DONE, record)

    # ---- input ----

    def _first(self) -> Iterator[tuple[list[Document], list[int]]]:
        def report(problem: Problem | Skipped) -> None:
            if isinstance(problem, Skipped):
                self.skipped[problem.reason] += 1
                return
            self.problems[problem.reason] += 1
            if len(self.quarantine) < _KEPT_PROBLEMS:
                entry = {"source": self.task.source, **problem.record()}
                self.quarantine.append(json.dumps(entry, ensure_ascii=False, separators=(",", ":")))

        for batch in in_batches(read_task(self.source, self.task, report)):
            rows = []
            for document in batch:
                n_bytes = document.n_bytes
                count(self.read, n_bytes)
                rows.append(self.ledger.add(document, n_bytes))
            yield batch, rows

    def _later(self) -> Iterator[tuple[list[Document], list[int]]]:
        before = self.job.before
        assert before is not None
        earlier = self.job.work / before.folder
        self.ledger = Ledger.load(earlier / self.task.name / "ledger.parquet")
        stored = [row for row, is_stored in enumerate(self.ledger.columns["stored"]) if is_stored]
        self.ledger.columns["stored"] = [False] * len(self.ledger)
        decisions = [
            (barrier, load_decision(earlier / before.decision_folder(place), self.task.name))
            for place, barrier in enumerate(before.barriers)
        ]
        at = 0
        for batch in read_batches(earlier / self.task.name / "documents.parquet"):
            documents = from_table(batch)
            rows = batch.column("row").to_pylist()
            assert rows == stored[at : at + len(rows)], "documents and ledger of a task do not fit together"
            for barrier, decision in decisions:
                if decision is not None:
                    self._decide(documents, rows, barrier, decision.slice(at, len(rows)))
            at += len(rows)
            for start in range(0, len(rows), _BATCH_DOCUMENTS):
                yield documents[start : start + _BATCH_DOCUMENTS], rows[start : start + _BATCH_DOCUMENTS]

    def _decide(self, documents: list[Document], rows: list[int], barrier: NamedStep, decision: Any) -> None:
        """Apply a barrier's decision about a batch."""
        record = self._record(barrier)
        for k, (document, row) in enumerate(zip(documents, rows, strict=True)):
            if not self.ledger.alive(row) or not barrier.config.applies(document):
                if self.ledger.alive(row):
                    self._passed(record, document.n_bytes, document.n_bytes)
                continue
            n_bytes = document.n_bytes
            if decision.values[k]:
                self.ledger.score(barrier.label, [row], [{"value": decision.values[k]}])
            if not decision.keep[k]:
                self._drop(
                    record,
                    row,
                    barrier,
                    Verdict(False, decision.reasons[k], decision.values[k]),
                    n_bytes,
                    decision.twins[k],
                )
                continue
            if decision.metadata[k]:
                added = json.loads(decision.metadata[k])
                document = documents[k] = replace(document, metadata={**document.metadata, **added})
            spans = decision.cuts[k]
            if spans is not None and len(spans):
                document = documents[k] = document.with_text(without(document.text, spans))
                self._edits(record, {"spans cut": len(spans)})
                self.ledger.score(barrier.label, [row], [{"spans cut": len(spans)}])
                if not document.text.strip():
                    self._drop(record, row, barrier, Verdict(False, f"{barrier.kind}: nothing left"), n_bytes)
                    continue
            self._passed(record, n_bytes, document.n_bytes)

    # ---- filters and edits ----

    def _steps(self, documents: list[Document], rows: list[int]) -> list[Document]:
        documents = list(documents)
        for step in self.job.this.steps:
            record = self._record(step)
            alive = [self.ledger.alive(row) for row in rows]
            chosen: dict[int, list[int]] = {}
            configs: dict[int, StepConfig] = {}
            for k, document in enumerate(documents):
                # a document that a step of this very pass dropped is measured on where its text stays anyway
                if not alive[k] and not self.all:
                    continue
                if step.config.applies(document):
                    config = self._config(step, document.language)
                    chosen.setdefault(id(config), []).append(k)
                    configs[id(config)] = config
                elif alive[k]:
                    self._passed(record, document.n_bytes, document.n_bytes)
            for key, places in chosen.items():
                implementation = STEPS[step.kind]
                if isinstance(implementation, Filter):
                    self._filter(step, implementation, configs[key], documents, rows, places, record)
                else:
                    assert isinstance(implementation, Edit)
                    self._edit(step, implementation, configs[key], documents, rows, places, record)
        return documents

    def _filter(
        self,
        step: NamedStep,
        how: Filter[Any],
        config: StepConfig,
        documents: list[Document],
        rows: list[int],
        places: list[int],
        record: dict[str, Any],
    ) -> None:
        measured = how.measure([documents[k] for k in places], config)
        self.ledger.score(step.label, [rows[k] for k in places], measured)
        for k, scores in zip(places, measured, strict=True):
            if not self.ledger.alive(rows[k]):
                continue
            verdict = how.judge(scores, config)
            n_bytes = documents[k].n_bytes
            if verdict.keep:
                self._passed(record, n_bytes, n_bytes)
            else:
                self._drop(record, rows[k], step, verdict, n_bytes)

    def _edit(
        self,
        step: NamedStep,
        how: Edit[Any],
        config: StepConfig,
        documents: list[Document],
        rows: list[int],
        places: list[int],
        record: dict[str, Any],
    ) -> None:
        for k, edited in zip(places, how.edit([documents[k] for k in places], config), strict=True):
            row, before = rows[k], documents[k]
            documents[k] = edited.document
            if edited.document.language != before.language or edited.document.confidence != before.confidence:
                self.ledger.speaks(row, edited.document.language, edited.document.confidence)
            if self.all:
                self.ledger.edited(step.label, row, edited.document.n_bytes, edited.verdict)
            if edited.counts:
                self._edits(record, edited.counts)
                self.ledger.score(step.label, [row], [{name: float(n) for name, n in edited.counts.items()}])
            if not self.ledger.alive(row):
                continue
            if edited.verdict.keep:
                self._passed(record, before.n_bytes, edited.document.n_bytes)
            else:
                self._drop(record, row, step, edited.verdict, before.n_bytes)

    def _config(self, step: NamedStep, language: str) -> StepConfig:
        key = (step.number, language if language in step.config.by_language else "")
        if key not in self._configs:
            self._configs[key] = step.config.for_language(language)
        return self._configs[key]

    # ---- the funnel ----

    def _record(self, step: NamedStep) -> dict[str, Any]:
        return self.funnel.setdefault(step.name, empty_record())

    @staticmethod
    def _passed(record: dict[str, Any], n_in: int, n_out: int) -> None:
        count(record["in"], n_in)
        count(record["out"], n_out)

    def _drop(
        self, record: dict[str, Any], row: int, step: NamedStep, verdict: Verdict, n_bytes: int, twin: str = ""
    ) -> None:
        count(record["in"], n_bytes)
        count(record["dropped"].setdefault(verdict.reason, {"documents": 0, "bytes": 0}), n_bytes)
        self.ledger.drop(row, step.number, verdict, twin)

    @staticmethod
    def _edits(record: dict[str, Any], counts: Mapping[str, int]) -> None:
        for name, n in counts.items():
            record["edits"][name] = record["edits"].get(name, 0) + n

    # ---- output ----

    def _target(self, what: str) -> Path:
        return self.here / f"{what}.parquet"

    def _open(self, stack: contextlib.ExitStack) -> None:
        last = not self.job.this.barriers
        schema = SCHEMA if last else pa.schema([*SCHEMA, *_ROW])
        self.documents = stack.enter_context(TableWriter(self._target("documents"), schema))
        self.dropped = stack.enter_context(TableWriter(self._target("dropped"), _DROPPED)) if last else None
        self.index = None if last else stack.enter_context(ArrowWriter(self.here / "index.arrow"))
        self.features = {
            barrier.name: stack.enter_context(ArrowWriter(self.here / f"features-{barrier.name}.arrow"))
            for barrier in self.job.this.barriers
        }

    def _store(self, documents: list[Document], rows: list[int]) -> None:
        alive = [self.ledger.alive(row) for row in rows]
        stored = [is_alive or self._stays(row) for is_alive, row in zip(alive, rows, strict=True)]
        for document, is_alive in zip(documents, alive, strict=True):
            if is_alive:
                n_bytes = document.n_bytes
                count(self.kept, n_bytes)
                if self.dropped is not None:
                    count(self.languages.setdefault(document.language, {}), n_bytes)
                    count(self.licences.setdefault(document.licence, {}), n_bytes)
        for row, stays in zip(rows, stored, strict=True):
            self.ledger.columns["stored"][row] = stays
        if self.dropped is not None:
            self._store_last(documents, rows, alive, stored)
            return
        chosen = [(d, r) for d, r, stays in zip(documents, rows, stored, strict=True) if stays]
        if not chosen:
            return
        kept, kept_rows = [d for d, _ in chosen], [r for _, r in chosen]
        self.documents.add(to_table(kept, {"row": pa.array(kept_rows, pa.int64())}))
        assert self.index is not None
        index = to_table(kept).select([*INDEX_COLUMNS])
        self.index.add(index.append_column("bytes", pa.array([d.n_bytes for d in kept], pa.int64())))
        for barrier in self.job.this.barriers:
            how = STEPS[barrier.kind]
            assert isinstance(how, Barrier)
            columns = how.features(kept, barrier.config)
            if columns:
                self.features[barrier.name].add(pa.table({k: feature_array(v) for k, v in columns.items()}))

    def _store_last(self, documents: list[Document], rows: list[int], alive: list[bool], stored: list[bool]) -> None:
        keep = [d for d, a in zip(documents, alive, strict=True) if a]
        if keep:
            self.documents.add(to_table(keep))
        gone = [k for k, (a, s) in enumerate(zip(alive, stored, strict=True)) if s and not a]
        if gone:
            columns = self.ledger.columns
            extra = {
                "row": pa.array([rows[k] for k in gone], pa.int64()),
                **{
                    name: pa.array([columns[name][rows[k]] for k in gone], kind)
                    for name, kind in (("reason", pa.string()), ("value", pa.float64()), ("twin", pa.string()))
                },
            }
            assert self.dropped is not None
            self.dropped.add(to_table([documents[k] for k in gone], extra))

    def _stays(self, row: int) -> bool:
        """Whether a dropped document's text stays: all of them, or the first few for each reason of the task."""
        if self.job.keep_all:
            return True
        reason = self.ledger.columns["reason"][row]
        self.sampled[reason] += 1
        return self.sampled[reason] <= self.job.samples


def empty_record() -> dict[str, Any]:
    """A step's line of the funnel before anything was counted."""
    return {"in": {"documents": 0, "bytes": 0}, "out": {"documents": 0, "bytes": 0}, "dropped": {}, "edits": {}}


def without(text: str, spans: np.ndarray[Any, Any]) -> str:
    """A text without some spans of characters."""
    kept, at = [], 0
    for start, stop in spans.tolist():
        kept.append(text[at:start])
        at = stop
    return "".join([*kept, text[at:]])


def in_batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents in batches of some megabytes."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= _BATCH_BYTES or len(batch) >= _BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def count(counter: Any, n_bytes: int) -> None:
    """Count one document of so many bytes."""
    counter["documents"] = counter.get("documents", 0) + 1
    counter["bytes"] = counter.get("bytes", 0) + n_bytes
