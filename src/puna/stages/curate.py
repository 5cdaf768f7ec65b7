"""`puna curate`: sources -> filters -> deduplication -> a sealed corpus, with its funnel printed at the end."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from puna.core import console
from puna.core.run_folder import RunFolder
from puna.data import curate as data
from puna.stages.stage import PlanRow, Stage, StageRecipe


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


STAGE = Stage(verb="curate", recipe=CurateRecipe, inputs=inputs, plan=plan, run=run, neutral=("workers",))
