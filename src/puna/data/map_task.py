"""One task of one pass: documents in, filters and edits, documents, ledger and features out.

A task depends on its own input and the decisions about it, on nothing else; it may be killed at any moment and done
again, since `task.json` is written last. Everything streams in batches, so memory is that of a batch and of the ledger.
"""

import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from puna.core.files import write_json
from puna.data.decisions import load_decision
from puna.data.document import Document, Size
from puna.data.documents import from_table, read_batches
from puna.data.ledger import Ledger
from puna.data.lines import write_lines
from puna.data.passes import NamedStep, Pass
from puna.data.sources import read_task
from puna.data.sources.task import Problem, Skipped, SourceConfig, Task
from puna.data.steps.registry import STEPS
from puna.data.steps.step import Edit, Filter, StepConfig, Verdict
from puna.data.tally import Tally
from puna.data.task_output import TaskOutput
from puna.data.token_counts import TaskTokens, TokenCounter

DONE = "task.json"
_BATCH_DOCUMENTS = 512
_BATCH_BYTES = 8 << 20
_KEPT_PROBLEMS = 10_000  # of one task, in the quarantine file; all of them are counted


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
        counter: What counts tokens, None for nothing.
    """

    this: Pass
    before: Pass | None
    work: Path
    sources: Mapping[str, SourceConfig]
    keep_all: bool
    samples: int
    counter: TokenCounter | None = None

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
        self.tokens = TaskTokens(job.counter, self.ledger)
        self.tally = Tally(job.counter)
        self.quarantine: list[str] = []
        self._configs: dict[tuple[int, str], StepConfig] = {}

    def run(self) -> None:
        """Do it."""
        start, cpu = time.perf_counter(), time.process_time()
        shutil.rmtree(self.here, ignore_errors=True)
        self.here.mkdir(parents=True, exist_ok=True)
        samples = None if self.job.keep_all else self.job.samples
        with TaskOutput(self.here, self.job.this.barriers, samples=samples) as output:
            batches = self._first() if self.job.before is None else self._later()
            for documents, rows in batches:
                documents = self._steps(documents, rows)
                output.store(documents, rows, self.ledger)
                self._count_left(documents, rows, last=output.last)
        self.ledger.write(self.here / "ledger.parquet")
        write_lines(self.here / "quarantine.jsonl.zst", self.quarantine)
        record = {
            "task": self.task.name,
            "parts": len(self.task.parts),
            "bytes": self.task.n_bytes,
            **self.tally.record(),
            "scores_key": self.job.this.scores_key,
            "seconds": round(time.perf_counter() - start, 3),
            "cpu_seconds": round(time.process_time() - cpu, 3),
        }
        write_json(self.here / DONE, record)

    def _count_left(self, documents: list[Document], rows: list[int], *, last: bool) -> None:
        for document, row in zip(documents, rows, strict=True):
            if self.ledger.alive(row):
                language = document.language if last else None
                self.tally.left(self.tokens.size(document, row), language=language, licence=document.licence)

    # ---- input ----

    def _first(self) -> Iterator[tuple[list[Document], list[int]]]:
        def report(problem: Problem | Skipped) -> None:
            if isinstance(problem, Skipped):
                self.tally.skipped[problem.reason] += 1
                return
            self.tally.problems[problem.reason] += 1
            if len(self.quarantine) < _KEPT_PROBLEMS:
                entry = {"source": self.task.source, **problem.record()}
                self.quarantine.append(json.dumps(entry, ensure_ascii=False, separators=(",", ":")))

        for batch in in_batches(read_task(self.source, self.task, report)):
            rows = [self.ledger.add(document, document.n_bytes) for document in batch]
            self.tokens.read(batch, rows)
            for document, row in zip(batch, rows, strict=True):
                self.tally.count(self.tally.read, self.tokens.size(document, row))
            yield batch, rows

    def _later(self) -> Iterator[tuple[list[Document], list[int]]]:
        before = self.job.before
        assert before is not None
        earlier = self.job.work / before.folder
        self.ledger = Ledger.load(earlier / self.task.name / "ledger.parquet")
        self.tokens = TaskTokens(self.job.counter, self.ledger)
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
        for k, (document, row) in enumerate(zip(documents, rows, strict=True)):
            if not self.ledger.alive(row):
                continue
            size = self.tokens.size(document, row)
            if not barrier.config.applies(document):
                self.tally.passed(barrier.name, size, size)
                continue
            if decision.values[k]:
                self.ledger.score(barrier.label, [row], [{"value": decision.values[k]}])
            if not decision.keep[k]:
                verdict = Verdict(False, decision.reasons[k], decision.values[k])
                self._drop(barrier, row, verdict, size, decision.twins[k])
                continue
            if decision.metadata[k]:
                added = json.loads(decision.metadata[k])
                document = documents[k] = replace(document, metadata={**document.metadata, **added})
            spans = decision.cuts[k]
            if spans is not None and len(spans):
                documents[k] = document.with_text(without(document.text, spans))
                self.tally.edited(barrier.name, {"spans cut": len(spans)})
                self.ledger.score(barrier.label, [row], [{"spans cut": len(spans)}])
                if not documents[k].text.strip():
                    self._drop(barrier, row, Verdict(False, f"{barrier.kind}: nothing left"), size)
                    continue
                self.tokens.changed(document, documents[k], row)
            self.tally.passed(barrier.name, size, self.tokens.size(documents[k], row))

    def _drop(self, step: NamedStep, row: int, verdict: Verdict, size: Size, twin: str = "") -> None:
        self.tally.dropped(step.name, verdict.reason, size)
        self.ledger.drop(row, step.number, verdict, twin)

    # ---- filters and edits ----

    def _steps(self, documents: list[Document], rows: list[int]) -> list[Document]:
        documents = list(documents)
        for step in self.job.this.steps:
            self.tally.step(step.name)  # a step that nothing came to stands in the funnel too
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
                    size = self.tokens.size(document, rows[k])
                    self.tally.passed(step.name, size, size)
            for key, places in chosen.items():
                implementation = STEPS[step.kind]
                if isinstance(implementation, Filter):
                    self._filter(step, implementation, configs[key], documents, rows, places)
                else:
                    assert isinstance(implementation, Edit)
                    self._edit(step, implementation, configs[key], documents, rows, places)
        return documents

    def _filter(
        self,
        step: NamedStep,
        how: Filter[Any],
        config: StepConfig,
        documents: list[Document],
        rows: list[int],
        places: list[int],
    ) -> None:
        measured = how.measure([documents[k] for k in places], config)
        self.ledger.score(step.label, [rows[k] for k in places], measured)
        for k, scores in zip(places, measured, strict=True):
            if not self.ledger.alive(rows[k]):
                continue
            verdict = how.judge(scores, config)
            size = self.tokens.size(documents[k], rows[k])
            if verdict.keep:
                self.tally.passed(step.name, size, size)
            else:
                self._drop(step, rows[k], verdict, size)

    def _edit(
        self,
        step: NamedStep,
        how: Edit[Any],
        config: StepConfig,
        documents: list[Document],
        rows: list[int],
        places: list[int],
    ) -> None:
        for k, edited in zip(places, how.edit([documents[k] for k in places], config), strict=True):
            row, before = rows[k], documents[k]
            documents[k] = edited.document
            size = self.tokens.size(before, row)
            if edited.document.language != before.language or edited.document.confidence != before.confidence:
                self.ledger.speaks(row, edited.document.language, edited.document.confidence)
            if edited.verdict.keep and (self.all or self.ledger.alive(row)):
                self.tokens.changed(before, edited.document, row)
            after = self.tokens.size(edited.document, row)
            if self.all:
                self.ledger.edited(step.label, row, after, edited.verdict)
            if edited.counts:
                self.tally.edited(step.name, edited.counts)
                self.ledger.score(step.label, [row], [{name: float(n) for name, n in edited.counts.items()}])
            if not self.ledger.alive(row):
                continue
            if edited.verdict.keep:
                self.tally.passed(step.name, size, after)
            else:
                self._drop(step, row, edited.verdict, size)

    def _config(self, step: NamedStep, language: str) -> StepConfig:
        key = (step.number, language if language in step.config.by_language else "")
        if key not in self._configs:
            self._configs[key] = step.config.for_language(language)
        return self._configs[key]


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
