"""`puna sample`: rejection sampling. Questions that can be checked in; fine-tuning rows and preference pairs out."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from puna.core import console
from puna.core.files import fingerprint
from puna.core.run_folder import RunFolder
from puna.post.rejection import RejectionConfig
from puna.stages.exercise_data import ExerciseConfig, tasks
from puna.stages.stage import PlanRow, Stage, StageRecipe


class SampleRecipe(StageRecipe):
    """A model, the questions it answers several times, and what is kept."""

    model: Path
    """The model that answers."""
    exercises: ExerciseConfig = ExerciseConfig()
    """The questions: exercises of the train split, whose answers can be checked."""
    sampling: RejectionConfig = RejectionConfig()
    """How answers are drawn, and what becomes of them."""
    cache_tokens: int = 65_536
    """Room of the kv cache, in tokens over all answers that are written together."""
    max_batch: int = 128
    """Most answers written together."""


def inputs(recipe: SampleRecipe) -> Mapping[str, Path]:
    """The model."""
    return {"model": recipe.model}


def plan(recipe: SampleRecipe) -> Sequence[PlanRow]:
    """How much is drawn."""
    answers = recipe.exercises.n * recipe.sampling.samples_per_task
    return [("answers", f"{answers:,}: {recipe.sampling.samples_per_task} to each of {recipe.exercises.n:,} questions")]


def run(recipe: SampleRecipe, folder: RunFolder) -> None:
    """Draw, verify, keep."""
    from puna.exercises.verify import verify
    from puna.infer.engine import Engine
    from puna.post.rejection import reject

    engine = Engine.load(recipe.model, cache_tokens=recipe.cache_tokens, max_batch=recipe.max_batch)
    result = reject(
        tasks(recipe.exercises),
        engine,
        lambda task, answer: verify(task.payload, answer),
        recipe.sampling,
        folder.path,
        model_fingerprint=fingerprint(recipe.model),
    )
    rates = [(f"pass@{k}", f"{value:.1%}") for k, value in result.statistics.pass_at.items()]
    counts = [
        ("fine-tuning rows", result.n_imitations),
        ("preference pairs", result.n_pairs),
        ("of them with the reference answer as chosen", result.n_reference_pairs),
    ]
    console.table(f"samples {folder.path}", ["what", "value"], [*rates, *counts])


STAGE = Stage(
    verb="sample", recipe=SampleRecipe, inputs=inputs, plan=plan, run=run, neutral=("cache_tokens", "max_batch")
)
