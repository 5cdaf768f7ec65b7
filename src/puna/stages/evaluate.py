"""`puna eval`: a model and tasks in; every answer, every figure with its n and interval out."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field, PositiveInt

from puna.core import console
from puna.core.files import fingerprint
from puna.core.run_folder import RunFolder
from puna.evaluate.tasks.config import TaskConfig
from puna.stages.stage import PlanRow, Stage, StageRecipe


class EvaluateRecipe(StageRecipe):
    """A model and what it is asked."""

    model: Path
    """The checkpoint, or the run folder that holds it."""
    tasks: tuple[TaskConfig, ...] = Field(min_length=1)
    """What is asked, `[[tasks]]` tables."""
    batch_size: PositiveInt = 64
    """Items asked at once."""
    cache_tokens: PositiveInt = 65_536
    """Room of the kv cache, in tokens over all answers that are written together."""


def inputs(recipe: EvaluateRecipe) -> Mapping[str, Path]:
    """The model and the tasks' files."""
    files = {f"tasks.{i}.{key}": getattr(task, key) for i, task in enumerate(recipe.tasks) for key in ("path", "shots")}
    return {"model": recipe.model, **{key: path for key, path in files.items() if path is not None and path.exists()}}


def plan(recipe: EvaluateRecipe) -> Sequence[PlanRow]:
    """How many items each task has."""
    from puna.evaluate.tasks.config import build_all

    built, skipped = build_all(recipe.tasks)
    rows = [(f"task {task.name}", f"{len(task.items)} items, {task.n_shot} shots") for task in built]
    return rows + [(f"task {name}", f"left out: {why}") for name, why in skipped.items()]


def run(recipe: EvaluateRecipe, folder: RunFolder) -> None:
    """Ask, count, and show the table."""
    from puna.evaluate.report import COLUMNS, table_rows
    from puna.evaluate.run import evaluate
    from puna.evaluate.tasks.config import build_all
    from puna.infer.engine import Engine

    built, skipped = build_all(recipe.tasks)
    engine = Engine.load(recipe.model, max_batch=recipe.batch_size, cache_tokens=recipe.cache_tokens)
    results = evaluate(
        engine,
        built,
        folder.path,
        batch_size=recipe.batch_size,
        model=fingerprint(recipe.model),
        skipped=skipped,
    )
    console.table(f"scores of {recipe.model}", COLUMNS, table_rows(results))
    for name, why in skipped.items():
        console.warn(f"task {name} was left out: {why}")


STAGE = Stage(
    verb="eval", recipe=EvaluateRecipe, inputs=inputs, plan=plan, run=run, neutral=("batch_size", "cache_tokens")
)
