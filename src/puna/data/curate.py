"""Sources -> steps -> a sealed corpus, in passes of tasks that can each be killed at any moment.

    for each pass:  every task of every source        map_task.py   in processes, on Ray, or as a Slurm array
                    then each barrier after it        decisions.py  over features, not over text
    then:           funnel, quarantine, data card, seal

A second run does only what is missing and ends with the same bytes. Tasks never see each other but through a barrier's
decision, and all order is that of the recipe, so neither the number of workers nor the machine changes anything. If
the recipe or the input changed since a run was cut off, what still fits is used and the rest is thrown away.
"""

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from puna.core import console
from puna.core.config import Config
from puna.core.errors import MissingError, Stopped, UsageError
from puna.core.files import atomic_open, need_free_space, read_json
from puna.core.interrupt import StopRequest
from puna.data import decisions, language_codes, rejudge
from puna.data.corpus import Corpus
from puna.data.funnel import make_manifest, nothing_left
from puna.data.lines import read_records
from puna.data.map_task import DONE, Job, run_task
from puna.data.passes import Pass, cut, source_key
from puna.data.pool import Executor, executor
from puna.data.sources import SourceEntry, tasks_of
from puna.data.sources.jsonl import RecordFields
from puna.data.sources.task import Task
from puna.data.steps.registry import StepEntry
from puna.data.token_counts import TokenCounter
from puna.data.work import WORK, Work, link

PRODUCTS = ("documents", "ledger", "dropped", "reports", "quarantine.jsonl", "README.md", "report.html")

_PAGES_BYTES = 32 << 10  # page, card, recipe, records
_TASK_BYTES = 8 << 10  # of a task and pass: headers and footers of its Parquet files, the ledger's included


class CurateConfig(Config):
    """What goes into a corpus."""

    sources: tuple[SourceEntry, ...]
    """Where text comes from, `[[sources]]` tables; their order is the corpus's order, and earlier copies win."""
    steps: tuple[StepEntry, ...] = ()
    """Filters, edits and barriers, `[[steps]]` tables, in this order."""
    keep: Literal["samples", "all"] = "samples"
    """Texts of dropped documents that stay: a few for each reason, or all. With `all` every filter measures every
    document, and thresholds can be changed later without reading any text again."""
    dropped_samples: int = Field(default=5, ge=0)
    """Dropped documents to keep for each reason of each task."""
    tokenizer: Path | None = None
    """Tokenizer folder, `tokenizer.json` or ranks file that counts tokens at every step; without one they are estimated
    from bytes."""
    token_fraction: float = Field(default=1.0, gt=0, le=1)
    """Part of the documents whose tokens are counted, chosen by their ids; below 1 figures have a standard error."""

    @model_validator(mode="after")
    def _sources_fit_together(self) -> Self:
        if not self.sources:  # not a bound of the field: pydantic would say it again for every bad source
            raise ValueError("a corpus needs at least one source, a [[sources]] table")
        twice = [name for name, n in Counter(source.name for source in self.sources).items() if n > 1]
        if twice:
            raise ValueError(f"two sources are called {', '.join(map(repr, twice))}; give each its own name")
        return self

    @model_validator(mode="after")
    def _a_fraction_has_a_tokenizer(self) -> Self:
        if self.token_fraction < 1 and self.tokenizer is None:
            raise ValueError(f"token_fraction is {self.token_fraction:g}, and no tokenizer counts: set tokenizer")
        return self

    @model_validator(mode="after")
    def _steps_find_what_they_name(self) -> Self:
        """A typing error in `domains`, `languages` or `by_language` would switch a step off without a word."""
        domains = sorted({source.domain for source in self.sources})
        records = any(isinstance(source, RecordFields) for source in self.sources)  # theirs may be any words
        own = {source.language for source in self.sources}
        for i, step in enumerate(self.steps):
            if strange := sorted(set(step.domains) - set(domains)):
                raise ValueError(
                    f"steps.{i}.domains names {strange[0]!r}, which no source has; domains are: {', '.join(domains)}"
                )
            for key, named in (("languages", step.languages), ("by_language", tuple(step.by_language))):
                for language in named:
                    if language not in own and not language_codes.may_be(language, any_words=records):
                        raise ValueError(f"steps.{i}.{key} names {language!r}. {language_codes.hint(language)}")
        return self


@dataclass(frozen=True)
class CuratePlan:
    """What `curate` would do.

    Attributes:
        tasks: Tasks by source name.
        passes: The passes over the text.
        disk_bytes: Disk needed while it works, about.
        counter: What counts tokens, None for nothing.
    """

    tasks: dict[str, list[Task]]
    passes: list[Pass]
    disk_bytes: int
    counter: TokenCounter | None = None

    @property
    def all_tasks(self) -> list[Task]:
        """Every task, in the corpus's order."""
        return list(chain.from_iterable(self.tasks.values()))

    @property
    def n_bytes(self) -> int:
        """Input bytes, estimated for generated text."""
        return sum(task.n_bytes for task in self.all_tasks)

    def rows(self) -> list[tuple[str, int, int, str]]:
        """Source, tasks, parts and size, for a table."""
        return [
            (name, len(tasks), sum(len(t.parts) for t in tasks), console.short_bytes(sum(t.n_bytes for t in tasks)))
            for name, tasks in self.tasks.items()
        ]


def plan(config: CurateConfig) -> CuratePlan:
    """List the work without doing any of it.

    Raises:
        MissingError: A source has nothing to read, or the tokenizer is not there.
    """
    counter = TokenCounter.open(config.tokenizer, config.token_fraction) if config.tokenizer else None
    tasks = {source.name: tasks_of(source) for source in config.sources}
    passes = cut(
        config.steps,
        source_key=source_key(config.sources, tasks),
        keep_all=config.keep == "all",
        samples=config.dropped_samples,
        counted=counter.record if counter else None,
    )
    # work and product are two compressed copies of at most what was read; text shrinks about threefold
    disk_bytes = 2 * sum(t.n_bytes for ts in tasks.values() for t in ts) // 3
    disk_bytes += _PAGES_BYTES + _TASK_BYTES * (len(passes) + 1) * sum(map(len, tasks.values()))
    return CuratePlan(tasks, passes, disk_bytes, counter)


def curate(
    config: CurateConfig,
    folder: Path | str,
    *,
    workers: int | None = None,
    engine: Literal["local", "ray"] = "local",
    reuse: Path | None = None,
    finishing: Callable[[Corpus], None] | None = None,
) -> Corpus:
    """Make a corpus, or finish one that was cut off.

    Args:
        config: What goes in.
        folder: Where it goes; its `work/` holds what is half done.
        workers: Tasks at a time; None means `min(2, processors)`. The result does not depend on it.
        engine: Processes of this machine, or a Ray cluster.
        reuse: Folder of another corpus made with `keep = "all"` whose stored scores are used where they fit.
        finishing: Called with the finished but unsealed corpus, to write pages into it.

    Returns:
        The sealed corpus.

    Raises:
        MissingError: A source has nothing to read, or no document is left.
        Stopped: Ctrl-C or SIGTERM; the same call goes on from there.
    """
    flow = _Flow(config, Path(folder), reuse)
    if flow.work.finished():
        return flow.corpus()
    flow.begin()
    with executor(engine, workers, flow.planned.n_bytes) as run, StopRequest() as stop:
        for this in flow.planned.passes:
            flow.map(this, flow.planned.all_tasks, run, stop)
            flow.decide(this, run)
    flow.finish(finishing)
    return flow.corpus()


def curate_part(config: CurateConfig, folder: Path | str, *, index: int, part: int, parts: int) -> None:
    """Do one share of one pass in this process: what a job of a Slurm array runs.

    Args:
        config: What goes into the corpus.
        folder: Where it goes; all jobs see it under the same path.
        index: The pass, from 0.
        part: Which share, from 0.
        parts: How many shares.

    Raises:
        UsageError: There is no such pass or part, or the pass before it is not finished.
    """
    flow = _Flow(config, Path(folder), None)
    flow.begin()
    if not 0 <= index < len(flow.planned.passes) or not 0 <= part < parts:
        raise UsageError(
            f"there is no part {part} of {parts} in pass {index}; passes are 0 to {len(flow.planned.passes) - 1}"
        )
    with executor("local", 1) as run, StopRequest() as stop:
        for this in flow.planned.passes[:index]:
            if left := [task for task in flow.planned.all_tasks if not flow.job(this).done(task)]:
                raise UsageError(
                    f"pass {this.index} is not finished: {len(left)} tasks are left, {left[0].name} is one"
                )
            flow.decide(this, run)
        flow.map(flow.planned.passes[index], flow.planned.all_tasks[part::parts], run, stop)


class _Flow:
    """One corpus being made."""

    def __init__(self, config: CurateConfig, folder: Path, reuse: Path | None) -> None:
        self.config, self.folder, self.reuse = config, folder, reuse
        self.planned = plan(config)
        keep = config.keep == "all"
        self.work = Work(folder, "corpus", self.planned.passes[-1].key, PRODUCTS, "curate", keep=keep)

    def begin(self) -> None:
        current = {this.folder for this in self.planned.passes}
        keep_all = self.config.keep == "all"

        def stale(work: Path) -> list[Path]:
            return [] if keep_all else [path for path in work.glob("pass-*") if path.name not in current]

        self.work.begin(stale)
        need_free_space(self.folder, self.planned.disk_bytes)

    def job(self, this: Pass) -> Job:
        before = self.planned.passes[this.index - 1] if this.index else None
        sources = {source.name: source for source in self.config.sources}
        keep_all = self.config.keep == "all"
        samples, counter = self.config.dropped_samples, self.planned.counter
        return Job(this, before, self.work.path, sources, keep_all, samples, counter)

    def map(self, this: Pass, tasks: Sequence[Task], run: Executor, stop: StopRequest) -> None:
        """Do what is missing of a pass."""
        job, start = self.job(this), time.perf_counter()
        todo = [task for task in tasks if not job.done(task)]
        if len(todo) < len(tasks):
            console.say(f"curate: {len(tasks) - len(todo)} of {len(tasks)} tasks of pass {this.index} were done before")
        places = [self.work.path, *([self.reuse / WORK] if self.reuse else [])]
        if todo and (stored := rejudge.find(job, todo, places)):
            console.say(f"curate: {len(todo)} tasks are judged anew by stored scores; their sources are not read again")
            work = partial(rejudge.run_task, job, stored)
        else:
            work = partial(run_task, job)
        results = run(work, todo)
        with (
            console.progress(f"pass {this.index}", total=sum(t.n_bytes for t in todo), unit="bytes") as bar,
            closing(results),
        ):
            for task, _ in zip(todo, results, strict=True):
                bar.advance(task.n_bytes)
                bar.note(task.name)
                if stop.requested:
                    raise Stopped("curate stopped; finished tasks are kept. The same command goes on from here.")
        self._note("pass", this.index, tasks=len(todo), seconds=time.perf_counter() - start)

    def decide(self, this: Pass, run: Executor) -> None:
        """Let the barriers after a pass decide."""
        start = time.perf_counter()
        if this.barriers:
            decisions.decide(this, self.work.path, [task.name for task in self.planned.all_tasks], run)
            self._note("barriers", this.index, tasks=len(this.barriers), seconds=time.perf_counter() - start)

    def _note(self, kind: str, index: int, *, tasks: int, seconds: float) -> None:
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "pass": index, "tasks": tasks, "seconds": round(seconds, 3)}) + "\n")

    def finish(self, finishing: Callable[[Corpus], None] | None) -> None:
        tasks = self.planned.all_tasks
        records = {
            this.index: {task.name: read_json(self.job(this).folder(task) / DONE) for task in tasks}
            for this in self.planned.passes
        }
        counted = self.planned.counter.record if self.planned.counter else None
        manifest = make_manifest(self.config.sources, self.config.steps, self.planned.tasks, records, counted)
        last = self.job(self.planned.passes[-1])
        for task in tasks:
            for what in ("documents", "ledger", "dropped"):
                if (path := last.folder(task) / f"{what}.parquet").exists():
                    link(path, self.folder / what / f"{task.name}.parquet")
        self._write_quarantine(tasks)
        self._copy_reports()
        if finishing:
            finishing(Corpus(self.folder, manifest))
        self.work.finish(manifest)

    def corpus(self) -> Corpus:
        """The finished corpus; an empty one stays to be looked at, and is no product."""
        corpus = Corpus.open(self.folder)
        if not any(source["kept"]["documents"] for source in corpus.manifest["sources"].values()):
            raise MissingError(nothing_left(corpus))
        return corpus

    def _write_quarantine(self, tasks: Sequence[Task]) -> None:
        first = self.job(self.planned.passes[0])
        with atomic_open(self.folder / "quarantine.jsonl") as file:
            for task in tasks:
                path = first.folder(task) / "quarantine.jsonl.zst"
                file.writelines(line.decode() + "\n" for line in read_records(path))

    def _copy_reports(self) -> None:
        shutil.rmtree(self.folder / "reports", ignore_errors=True)
        for this in self.planned.passes:
            for place, barrier in enumerate(this.barriers):
                report = self.work.path / this.folder / this.decision_folder(place) / "report"
                if any(report.iterdir()):
                    shutil.copytree(report, self.folder / "reports" / barrier.name)
