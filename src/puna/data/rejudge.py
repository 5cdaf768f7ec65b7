"""Judging anew: when only thresholds changed, stored scores decide and no text is read.

A first pass made with `keep = "all"` holds, for every document that was read, its text, its features and every score.
A pass that differs in thresholds alone is then a new ledger over the same files, which are linked, not copied.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from puna.core.files import read_json, write_json
from puna.data.document import Size
from puna.data.ledger import Ledger
from puna.data.map_task import DONE, Job
from puna.data.passes import NamedStep
from puna.data.sources.task import Task
from puna.data.steps.registry import STEPS
from puna.data.steps.step import KEPT, Edit, Filter, Scores, Verdict
from puna.data.tally import Tally
from puna.data.token_counts import READ
from puna.data.work import link


def find(job: Job, tasks: Sequence[Task], places: Sequence[Path]) -> Path | None:
    """A pass folder whose stored scores fit the job, for every one of these tasks.

    Args:
        job: What is to be done.
        tasks: Its tasks.
        places: `work/` folders to look in.
    """
    if not job.this.scores_key:
        return None
    for place in places:
        for folder in sorted(place.glob(f"pass-{job.this.index}-*")) if place.is_dir() else ():
            if folder.name == job.this.folder:
                continue
            records = [folder / task.name / DONE for task in tasks]
            if all(path.exists() and read_json(path).get("scores_key") == job.this.scores_key for path in records):
                return folder
    return None


def run_task(job: Job, stored: Path, task: Task) -> None:
    """Do a task from another pass's files.

    Args:
        job: What is to be done.
        stored: The folder that `find` gave.
        task: The task.
    """
    old, here = stored / task.name, job.folder(task)
    shutil.rmtree(here, ignore_errors=True)
    here.mkdir(parents=True)
    for path in old.iterdir():
        if path.name not in {DONE, "ledger.parquet"}:
            link(path, here / path.name)
    ledger = Ledger.load(old / "ledger.parquet")
    before = read_json(old / DONE)
    n = len(ledger)
    ledger.columns |= {"step": [0] * n, "reason": ["kept"] * n, "value": [0.0] * n, "twin": [""] * n}
    tally = Tally(job.counter)
    sizes = [Size(n_bytes, _whole(ledger.score_at(READ, row))) for row, n_bytes in enumerate(ledger.columns["bytes"])]
    for step in job.this.steps:
        tally.step(step.name)["edits"] = before["steps"].get(step.name, {}).get("edits", {})
        for row in range(n):
            size = after = sizes[row]
            scores = ledger.scores_of(step.label, row)
            verdict = _verdict(step, scores, ledger, row)
            if isinstance(STEPS[step.kind], Edit) and "bytes" in scores:
                after = sizes[row] = Size(int(scores["bytes"]), _whole(scores.get("tokens")))
            if not ledger.alive(row):
                continue
            if verdict.keep:
                tally.passed(step.name, size, after)
            else:
                tally.dropped(step.name, verdict.reason, size)
                ledger.drop(row, step.number, verdict)
    for row in range(n):
        if ledger.alive(row):
            tally.left(sizes[row])
    ledger.write(here / "ledger.parquet")
    counted = {"steps": tally.steps, "kept": tally.kept}
    write_json(here / DONE, {**before, **counted, "seconds": 0.0, "cpu_seconds": 0.0})


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _verdict(step: NamedStep, scores: Scores, ledger: Ledger, row: int) -> Verdict:
    implementation = STEPS[step.kind]
    if isinstance(implementation, Filter):
        # what was not measured was not the filter's business
        return (
            implementation.judge(scores, step.config.for_language(ledger.columns["language"][row])) if scores else KEPT
        )
    reason = ledger.edits.get(step.label, [])
    if row < len(reason) and reason[row]:
        return Verdict(False, str(reason[row]), scores["value"])
    return KEPT
