"""Several stages in a row, as one resumable job: what `puna run` executes.

A pipeline is a TOML file that lists verbs and recipes:

    out = "runs/demo"
    [[steps]]
    verb = "tokenize train"
    recipe = "tokenizer.toml"       # beside this file, by path, or by name
    set = ["vocab_size=2048"]
    expected_seconds = 20

All recipes are read and checked before any work. Each step then runs in this process under its own lineage, after its
command has been printed as a user would type it, so finished steps are skipped and a killed pipeline goes on where it
was. `summary.json` in `out` holds the working seconds of every step, summed over all sessions; a stage may add other
keys to that file, they are kept.
"""

import shlex
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.core import config, console, files
from puna.core.config import Config, Resolved
from puna.core.errors import ConfigError, MissingError, UsageError
from puna.core.nearest import nearest_file
from puna.lineage.artifact import read_record
from puna.stages.recipes import as_typed, find_recipe
from puna.stages.stage import Stage, execute, find_stage

SUMMARY = "summary.json"


class PipelineStep(Config):
    """One step of a pipeline."""

    verb: str
    """Stage to run: `curate`, `tokenize train`, `tokenize pack`, `train`, `sft`, `sample`, `dpo`, `eval`, `report`."""
    recipe: str
    """Its recipe: a file beside the pipeline's, a path, or a name."""
    name: str = ""
    """Name in the summary and for overrides (`base.steps=20`); empty takes the recipe file's stem."""
    set: tuple[str, ...] = ()
    """Overrides, as on the command line: `key=value`."""
    expected_seconds: float = 0.0
    """Time on the machine that the recipe names, for the estimate of the time left."""


class PipelineRecipe(Config):
    """A pipeline."""

    out: Path
    """Folder of `summary.json`; the steps' recipes name their own folders."""
    steps: tuple[PipelineStep, ...]
    """What to run, in order."""
    closing: tuple[str, ...] = ()
    """Lines said when everything is finished: where the report is, how to chat."""


@dataclass(frozen=True)
class Planned:
    """A step with its recipe read and checked."""

    name: str
    stage: Stage[Any]
    resolved: Resolved[Any]
    command: str
    expected_seconds: float

    @property
    def out(self) -> Path:
        """The step's output folder."""
        return self.resolved.config.out


def run_pipeline(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    accept_drift: bool = False,
    fresh: bool = False,
    dry_run: bool = False,
    makers: Mapping[Path, str] = {},
    opening: str = "",
) -> None:
    """Run a pipeline to its end, or show what would be done.

    Args:
        path: The pipeline's TOML file.
        overrides: `STEP.key=value` for a step's recipe, `key=value` for the pipeline's own fields.
        accept_drift: Go on although settings or inputs of steps changed.
        fresh: Move the outputs of all steps aside and begin again.
        dry_run: Only look.
        makers: For folders that no step makes, the command that does.
        opening: What each step's log begins with.

    Raises:
        ConfigError: Anything wrong in any of the recipes, all of it at once.
    """
    pipeline, planned = plan_pipeline(path, overrides)
    makers = {**makers, **{step.out: step.command for step in planned}}
    for index, step in enumerate(planned):
        _say_header(planned, index, pipeline.out)
        console.command(step.command)
        try:
            execute(
                step.stage,
                step.resolved,
                command=step.command,
                makers=makers,
                accept_drift=accept_drift,
                fresh=fresh,
                dry_run=dry_run,
                promised=[earlier.out for earlier in planned[:index]],
                opening=opening,
            )
        finally:
            if not dry_run:
                write_seconds(pipeline.out, planned)
    if not dry_run:
        console.say(f"all {len(planned)} steps are finished, {console.short_time(_total(planned))} of work")
        for line in pipeline.closing:
            console.say(line)


def plan_pipeline(path: Path, overrides: Sequence[str] = ()) -> tuple[PipelineRecipe, list[Planned]]:
    """Read a pipeline and the recipes of all its steps.

    Raises:
        ConfigError: Every problem of every recipe.
        MissingError: A recipe is not there.
    """
    names = _step_names(path)
    own = [text for text in overrides if text.partition(".")[0] not in names]
    pipeline = config.load(PipelineRecipe, path, own).config
    problems: list[str] = []
    absent: list[str] = []
    planned: list[Planned] = []
    for index, step in enumerate(pipeline.steps):
        name = _name(step.name, step.recipe)
        extra = [text.partition(".")[2] for text in overrides if text.partition(".")[0] == name]
        try:
            planned.append(_plan_step(step, name, path, extra))
        except ConfigError as error:
            problems += error.problems
        except UsageError as error:
            problems.append(f"{path}: steps.{index} {name!r}: {error}")
        except MissingError as error:
            absent.append(f"{path}: steps.{index} {name!r}: {error}")
    twice = sorted({p.name for p in planned if sum(q.name == p.name for q in planned) > 1})
    problems += [f"{path}: two steps are named {name!r}; give each a name of its own" for name in twice]
    if problems:
        raise ConfigError([*problems, *absent], title=f"{path} cannot be run")
    if absent:
        raise MissingError("\n".join(absent))
    return pipeline, planned


def _plan_step(step: PipelineStep, name: str, pipeline: Path, extra: Sequence[str]) -> Planned:
    stage = find_stage(step.verb)
    recipe = _beside(pipeline, step.recipe)
    overrides = [*step.set, *extra]
    resolved = config.load(stage.recipe, recipe, overrides)
    return Planned(name, stage, resolved, _command(step.verb, recipe, overrides), step.expected_seconds)


def _command(verb: str, recipe: Path, overrides: Sequence[str]) -> str:
    return shlex.join(["puna", *verb.split(), as_typed(recipe), *overrides])


def _beside(pipeline: Path, recipe: str) -> Path:
    beside = pipeline.parent / recipe
    if beside.is_file():
        return beside
    try:
        return find_recipe(recipe)
    except MissingError:
        near = nearest_file(recipe, [path.name for path in pipeline.parent.glob("*.toml") if path != pipeline])
        hint = f" Did you mean {near}?" if near else ""
        raise MissingError(f"recipe {recipe} is neither in {pipeline.parent} nor a path or a name.{hint}") from None


def _name(name: str, recipe: str) -> str:
    return name or Path(recipe).stem


def _step_names(path: Path) -> set[str]:
    steps = _raw(path).get("steps", [])
    entries = [s for s in steps if isinstance(s, dict)] if isinstance(steps, list) else []
    return {_name(str(s.get("name", "")), str(s.get("recipe", ""))) for s in entries}


def _raw(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError):
        return {}  # config.load tells what is wrong with it


def _seconds(step: Planned) -> float:
    record = read_record(step.out) if step.out.is_dir() else None
    return record.seconds if record else 0.0


def _total(planned: Sequence[Planned]) -> float:
    return sum(_seconds(step) for step in planned)


def write_seconds(out: Path, planned: Sequence[Planned]) -> None:
    """Write the working seconds of all steps into `summary.json`, keeping its other keys."""
    path = out / SUMMARY
    summary = files.read_json(path) if path.is_file() else {}
    seconds = {step.name: round(_seconds(step), 1) for step in planned}
    files.write_json(path, {**summary, "seconds": {**seconds, "total": round(_total(planned), 1)}})


def _say_header(planned: Sequence[Planned], index: int, out: Path) -> None:
    done = _total(planned)
    left = time_left(
        [step.expected_seconds for step in planned],
        [_seconds(step) for step in planned],
        finished=index,
    )
    eta = f" | eta {console.short_time(left)}" if left is not None else ""
    console.say(f"\nstep {index + 1}/{len(planned)} {planned[index].name} | done {console.short_time(done)}{eta}")


def time_left(expected: Sequence[float], spent: Sequence[float], *, finished: int) -> float | None:
    """Seconds left of a pipeline, from what its finished steps took against what was expected of them.

    Args:
        expected: Expected seconds of each step.
        spent: Seconds that each step worked so far.
        finished: How many steps, from the first, are finished.

    Returns:
        Seconds, or None when nothing is expected of the steps that are left.
    """
    ahead = sum(max(e - s, 0.0) for e, s in zip(expected[finished:], spent[finished:], strict=True))
    if not ahead:
        return None
    was_expected, took = sum(expected[:finished]), sum(spent[:finished])
    pace = took / was_expected if was_expected and took else 1.0
    return ahead * pace
