"""What a dry run would find wrong with any step of a round, told before the first step runs.

Asked are the steps of the first round that is not decided: later rounds differ from it in their seeds and in what they
read. A model that an earlier step will make has the context of the one that it begins with, so that one stands for it.
A problem is told with the recipe's own key: the `data.rows` of the step `sft` is its `sft.data.rows`.
"""

import re
from pathlib import Path
from typing import Any

from puna.core.config import Config
from puna.core.errors import ConfigError, MissingError, UsageError
from puna.lineage.artifact import read_record
from puna.stages.rounds.figures import DECISION
from puna.stages.rounds.recipe import RoundRecipe
from puna.stages.rounds.steps import Round, RoundStep
from puna.stages.stage import check_settings, find_stage


def check_steps(recipe: RoundRecipe, path: Path) -> None:
    """Check every step that is still to run.

    Args:
        recipe: Of all rounds.
        path: Where it was read.

    Raises:
        ConfigError: Settings of steps cannot be used; all of them together.
        MissingError: Files that no step makes are not there.
    """
    numbers = range(1, recipe.rounds + 1)
    number = next((n for n in numbers if not (recipe.out / f"round-{n}" / DECISION).is_file()), None)
    if number is None:
        return
    products = [Round(recipe, n, (recipe.start_from,), promised=True).product for n in range(1, number)]
    now = Round(recipe, number, (recipe.start_from, *products), promised=True)
    problems, missing = dict[str, None](), dict[str, None]()
    for make in [*now.labelling(), *now.rewarding(), *now.learning()]:
        step = make()
        record = read_record(step.out) if step.out.is_dir() else None
        if record is not None and record.status == "finished":
            continue
        missing |= dict.fromkeys(_missing(step, recipe))
        try:
            check_settings(find_stage(step.verb), _with_a_start(step, recipe))
        except ConfigError as error:
            problems |= dict.fromkeys(f"{path}: round {number}: {_in_full(text, step)}" for text in error.problems)
        except UsageError as error:
            problems[f"{path}: round {number}: {_in_full(str(error), step)}"] = None
    if problems:
        raise ConfigError([*problems, *missing], title=f"{path} cannot be run")
    if missing:
        raise MissingError("\n".join(f"{path}: round {number}: {text}" for text in missing))


def _missing(step: RoundStep, recipe: RoundRecipe) -> list[str]:
    """Inputs that are not there and that neither a step nor the pipeline before makes."""
    paths = {name: Path(path) for name, path in find_stage(step.verb).inputs(step.recipe).items()}
    return [
        f"{path} is not there, which {step.out.name} reads"
        for path in paths.values()
        if not path.exists() and recipe.out not in path.parents and path != recipe.start_from
    ]


def _with_a_start(step: RoundStep, recipe: RoundRecipe) -> Any:
    start = getattr(step.recipe, "start_from", None)
    if not isinstance(start, Path) or start.exists():
        return step.recipe
    first = recipe.start_from if step.verb == "rm" else recipe.sft.start_from or recipe.start_from
    return step.recipe.model_copy(update={"start_from": first})


def _in_full(text: str, step: RoundStep) -> str:
    """The text with the keys of a step's recipe as those of the round's."""
    table = {"rm": "reward"}.get(step.verb, step.verb)
    if table not in RoundRecipe.model_fields:
        return f"{step.out.name}: {text}"
    for name in type(step.recipe).model_fields:
        part = getattr(step.recipe, name)
        if isinstance(part, Config):
            keys = "|".join(map(re.escape, type(part).model_fields))
            text = re.sub(rf"(?<![\w./-])({re.escape(name)}\.(?:{keys})\b)", rf"{table}.\1", text)
    return text
