"""Which stage a recipe is for, so that `puna show RECIPE` needs no second word.

A recipe's settings do not say their verb. It is told, in this order: from `[[steps]]` (a pipeline), from the lineage
record beside it (the `config.toml` of a run folder), from a pipeline in the same folder that names it, and from the
command in the comment at its head, which every recipe of the package has.
"""

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.core import config
from puna.core.config import Config, Resolved
from puna.core.errors import ConfigError, MissingError, UsageError
from puna.lineage.artifact import read_record
from puna.stages.pipeline import PipelineRecipe
from puna.stages.recipes import find_recipe, packaged_recipes, recipe_names
from puna.stages.stage import STAGES, find_stage

PIPELINE, ROUNDS = "run", "round"


@dataclass(frozen=True)
class Shown:
    """A recipe with its verb."""

    verb: str
    resolved: Resolved[Any]


def resolve(path: Path | None, overrides: Sequence[str] = (), verb: str | None = None) -> Shown:
    """Read a recipe with the schema of its stage.

    Args:
        path: The recipe, or None for a stage's defaults.
        overrides: `key=value` strings.
        verb: The stage, when the user named it.

    Raises:
        UsageError: The stage cannot be told.
        ConfigError: The recipe is wrong.
    """
    found = verb or (verb_of(path) if path else None)
    if found is None:
        raise UsageError(
            f"cannot tell which stage {path or 'this'} is a recipe of. Begin it with a comment `# puna VERB` "
            f"(or, for `puna show`, --stage VERB), where VERB is one of: {', '.join([PIPELINE, ROUNDS, *STAGES])}"
        )
    return Shown(found, config.load(schema_of(found), path, overrides))


def schema_of(verb: str) -> type[Config]:
    """The recipe class of a verb.

    Raises:
        UsageError: There is no such stage.
    """
    if verb == ROUNDS:
        from puna.stages.rounds.recipe import RoundRecipe

        return RoundRecipe
    return PipelineRecipe if verb == PIPELINE else find_stage(verb).recipe


def verb_of(path: Path) -> str | None:
    """The verb that a recipe is for, or None when nothing tells."""
    text = config.read_text(path)
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"{path}: not valid TOML: {error}"], title=f"{path} cannot be used") from error
    steps = values.get("steps")
    if isinstance(steps, list) and not any(isinstance(step, dict) and "kind" in step for step in steps):
        return PIPELINE
    record = read_record(path.parent) if path.name == "config.toml" else None
    return (record.stage if record else None) or _named_by_pipeline(path) or _named_in_header(text)


def _named_by_pipeline(path: Path) -> str | None:
    for sibling in sorted(path.parent.glob("*.toml")):
        try:
            steps = tomllib.loads(sibling.read_text(encoding="utf-8")).get("steps")
        except (tomllib.TOMLDecodeError, UnicodeDecodeError):
            continue
        for step in steps if isinstance(steps, list) else []:
            if isinstance(step, dict) and step.get("recipe") == path.name and step.get("verb") in STAGES:
                return step["verb"]
    return None


def _named_in_header(text: str) -> str | None:
    header = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    verbs = "|".join(re.escape(verb) for verb in sorted([*STAGES, ROUNDS], key=len, reverse=True))
    match = re.search(rf"\bpuna ({verbs})\b", header)
    return match.group(1) if match else None


def validate(names: Sequence[str]) -> tuple[list[str], int]:
    """Check recipes, and with a pipeline those of its steps.

    Args:
        names: Paths or names.

    Returns:
        Every problem, and how many files were looked at.
    """
    problems, seen = list[str](), dict[Path, None]()
    for name in names:
        try:
            _check(find_recipe(name), problems, seen)
        except MissingError as error:
            problems.append(str(error))
    return problems, len(seen)


def _check(path: Path, problems: list[str], seen: dict[Path, None], verb: str | None = None) -> None:
    if path.resolve() in seen:
        return
    seen[path.resolve()] = None
    try:
        shown = resolve(path, verb=verb)
    except ConfigError as error:
        problems += error.problems
        return
    except UsageError as error:
        problems.append(f"{path}: {error}")
        return
    if isinstance(shown.resolved.config, PipelineRecipe):
        for step in shown.resolved.config.steps:
            beside = path.parent / step.recipe
            try:
                _check(beside if beside.is_file() else find_recipe(step.recipe), problems, seen, step.verb)
            except MissingError as error:
                problems.append(f"{path}: {error}")


def list_recipes() -> list[tuple[str, str, str]]:
    """Name, stage and first header line of every recipe that comes with puna, by stage and name."""
    rows = []
    for name in recipe_names():
        path = packaged_recipes() / f"{name}.toml"
        if not path.is_file():
            continue  # the short name of a pipeline, listed under its long one
        verb = verb_of(path) or ""
        first = path.read_text(encoding="utf-8").lstrip().splitlines()[0].removeprefix("#").strip()
        rows.append((name.removesuffix("/run"), verb, first.removeprefix(f"puna {verb}: ")))
    order = [PIPELINE, *STAGES]
    return sorted(rows, key=lambda row: (order.index(row[1]) if row[1] in order else len(order), row[0]))
