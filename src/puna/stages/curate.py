"""`puna curate`: sources -> filters, edits, barriers -> a sealed corpus, with its funnel printed at the end."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from puna.core import console
from puna.core.run_folder import RunFolder
from puna.data import curate as data
from puna.data.places import is_remote
from puna.stages.stage import PlanRow, Stage, StageRecipe

_SHOWN_PROBLEMS = 5


class CurateRecipe(data.CurateConfig, StageRecipe):
    """What goes into a corpus, and where it goes."""

    workers: int | None = None
    """Tasks at a time; none means two, or one on a single core. The result does not depend on it."""
    engine: Literal["local", "ray"] = "local"
    """Where tasks run: processes of this machine, or a Ray cluster. The result does not depend on it."""
    reuse: Path | None = None
    """Folder of an earlier corpus made with keep = "all": where only thresholds changed since, its scores are judged
    anew and no text is read."""


def settings(recipe: CurateRecipe) -> data.CurateConfig:
    """The part of the recipe that decides the corpus."""
    values: dict[str, Any] = {name: getattr(recipe, name) for name in data.CurateConfig.model_fields}
    values["steps"] = tuple(map(_with_opener, recipe.steps))
    return data.CurateConfig(**values)


_OPENERS = {"semantic": "puna.stages.embedder:open_checkpoint", "quality": "puna.stages.quality_network:open_network"}
"""Who opens models for steps of `data`, which knows no torch."""


def _with_opener(step: Any) -> Any:
    opener = _OPENERS.get(getattr(step, "kind", ""))
    return step.model_copy(update={"opener": opener}) if opener and not step.opener else step


def inputs(recipe: CurateRecipe) -> Mapping[str, Path]:
    """The files and folders that sources and steps name; remote ones are not looked at."""
    found: dict[str, Path] = {}
    for group, entries in (("sources", recipe.sources), ("steps", recipe.steps)):
        for i, entry in enumerate(entries):
            for name in type(entry).model_fields:
                value: Any = getattr(entry, name)
                if name == "path" and isinstance(value, str) and not is_remote(value):
                    value = Path(value)
                if isinstance(value, Path):
                    found[f"{group}.{i}.{name}"] = value
    return found


def plan(recipe: CurateRecipe) -> Sequence[PlanRow]:
    """Tasks and sizes by source, the passes over the text, and the disk that is needed."""
    planned = data.plan(settings(recipe))
    rows = [(f"source {name}", f"{tasks} tasks, {parts} parts, {size}") for name, tasks, parts, size in planned.rows()]
    for this in planned.passes:
        barriers = ", ".join(b.kind for b in this.barriers)
        then = f"; then {barriers}" if barriers else "; then the corpus"
        rows.append((f"pass {this.index}", (", ".join(step.kind for step in this.steps) or "apply") + then))
    return [*rows, ("disk", console.short_bytes(planned.disk_bytes))]


def run(recipe: CurateRecipe, folder: RunFolder) -> None:
    """Make the corpus and show its funnel."""
    from puna.data.funnel import funnel

    corpus = data.curate(
        settings(recipe), folder.path, workers=recipe.workers, engine=recipe.engine, reuse=recipe.reuse
    )
    columns = ["step", "documents", "bytes", "tokens, about", "top reasons"]
    console.table(f"corpus {folder.path}", columns, funnel(corpus))
    quarantine = folder.path / "quarantine.jsonl"
    problems = [json.loads(line) for line in quarantine.read_text(encoding="utf-8").splitlines()]
    for problem in problems[:_SHOWN_PROBLEMS]:
        place = problem["where"] + (f":{problem['line']}" if problem.get("line") else "")
        console.warn(f"could not be read: {place}: {problem['reason']}: {problem['detail']}")
    if len(problems) > _SHOWN_PROBLEMS:
        console.warn(f"{len(problems) - _SHOWN_PROBLEMS} more could not be read; all are in {quarantine}")


STAGE = Stage(
    verb="curate", recipe=CurateRecipe, inputs=inputs, plan=plan, run=run, neutral=("workers", "engine", "reuse")
)
