"""Sources -> filters -> exact deduplication -> corpus, in three steps that can each be killed at any moment.

1. Every task of every source is read, filtered and hashed into `work/TASK/`; `task.json`, written last, ends it.
2. The hashes of all tasks say which documents are the first with their text.
3. Every task's first copies are written to `documents-TASK.jsonl.zst`; then the manifest; then the seal.

A second run does only what is missing and ends with the same bytes. Tasks do not see each other before step 2, so
neither the number of workers nor the order in which they finish changes anything. If the recipe or the input's list
of files changed since a run was cut off, its half-done work is thrown away, with a word.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from puna.core import console
from puna.core.config import Config, as_dict
from puna.core.errors import MissingError, Stopped
from puna.core.files import (
    SEAL,
    atomic_open,
    is_sealed,
    need_free_space,
    read_json,
    remove_temporaries,
    seal,
    write_json,
)
from puna.core.interrupt import StopRequest
from puna.data.corpus import FORMAT, MANIFEST, Corpus, read_records, write_lines
from puna.data.dedup import first_copies, text_hash
from puna.data.document import Document
from puna.data.filters import FilterEntry, judge
from puna.data.pool import default_workers, in_order
from puna.data.sources import SourceEntry, read_task, tasks_of
from puna.data.sources.task import Problem, Task

_TASK = "task.json"
_KEPT_PROBLEMS = 10_000  # of one task, in the quarantine file; all of them are counted


class CurateConfig(Config):
    """What goes into a corpus."""

    sources: tuple[SourceEntry, ...]
    """Where text comes from, `[[sources]]` tables; their order is the corpus's order, and earlier copies win."""
    filters: tuple[FilterEntry, ...] = ()
    """Filters, `[[filters]]` tables, asked in this order."""
    deduplicate: Literal["exact", "no"] = "exact"
    """`exact` keeps the first of equal texts (white space aside)."""
    dropped_samples: int = Field(default=5, ge=0)
    """Dropped documents to write down for each reason of each task."""

    @model_validator(mode="after")
    def _sources_fit_together(self) -> "CurateConfig":
        if not self.sources:  # not a bound of the field: pydantic would say it again for every bad source
            raise ValueError("a corpus needs at least one source, a [[sources]] table")
        twice = [name for name, n in Counter(source.name for source in self.sources).items() if n > 1]
        if twice:
            raise ValueError(f"two sources are called {', '.join(map(repr, twice))}; give each its own name")
        return self


@dataclass(frozen=True)
class CuratePlan:
    """What `curate` would do.

    Attributes:
        tasks: Tasks by source name.
        disk_bytes: Disk needed while it works, about.
    """

    tasks: dict[str, list[Task]]
    disk_bytes: int

    @property
    def n_bytes(self) -> int:
        """Input bytes, estimated for generated text."""
        return sum(task.n_bytes for tasks in self.tasks.values() for task in tasks)

    def rows(self) -> list[tuple[str, int, int, str]]:
        """Source, tasks, parts and size, for a table."""
        return [
            (name, len(tasks), sum(len(t.parts) for t in tasks), console.short_bytes(sum(t.n_bytes for t in tasks)))
            for name, tasks in self.tasks.items()
        ]


def plan(config: CurateConfig) -> CuratePlan:
    """List the work without doing any of it.

    Raises:
        MissingError: A source has nothing to read.
    """
    tasks = {source.name: tasks_of(source) for source in config.sources}
    # work and product are two compressed copies of at most what was read; text shrinks about threefold
    return CuratePlan(tasks, disk_bytes=2 * sum(t.n_bytes for ts in tasks.values() for t in ts) // 3)


def curate(config: CurateConfig, folder: Path | str, *, workers: int | None = None) -> Corpus:
    """Make a corpus, or finish one that was cut off.

    Args:
        config: What goes in.
        folder: Where it goes; its `work/` holds what is half done.
        workers: Processes; None means `min(2, processors)`. The result does not depend on it.

    Returns:
        The sealed corpus.

    Raises:
        MissingError: A source has nothing to read, or no document is left.
        Stopped: Ctrl-C or SIGTERM; the same call goes on from there.
    """
    folder = Path(folder)
    work = folder / "work"
    planned = plan(config)
    recipe = _fingerprint(config, planned)
    if _finished(folder, recipe):
        return Corpus.open(folder)
    _prepare(folder, work, recipe)
    need_free_space(folder, planned.disk_bytes)
    tasks = list(chain.from_iterable(planned.tasks.values()))
    workers = workers or default_workers()
    with StopRequest() as stop:
        todo = [task for task in tasks if not (work / task.name / _TASK).exists()]
        if len(todo) < len(tasks):
            console.say(f"curate: {len(tasks) - len(todo)} of {len(tasks)} tasks were done before, going on")
        _run("curate", partial(_filter_task, config, work), todo, workers, stop)
        records = {task.name: read_json(work / task.name / _TASK) for task in tasks}
        if not any(record["kept"].get("documents") for record in records.values()):
            raise MissingError(_nothing_left(records))
        masks = _first_copies(config, work, tasks)
        writes = [(task, mask) for task, mask in zip(tasks, masks, strict=True) if not _written(folder, task)]
        _run("write", partial(_write_task, folder, config.dropped_samples), writes, workers, stop)
    _finish(config, folder, planned, records, recipe)
    return Corpus.open(folder)


def _run(label: str, work: Any, todo: Sequence[Any], workers: int, stop: StopRequest) -> None:
    total = sum(_task_of(item).n_bytes for item in todo)
    results = in_order(work, todo, workers=workers)
    with console.progress(label, total=total, unit="bytes") as bar, closing(results):
        for item, _ in zip(todo, results, strict=True):
            bar.advance(_task_of(item).n_bytes)
            bar.note(_task_of(item).name)
            if stop.requested:
                raise Stopped("curate stopped; finished tasks are kept. The same command goes on from here.")


def _task_of(item: Task | tuple[Task, Any]) -> Task:
    return item if isinstance(item, Task) else item[0]


# ---- step 1: one task, read and filtered ----


def _filter_task(config: CurateConfig, work: Path, task: Task) -> None:
    source = next(s for s in config.sources if s.name == task.source)
    here = work / task.name
    here.mkdir(parents=True, exist_ok=True)
    remove_temporaries(here)
    read, kept = Counter[str](), Counter[str]()
    dropped: dict[str, Counter[str]] = {}
    problems = Counter[str]()
    quarantine: list[str] = []
    samples: list[str] = []

    def report(problem: Problem) -> None:
        problems[problem.reason] += 1
        if len(quarantine) < _KEPT_PROBLEMS:
            quarantine.append(_line({"source": task.source, **problem.record()}))

    def lines(hashes: Any) -> Iterator[str]:
        for document in read_task(source, task, report):
            _count(read, document)
            verdict = judge(document, config.filters, domain=source.domain)
            if verdict.keep:
                _count(kept, document)
                hashes.write(text_hash(document.text))
                yield document.to_json()
                continue
            counts = dropped.setdefault(verdict.reason, Counter())
            _count(counts, document)
            if counts["documents"] <= config.dropped_samples:
                samples.append(_dropped_line(document, verdict.reason, verdict.value))

    with atomic_open(here / "hashes.bin", "wb") as hashes:
        write_lines(here / "documents.jsonl.zst", lines(hashes))
    write_lines(here / "dropped.jsonl.zst", samples)
    write_lines(here / "quarantine.jsonl.zst", quarantine)
    record = {"read": read, "kept": kept, "dropped": dropped, "problems": problems}
    write_json(here / _TASK, {key: dict(value) for key, value in record.items()})


def _count(counter: Counter[str], document: Document) -> None:
    counter["documents"] += 1
    counter["bytes"] += document.n_bytes


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, separators=(",", ":"))


def _dropped_line(document: Document, reason: str, value: float) -> str:
    return _line({"reason": reason, "value": value, **document.provenance(), "text": document.text})


# ---- steps 2 and 3: first copies ----


def _first_copies(config: CurateConfig, work: Path, tasks: Sequence[Task]) -> list[NDArray[np.bool_]]:
    files = [work / task.name / "hashes.bin" for task in tasks]
    if config.deduplicate == "exact":
        return first_copies(files)
    return [np.ones(path.stat().st_size // 16, dtype=bool) for path in files]


def _documents_name(task: Task) -> str:
    return f"documents-{task.name}.jsonl.zst"


def _written(folder: Path, task: Task) -> bool:
    return (folder / "work" / task.name / "written.json").exists()


def _write_task(folder: Path, n_samples: int, item: tuple[Task, NDArray[np.bool_]]) -> None:
    task, mask = item
    here = folder / "work" / task.name
    kept, duplicates = Counter[str](), Counter[str]()
    samples: list[str] = []

    def lines() -> Iterator[str]:
        for line, first in zip(read_records(here / "documents.jsonl.zst"), mask, strict=True):
            text = line.decode("utf-8")
            document = Document.from_json(text)
            _count(kept if first else duplicates, document)
            if first:
                yield text
            elif duplicates["documents"] <= n_samples:
                samples.append(_dropped_line(document, "duplicate", 1))

    write_lines(folder / _documents_name(task), lines())
    write_lines(here / "duplicates.jsonl.zst", samples)
    if not kept["documents"]:
        (folder / _documents_name(task)).unlink()
    write_json(here / "written.json", {"kept": dict(kept), "duplicates": dict(duplicates)})


# ---- beginning and end ----


def _fingerprint(config: CurateConfig, planned: CuratePlan) -> str:
    values = as_dict(config)
    for source in values["sources"]:
        source.pop("path", None)  # where the input lies is not what it is
    parts = {name: [(task.parts, task.n_bytes) for task in tasks] for name, tasks in planned.tasks.items()}
    return hashlib.sha256(json.dumps([values, parts], sort_keys=True).encode()).hexdigest()


def _finished(folder: Path, recipe: str) -> bool:
    if not (folder / MANIFEST).is_file() or read_json(folder / MANIFEST).get("recipe") != recipe:
        return False
    shutil.rmtree(folder / "work", ignore_errors=True)
    if not is_sealed(folder):
        seal(folder, kind="corpus")
    return True


def _prepare(folder: Path, work: Path, recipe: str) -> None:
    begun = work / "recipe.json"
    if begun.exists() and read_json(begun) == recipe:
        return
    stale = [*folder.glob("documents-*.jsonl.zst"), *folder.glob(".tmp-*")]
    stale += [path for path in (folder / MANIFEST, folder / SEAL) if path.exists()]
    if work.exists() or stale:
        console.say(f"curate: {folder} holds work on another recipe or other input; starting anew")
    shutil.rmtree(work, ignore_errors=True)
    for path in stale:
        path.unlink()
    write_json(begun, recipe)


def _finish(
    config: CurateConfig, folder: Path, planned: CuratePlan, records: dict[str, dict[str, Any]], recipe: str
) -> None:
    tasks = list(chain.from_iterable(planned.tasks.values()))
    work = folder / "work"
    sources: dict[str, Any] = {}
    for source in config.sources:
        mine = planned.tasks[source.name]
        written = [read_json(work / task.name / "written.json") for task in mine]
        reasons = sorted({reason for task in mine for reason in records[task.name]["dropped"]})
        dropped = {r: _sum(records[t.name]["dropped"].get(r, {}) for t in mine) for r in reasons}
        problems = sum((Counter(records[task.name]["problems"]) for task in mine), Counter[str]())
        sources[source.name] = {
            "kind": source.kind,
            "domain": source.domain,
            "read": _sum(records[task.name]["read"] for task in mine),
            "dropped": dropped,
            "duplicates": _sum(w["duplicates"] for w in written),
            "kept": _sum(w["kept"] for w in written),
            "problems": dict(problems),
            "files": [_documents_name(t) for t, w in zip(mine, written, strict=True) if w["kept"]],
        }
    samples = (work / t.name / f"{kind}.jsonl.zst" for t in tasks for kind in ("dropped", "duplicates"))
    write_lines(folder / "dropped.jsonl.zst", (line.decode() for path in samples for line in read_records(path)))
    with atomic_open(folder / "quarantine.jsonl") as file:
        for task in tasks:
            file.writelines(line.decode() + "\n" for line in read_records(work / task.name / "quarantine.jsonl.zst"))
    manifest = {"format": FORMAT, "recipe": recipe, "order": [s.name for s in config.sources], "sources": sources}
    write_json(folder / MANIFEST, manifest)
    shutil.rmtree(work)
    seal(folder, kind="corpus")


def _sum(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total = Counter({"documents": 0, "bytes": 0})
    for count in counts:
        total.update(count)
    return dict(total)


def _nothing_left(records: dict[str, dict[str, Any]]) -> str:
    read = sum(record["read"].get("documents", 0) for record in records.values())
    reasons = Counter[str]()
    for record in records.values():
        reasons.update({reason: counts["documents"] for reason, counts in record["dropped"].items()})
        reasons.update({f"could not be read: {reason}": n for reason, n in record["problems"].items()})
    why = "; ".join(f"{reason} ({n})" for reason, n in reasons.most_common(5)) or "the files hold no text"
    return f"the corpus is empty: {read} documents were read and none is left. Why: {why}. Change filters or sources."


def funnel(corpus: Corpus) -> list[tuple[str, str, int, str]]:
    """Rows of the funnel: source, step, documents, bytes of text."""
    rows: list[tuple[str, str, int, str]] = []
    for name in corpus.sources:
        source = corpus.manifest["sources"][name]
        steps = [("read", source["read"]), *source["dropped"].items()]
        steps += [("duplicate", source["duplicates"]), ("kept", source["kept"])]
        rows += [(name, label, n["documents"], console.short_bytes(n["bytes"])) for label, n in steps if n["documents"]]
        rows += [(name, f"could not be read: {label}", n, "-") for label, n in source["problems"].items()]
    return rows
