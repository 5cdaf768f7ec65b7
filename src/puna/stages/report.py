"""`puna report`: the run folders of a whole way in, one self-contained HTML page and its figures as JSON out."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from puna.core import console, files
from puna.core.config import Config
from puna.core.run_folder import RunFolder
from puna.stages.page import learning, sections
from puna.stages.page.html import document
from puna.stages.stage import Stage, StageRecipe

PAGE = "report.html"


class ModelEntry(Config):
    """One model on the way, in the order in which they were made."""

    key: str
    """Its key in the figures: `base`."""
    label: str
    """Its name on the page: `base, 3-shot`."""
    run: Path
    """The training run that made it."""
    scores: Path
    """Its evaluation run."""


class ReportRecipe(StageRecipe):
    """Which runs the page tells about."""

    title: str = "A model, the whole way"
    """Heading of the page."""
    corpus: Path
    """The corpus, from `puna curate`."""
    tokenizer: Path
    """The tokenizer."""
    shards: Path
    """The token shards."""
    samples: Path | None = None
    """The rejection-sampling run, when there was one."""
    reward_model: Path | None = None
    """The reward model's run, when there was one."""
    models: tuple[ModelEntry, ...] = Field(min_length=1)
    """The models, `[[models]]` tables."""
    task: str = "exercises"
    """The task whose scores are compared."""
    compared_with: str = ""
    """Key of a model that the last one is compared with, item by item, beside its predecessor."""
    shown_answers: int = 12
    """Questions on the page with every model's answer."""
    summary: Path
    """JSON file that receives the scores under `exercises`; its other keys are kept."""


def inputs(recipe: ReportRecipe) -> Mapping[str, Path]:
    """All run folders."""
    runs: dict[str, Path | None] = {"corpus": recipe.corpus, "tokenizer": recipe.tokenizer, "shards": recipe.shards}
    runs |= {"samples": recipe.samples, "reward_model": recipe.reward_model}
    for index, model in enumerate(recipe.models):
        runs |= {f"models.{index}.run": model.run, f"models.{index}.scores": model.scores}
    return {key: path for key, path in runs.items() if path is not None}


def run(recipe: ReportRecipe, folder: RunFolder) -> None:
    """Read every run, write the page and the summary."""
    models = [sections.read_model(m.key, m.label, m.run, m.scores, task=recipe.task) for m in recipe.models]
    rewards = learning.rewards(models)
    parts = [
        sections.scores(models, compared_with=recipe.compared_with),
        sections.losses(models),
        sections.answers(models, recipe.shown_answers),
        sections.funnel(recipe.corpus, recipe.shards),
        sections.tokenizer(recipe.tokenizer, recipe.corpus),
        *([learning.sampling(recipe.samples)] if recipe.samples else []),
        *([learning.reward_model(recipe.reward_model)] if recipe.reward_model else []),
        *([rewards] if rewards else []),
        sections.speed(models),
        sections.lineage(models[-1].run),
        sections.talk(models[-1].run),
    ]
    page = document(recipe.title, sections.lead(models), sections.headline(models), parts)
    with files.atomic_open(folder.path / PAGE) as file:
        file.write(page)
    summary = files.read_json(recipe.summary) if recipe.summary.is_file() else {}
    files.write_json(recipe.summary, {**summary, "exercises": {m.key: m.summary() for m in models}})
    console.say(f"report: {folder.path / PAGE}")


STAGE = Stage(verb="report", recipe=ReportRecipe, inputs=inputs, run=run, neutral=("summary",))
