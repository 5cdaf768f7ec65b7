"""`puna curate`: sources -> filters -> deduplication -> a sealed corpus, with its funnel printed at the end."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from puna.core import console
from puna.core.run_folder import RunFolder
from puna.data import curate as data
from puna.stages.stage import PlanRow, Stage, StageRecipe

_SHOWN_PROBLEMS = 5


class CurateRecipe(data.CurateConfig, StageRecipe):
    """What goes into a corpus, and where it goes."""

    workers: int | None = None
    """Processes; none means two, or one on a single core. The result does not depend on it."""


def inputs(recipe: CurateRecipe) -> Mapping[str, Path]:
    """The files and folders that the sources name."""
    paths = {f"sources.{i}.path": getattr(source, "path", None) for i, source in enumerate(recipe.sources)}
    return {key: path for key, path in paths.items() if path is not None}


def plan(recipe: CurateRecipe) -> Sequence[PlanRow]:
    """Tasks and sizes by source, and the disk that is needed."""
    planned = data.plan(recipe)
    rows = [(f"source {name}", f"{parts} parts, {size}") for name, _, parts, size in planned.rows()]
    return [*rows, ("disk", console.short_bytes(planned.disk_bytes))]


def run(recipe: CurateRecipe, folder: RunFolder) -> None:
    """Make the corpus and show its funnel."""
    settings = data.CurateConfig(**{name: getattr(recipe, name) for name in data.CurateConfig.model_fields})
    corpus = data.curate(settings, folder.path, workers=recipe.workers)
    console.table(f"corpus {folder.path}", ["source", "step", "documents", "bytes"], data.funnel(corpus))
    quarantine = folder.path / "quarantine.jsonl"
    problems = [json.loads(line) for line in quarantine.read_text(encoding="utf-8").splitlines()]
    for problem in problems[:_SHOWN_PROBLEMS]:
        place = problem["where"] + (f":{problem['line']}" if problem.get("line") else "")
        console.warn(f"could not be read: {place}: {problem['reason']}: {problem['detail']}")
    if len(problems) > _SHOWN_PROBLEMS:
        console.warn(f"{len(problems) - _SHOWN_PROBLEMS} more could not be read; all are in {quarantine}")


STAGE = Stage(verb="curate", recipe=CurateRecipe, inputs=inputs, plan=plan, run=run, neutral=("workers",))
