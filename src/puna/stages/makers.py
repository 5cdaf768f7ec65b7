"""Which command makes which folder: what a message names when an input is missing.

Known are the recipes beside the one at hand, those of this package, and the pipelines among both. A folder that a
pipeline elsewhere makes is made by the whole pipeline (`puna run demo/run`), since its inputs are missing as well; one
that a pipeline beside the recipe makes, by its own step.
"""

import tomllib
from pathlib import Path
from typing import Any

from puna.core.errors import ConfigError, MissingError, UsageError
from puna.stages import pipeline, showing
from puna.stages.recipes import as_typed, packaged_recipes


def makers_near(recipe: Path) -> dict[Path, str]:
    """The command that makes each folder, for a stage that is run by its own verb.

    Args:
        recipe: The stage's recipe; what lies beside it goes before what lies elsewhere.
    """
    home = recipe.parent.resolve()
    makers: dict[Path, str] = {}
    elsewhere = [path for path in sorted(packaged_recipes().rglob("*.toml")) if path.parent.resolve() != home]
    beside = sorted(recipe.parent.glob("*.toml"))
    for path in [*elsewhere, *beside]:
        makers |= _single(path)
    for path in elsewhere:
        makers |= _whole_pipeline(path)
    for path in beside:
        makers |= _steps(path)
    return makers


def _single(path: Path) -> dict[Path, str]:
    values = _raw(path)
    try:
        verb = None if "steps" in values else showing.verb_of(path)
    except UsageError:
        return {}
    out = values.get("out")
    return {Path(out): f"puna {verb} {as_typed(path)}"} if verb and isinstance(out, str) else {}


def _whole_pipeline(path: Path) -> dict[Path, str]:
    steps = _raw(path).get("steps")
    named = [step.get("recipe") for step in steps if isinstance(step, dict)] if isinstance(steps, list) else []
    outs = [_raw(path.parent / name).get("out") for name in named if isinstance(name, str)]
    return {Path(out): f"puna run {as_typed(path)}" for out in outs if isinstance(out, str)}


def _steps(path: Path) -> dict[Path, str]:
    if "steps" not in _raw(path):
        return {}
    try:
        _, planned = pipeline.plan_pipeline(path)
    except (ConfigError, MissingError):
        return {}
    return {step.out: step.command for step in planned}


def _raw(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError):
        return {}  # whoever runs it is told what is wrong with it
