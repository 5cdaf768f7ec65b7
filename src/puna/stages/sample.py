"""`puna sample`: rejection sampling. Questions that can be checked in; fine-tuning rows and preference pairs out."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field, model_validator

from puna.core import console
from puna.core.files import fingerprint
from puna.core.run_folder import RunFolder
from puna.post.rejection import RejectionConfig
from puna.stages.checkable import CodeConfig, check_files, code_tasks, code_verifier
from puna.stages.exercise_data import ExerciseConfig, prompt_tasks, tasks, verify_exercise
from puna.stages.stage import PlanRow, Stage, StageRecipe


class SampleRecipe(StageRecipe):
    """A model, the questions it answers several times, and what is kept."""

    model: Path
    """The model that answers."""
    exercises: ExerciseConfig = ExerciseConfig()
    """The questions: exercises of the train split, whose answers can be checked."""
    code: CodeConfig | None = None
    """Programming problems to answer instead: their programs are run against their tests."""
    prompts: tuple[Path, ...] = ()
    """JSONL files of dialogs to answer instead; no verifier can check them, so they need a reward model."""
    skip: int = Field(default=0, ge=0)
    """Prompts of the files to pass over; beyond the end it goes on from the beginning."""
    limit: int | None = Field(default=None, ge=1)
    """Most prompts of the files to answer."""
    verify: bool = True
    """Let exercises' verifier judge the answers; false leaves it to the reward model alone."""
    reward_model: Path | None = None
    """A model made by `puna rm` that scores every answer; `sampling.selection` and `sampling.best_share` use it."""
    sampling: RejectionConfig = RejectionConfig()
    """How answers are drawn, and what becomes of them."""
    cache_tokens: int = 65_536
    """Room of the kv cache, in tokens over all answers that are written together."""
    max_batch: int = 128
    """Most answers written together."""

    @model_validator(mode="after")
    def _asks_one_thing(self) -> "SampleRecipe":
        if self.code is not None and self.prompts:
            raise ValueError("give [code] or prompts, not both: their answers are judged differently")
        return self


def inputs(recipe: SampleRecipe) -> Mapping[str, Path]:
    """The models and the files of prompts."""
    named = {"model": recipe.model} | ({"reward_model": recipe.reward_model} if recipe.reward_model else {})
    files = {f"code.files.{i}": path for i, path in enumerate(recipe.code.files if recipe.code else ())}
    return named | files | {f"prompts.{i}": path for i, path in enumerate(recipe.prompts)}


def plan(recipe: SampleRecipe) -> Sequence[PlanRow]:
    """How much is drawn."""
    check_files(recipe.prompts, recipe.code)
    if recipe.code:
        return [("answers", f"{recipe.sampling.samples_per_task} to each problem of {len(recipe.code.files)} files")]
    if recipe.prompts:
        return [("answers", f"{recipe.sampling.samples_per_task} to each prompt of {len(recipe.prompts)} files")]
    answers = recipe.exercises.n * recipe.sampling.samples_per_task
    return [("answers", f"{answers:,}: {recipe.sampling.samples_per_task} to each of {recipe.exercises.n:,} questions")]


def run(recipe: SampleRecipe, folder: RunFolder) -> None:
    """Draw, verify, keep."""
    from puna.infer.engine import Engine
    from puna.post.rejection import Verifier, reject
    from puna.post.reward import Scorer
    from puna.stages.ppo import score_model

    engine = Engine.load(recipe.model, cache_tokens=recipe.cache_tokens, max_batch=recipe.max_batch)
    verifier: Verifier | None = verify_exercise if recipe.verify else None
    if recipe.code is not None:
        asked, verifier = code_tasks(recipe.code), code_verifier(recipe.code)
    elif recipe.prompts:
        asked, verifier = prompt_tasks(recipe.prompts, skip=recipe.skip, limit=recipe.limit), None
    else:
        asked = tasks(recipe.exercises)
    scorer = Scorer(score_model(recipe.reward_model), engine.tokenizer) if recipe.reward_model else None
    result = reject(
        asked,
        engine,
        verifier,
        recipe.sampling,
        folder.path,
        scores=scorer.texts if scorer else None,
        model_fingerprint=fingerprint(recipe.model),
        scores_fingerprint=fingerprint(recipe.reward_model) if recipe.reward_model else "",
    )
    rates = [(f"pass@{k}", f"{value:.1%}") for k, value in result.statistics.pass_at.items()]
    if not rates:
        rates = [("finished, verified by nothing", f"{1 - result.statistics.unfinished:.1%} of the answers")]
    rates += [(f"best score of {k}", f"{value:.3f}") for k, value in result.statistics.best_of.items()]
    counts = [
        ("fine-tuning rows", result.n_imitations),
        ("preference pairs", result.n_pairs),
        ("of them with the reference answer as chosen", result.n_reference_pairs),
    ]
    console.table(f"samples {folder.path}", ["what", "value"], [*rates, *counts])


STAGE = Stage(
    verb="sample",
    recipe=SampleRecipe,
    inputs=inputs,
    plan=plan,
    run=run,
    neutral=("cache_tokens", "max_batch", "code.sandbox.workers"),
)
