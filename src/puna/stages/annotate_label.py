"""`puna annotate label`: items in, labels out: from people, their log, a judge model, or simulated annotators.

Simulated people work through the same collection as real ones, in `work/`; when they are done, what they dispute is
decided by simulated adjudicators. Real people work on the page: with `by = "people"` the stage puts the items into a
collection, stops until the labels are there and goes on (`annotate_people.py`); with `by = "log"` a log comes in.
"""

from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from puna.core import console
from puna.core.errors import UsageError, need
from puna.core.files import read_json
from puna.core.run_folder import RunFolder
from puna.post.preferences.settings import CollectionSettings
from puna.stages.stage import PlanRow, Stage, StageRecipe

LABELS = "labels.jsonl"
_SIMULATED_START = 1_700_000_000  # seconds since 1970; simulated people look at a clock of their own


class LabelRecipe(StageRecipe):
    """Who judges which items."""

    items: Path
    """Folder of `puna annotate items`, or a JSONL file."""
    by: Literal["simulator", "people", "judge", "log"] = "simulator"
    """Simulated people, people on the page, a judge model, or the log of people."""
    log: Path | None = None
    """For `log`: labels from `puna annotate log`."""
    judge: Path | None = None
    """For `judge`: a checkpoint."""
    database: str = ""
    """For `people`: the collection, a file or postgresql://...; it is made when it is not there."""
    collection: CollectionSettings = CollectionSettings(overlap=5, gate_accuracy=0.0)
    """For `simulator` and a new collection of `people`: quotas and rates."""
    adjudicate: int = Field(default=0, ge=0)
    """For `simulator` and `people`: the most disputed items that adjudicators decide."""
    seed: int = 0
    """Seed of the simulated people."""

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> "LabelRecipe":
        wanted = {"log": self.log, "judge": self.judge}
        if self.by in wanted and wanted[self.by] is None:
            raise ValueError(f'by = "{self.by}" needs {self.by} = "..."')
        if self.by == "people" and not self.database:
            raise ValueError('by = "people" needs database = "...", a file or postgresql://...')
        return self


def inputs(recipe: LabelRecipe) -> Mapping[str, Path]:
    """The items, and the log or the judge."""
    named = {"items": recipe.items, "log": recipe.log, "judge": recipe.judge}
    return {key: path for key, path in named.items() if path is not None}


def items_file(path: Path) -> Path:
    """The file of items in a run folder, or the file itself."""
    return path / "items.jsonl" if path.is_dir() else path


def plan(recipe: LabelRecipe) -> Sequence[PlanRow]:
    """How many judgements are wanted."""
    from puna.post.preferences.records import read_items

    n = len(read_items([items_file(recipe.items)]))
    return [("items", f"{n:,}"), ("judged by", recipe.by)]


def run(recipe: LabelRecipe, folder: RunFolder) -> None:
    """Collect the labels.

    Raises:
        Stopped: People have not said everything yet.
    """
    from puna.post.preferences.records import read_items, read_labels, write_rows

    items = read_items([items_file(recipe.items)])
    if recipe.by == "log":
        assert recipe.log is not None
        labels = read_labels([recipe.log], items=items)
    elif recipe.by == "judge":
        assert recipe.judge is not None
        from puna.infer.engine import Engine
        from puna.post.preferences.judge import judge_items

        labels = judge_items(items, Engine.load(recipe.judge))
    elif recipe.by == "people":
        need("sqlalchemy", extra="annotate")
        need("alembic", extra="annotate")
        from puna.stages.annotate_people import collect

        labels = collect(folder, items, recipe.database, recipe.collection, adjudicate=recipe.adjudicate)
    else:
        labels = _simulate(recipe, folder, items)
    write_rows(folder.path / LABELS, labels)
    console.say(f"{len(labels)} labels of {len({label.annotator for label in labels})} annotators")


def _simulate(recipe: LabelRecipe, folder: RunFolder, items: Sequence) -> list:
    need("sqlalchemy", extra="annotate")
    need("alembic", extra="annotate")
    from puna.post.preferences import quality, simulate
    from puna.post.preferences.collection import Collection

    truth = read_json(recipe.items / "truth.json") if recipe.items.is_dir() else {}
    if not truth:
        raise UsageError(f"{recipe.items} has no truth.json: people can be simulated only where the truth is known")
    database = folder.work / "collection.db"
    for old in folder.work.glob("collection.db*"):  # a killed run begins again: simulated people do not mind
        old.unlink()
    ticks = count()  # the same seed gives the same bytes, whenever it is run
    collection = Collection.create(
        database, items, settings=recipe.collection, durable=False, now=lambda: _SIMULATED_START + next(ticks) / 1000
    )
    simulate.run(collection, simulate.MIXED_CROWD, truth, seed=recipe.seed)
    if recipe.adjudicate:
        found = quality.check(items, collection.labels(), quality.QualityConfig(resamples=0))
        collection.set_disputes(dict(list(found.queue.items())[: recipe.adjudicate]))
        expert = simulate.PersonConfig(name="expert", skill=6.0)
        simulate.run(collection, (), truth, seed=recipe.seed, adjudicators=(expert,))
    labels = collection.labels()
    collection.close()
    return labels


STAGE = Stage(verb="annotate label", recipe=LabelRecipe, inputs=inputs, plan=plan, run=run, neutral=("database",))
