"""Barriers deciding: features of all tasks in, one file of verdicts for each task out.

Barriers that share a pass decide one after the other, each over what the ones before left alive. A decision is written
task by task and ended by `done.json`; one that was cut off is made again from the features, which are still there.
"""

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from puna.core.files import write_json
from puna.data.documents import ArrowWriter, list_column, read_arrow
from puna.data.ledger import alive_and_stored
from puna.data.passes import NamedStep, Pass
from puna.data.pool import Executor
from puna.data.steps.registry import STEPS
from puna.data.steps.step import Barrier, Decision, Part, Question, StepConfig

DONE = "done.json"
_SCHEMA = pa.schema(
    [
        ("keep", pa.bool_()),
        ("reason", pa.string()),
        ("value", pa.float64()),
        ("twin", pa.string()),
        ("cut", pa.large_list(pa.int64())),
        ("metadata", pa.string()),
    ]
)


def decide(this: Pass, work: Path, names: Sequence[str], run: Executor) -> None:
    """Let every barrier of a pass decide, those that did not yet.

    Args:
        this: The pass; all its tasks are done.
        work: The `work/` folder.
        names: Names of all tasks, in the corpus's order.
        run: Applies functions to items elsewhere.
    """
    if not this.barriers:
        return
    here = work / this.folder
    alive = {name: alive_and_stored(here / name / "ledger.parquet") for name in names}
    for place, barrier in enumerate(this.barriers):
        folder = here / this.decision_folder(place)
        if not (folder / DONE).exists():
            _decide_one(barrier, here, folder, alive, run)
        for name, mask in alive.items():
            decision = load_decision(folder, name)
            if decision is not None:
                mask &= decision.keep | ~_applies(here / name / "index.arrow", barrier.config)


def _decide_one(
    barrier: NamedStep, here: Path, folder: Path, alive: dict[str, NDArray[np.bool_]], run: Executor
) -> None:
    how = STEPS[barrier.kind]
    assert isinstance(how, Barrier)
    shutil.rmtree(folder, ignore_errors=True)
    scratch, report = folder / "scratch", folder / "report"
    for path in (scratch, report):
        path.mkdir(parents=True)
    start = time.perf_counter()
    parts = []
    for name, mask in alive.items():
        if not len(mask):
            continue
        index = here / name / "index.arrow"
        chosen = mask & _applies(index, barrier.config)
        parts.append(Part(name, here / name / f"features-{barrier.name}.arrow", index, chosen))
    question = Question(barrier.config, parts, scratch, report, run)
    dropped = 0
    if parts:
        for part, decision in zip(parts, how.decide(question), strict=True):
            _write(folder / f"{part.name}.arrow", part, decision, barrier)
            dropped += int((part.alive & ~decision.keep).sum())
    shutil.rmtree(scratch)
    write_json(folder / DONE, {"dropped": dropped, "seconds": round(time.perf_counter() - start, 3)})


def _applies(index: Path, config: StepConfig) -> NDArray[np.bool_]:
    """Which documents of a task are a barrier's business."""
    table = read_arrow(index)
    mask = np.ones(table.num_rows, dtype=bool)
    for column, wanted in (("domain", config.domains), ("language", config.languages)):
        if wanted:
            found = pc.call_function("is_in", [table.column(column)], pc.SetLookupOptions(pa.array(list(wanted))))
            mask &= found.to_numpy(zero_copy_only=False).astype(bool)
    return mask


def _write(path: Path, part: Part, decision: Decision, barrier: NamedStep) -> None:
    n = len(part.alive)
    for what in (decision.keep, decision.reasons, decision.values):
        assert len(what) == n, f"{barrier.name}: {len(what)} answers for the {n} documents of {part.name}"
    assert decision.cuts is None or STEPS[barrier.kind].cuts, f"{barrier.name} cuts text but does not say so"  # type: ignore[union-attr]
    gone = part.alive & ~decision.keep
    cuts = decision.cuts
    table = pa.table(
        {
            "keep": pa.array(~gone),
            "reason": pa.array([r if g else None for r, g in zip(decision.reasons, gone, strict=True)], pa.string()),
            "value": pa.array(decision.values, pa.float64()),
            "twin": pa.array(decision.twins if decision.twins is not None else [""] * n, pa.string()),
            "cut": pa.array(
                [None if c is None or not len(c) else np.asarray(c).reshape(-1) for c in cuts] if cuts else [None] * n,
                pa.large_list(pa.int64()),
            ),
            "metadata": pa.array(
                [json.dumps(dict(m), sort_keys=True) if m else None for m in decision.metadata]
                if decision.metadata
                else [None] * n,
                pa.string(),
            ),
        },
        _SCHEMA,
    )
    with ArrowWriter(path) as writer:
        writer.add(table)


@dataclass(frozen=True)
class Loaded:
    """A task's decision as it was written; one entry a stored document."""

    keep: NDArray[np.bool_]
    reasons: list[str | None]
    values: list[float]
    twins: list[str]
    cuts: list[NDArray[np.int64] | None]
    metadata: list[str | None]

    def slice(self, at: int, n: int) -> "Loaded":
        """The entries of `n` documents from `at` on."""
        span = slice(at, at + n)
        return Loaded(
            self.keep[span], self.reasons[span], self.values[span], self.twins[span], self.cuts[span],
            self.metadata[span],
        )  # fmt: skip


def load_decision(folder: Path, task: str) -> Loaded | None:
    """A barrier's decision about a task; None when the task had no documents."""
    path = folder / f"{task}.arrow"
    if not path.exists():
        return None
    table = read_arrow(path)
    values, offsets = list_column(table, "cut")
    cuts = [values[a:b].reshape(-1, 2) if b > a else None for a, b in _pairs(offsets)]
    return Loaded(
        table.column("keep").to_numpy(zero_copy_only=False).astype(bool),
        table.column("reason").to_pylist(),
        table.column("value").to_pylist(),
        table.column("twin").to_pylist(),
        cuts,
        table.column("metadata").to_pylist(),
    )


def _pairs(offsets: NDArray[Any]) -> Iterator[tuple[int, int]]:
    return zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
