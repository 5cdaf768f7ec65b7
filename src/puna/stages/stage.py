"""The contract of a stage, and how one is executed through lineage.

A stage is one module in this folder that ends with

    STAGE = Stage(verb="train", recipe=PretrainRecipe, inputs=inputs, plan=plan, run=run)

The recipe class derives from `StageRecipe`. `run(recipe, folder)` does the work and leaves its product in the folder;
called again on an unfinished folder it goes on from there. Whether it is called at all, and what is recorded, is
lineage's business: no stage looks at `lineage.json`.

What decides the output is the recipe without the paths of its inputs (their content counts instead), without `out`, and
without the fields that a stage declares `neutral` (threads, log intervals).
"""

import contextlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import field_validator

from puna.core import config, console
from puna.core.config import Config, Resolved
from puna.core.errors import MissingError, UsageError
from puna.core.nearest import hint
from puna.core.run_folder import RunFolder
from puna.lineage import runner
from puna.lineage.runner import Outcome
from puna.lineage.step import DriftError, Step

STAGES = {
    "local-crawl": "puna.stages.local_crawl",
    "curate": "puna.stages.curate",
    "tokenize train": "puna.stages.tokenizer",
    "tokenize pack": "puna.stages.pack",
    "train": "puna.stages.pretrain",
    "sft": "puna.stages.sft",
    "sample": "puna.stages.sample",
    "rm": "puna.stages.reward",
    "rm check": "puna.stages.reward_check",
    "dpo": "puna.stages.dpo",
    "ppo": "puna.stages.ppo",
    "annotate items": "puna.stages.annotate_items",
    "annotate label": "puna.stages.annotate_label",
    "annotate qa": "puna.stages.annotate_qa",
    "average": "puna.stages.average",
    "eval": "puna.stages.evaluate",
    "quality label": "puna.stages.quality_label",
    "quality train": "puna.stages.quality_train",
    "quality apply": "puna.stages.quality_apply",
    "report": "puna.stages.report",
}
"""Where the stage of each verb lives; its module is imported when the verb is known."""

_USUAL = {
    "corpus": "puna curate RECIPE",
    "tokenizer": "puna tokenize train RECIPE",
    "shards": "puna tokenize pack RECIPE",
    "model": "puna train RECIPE",
    "models": "puna train RECIPE",
    "start_from": "puna train RECIPE",
    "reference": "puna sft RECIPE",
    "reward_model": "puna rm RECIPE",
}
"""By the field that names an input: what makes such a thing, where no recipe is known to make this one."""

PlanRow = tuple[str, str]
"""What, and how much: `("parameters", "1.55 M")`."""


class StageRecipe(Config):
    """The fields that every stage's recipe has."""

    name: str = ""
    """Name of this step, chosen by its author; empty takes the verb."""
    version: int = 1
    """Raise it when the same settings shall be made anew."""
    out: Path
    """Run folder that receives the product."""

    @field_validator("out")
    @classmethod
    def _out_is_a_folder_of_its_own(cls, value: Path) -> Path:
        if value == Path():
            raise ValueError("it must name a folder of its own, for example runs/mine")
        return value


R = TypeVar("R", bound=StageRecipe)


def _no_inputs(recipe: Any) -> Mapping[str, Path]:
    return {}


def _no_plan(recipe: Any) -> Sequence[PlanRow]:
    return ()


@dataclass(frozen=True)
class Stage(Generic[R]):
    """One stage.

    Attributes:
        verb: What the user types: `train`, `tokenize pack`.
        recipe: The recipe class.
        run: The work: `(recipe, folder) -> None`. Imports heavy rooms in its body.
        inputs: Paths that the recipe reads, by dotted config key: `{"shards.0.path": Path(...)}`.
        plan: Rows for `--dry-run`: sizes, FLOPs, memory, disk, time. It may raise MissingError when it needs an input
            that is not there yet.
        neutral: Dotted config keys that change how the work is done, not what comes out.
        on_many: Whether torchrun may start it on several processes.
    """

    verb: str
    recipe: type[R]
    run: Callable[[R, RunFolder], None]
    inputs: Callable[[R], Mapping[str, Path]] = _no_inputs
    plan: Callable[[R], Sequence[PlanRow]] = _no_plan
    neutral: tuple[str, ...] = ()
    on_many: bool = False


def find_stage(verb: str) -> Stage[Any]:
    """Import the stage of a verb.

    Raises:
        UsageError: There is no such verb.
    """
    if verb not in STAGES:
        raise UsageError(f"there is no stage {verb!r}. {hint(verb, STAGES)}")
    return importlib.import_module(STAGES[verb]).STAGE


def identity(stage: Stage[R], recipe: R) -> dict[str, Any]:
    """The settings that decide the output, in JSON types."""
    values = config.as_dict(recipe)
    for key in ("name", "version", "out", *stage.neutral, *stage.inputs(recipe)):
        _remove(values, key.split("."))
    return values


def _remove(node: Any, keys: Sequence[str]) -> None:
    *parents, last = keys
    for key in parents:
        if isinstance(node, list) and key.isdigit() and int(key) < len(node):
            node = node[int(key)]
        elif isinstance(node, dict):
            node = node.get(key)
    if isinstance(node, dict):
        node.pop(last, None)
    elif isinstance(node, list) and last.isdigit() and int(last) < len(node):
        node[int(last)] = None


def make_step(stage: Stage[R], resolved: Resolved[R], *, command: str = "", makers: Mapping[Path, str] = {}) -> Step:
    """The lineage step of a stage with a recipe.

    Args:
        stage: The stage.
        resolved: Its checked recipe.
        command: What the user types to run it.
        makers: For output folders of other steps, the command that makes them.
    """
    recipe = resolved.config
    inputs = {name: Path(path) for name, path in stage.inputs(recipe).items()}

    def work(folder: RunFolder) -> None:
        folder.write_config(config.to_toml(recipe))
        stage.run(recipe, folder)

    return Step(
        stage=stage.verb,
        name=recipe.name or stage.verb,
        version=recipe.version,
        config=identity(stage, recipe),
        inputs=inputs,
        output=recipe.out,
        run=work,
        command=command,
        makers={name: made for name, path in inputs.items() if (made := _maker(path, makers))},
        usual={name: verb for name in inputs if (verb := _USUAL.get(_setting(name)))},
    )


def _setting(name: str) -> str:
    """The field of an input's key: `shards` of `data.shards.0`."""
    return next(part for part in reversed(name.split(".")) if not part.isdigit())


def _maker(path: Path, makers: Mapping[Path, str]) -> str | None:
    normal = path.resolve()
    known = {folder.resolve(): made for folder, made in makers.items()}
    return next((known[folder] for folder in (normal, *normal.parents) if folder in known), None)


def execute(
    stage: Stage[R],
    resolved: Resolved[R],
    *,
    command: str = "",
    makers: Mapping[Path, str] = {},
    accept_drift: bool = False,
    fresh: bool = False,
    dry_run: bool = False,
    promised: Sequence[Path] = (),
    opening: str = "",
) -> Outcome | None:
    """Bring a stage to its end, or say what would be done.

    Args:
        stage: The stage.
        resolved: Its checked recipe.
        command: What the user types to run it.
        makers: For output folders of other steps, the command that makes them.
        accept_drift: Go on although settings or inputs changed.
        fresh: Move what is there aside and begin again.
        dry_run: Only look.
        promised: For a dry run: folders that an earlier step of the same pipeline will have made.
        opening: What the run's log begins with, where there is work.

    Returns:
        What was done; None for a dry run.
    """
    step = make_step(stage, resolved, command=command, makers=makers)
    if opening:
        step = replace(step, run=partial(_note_first, opening, step.run))
    if not dry_run and console.processes() > 1:
        return _execute_on_many(stage, resolved, step, accept_drift=accept_drift, fresh=fresh)
    if not dry_run:
        return runner.execute(step, accept_drift=accept_drift, fresh=fresh)
    if console.rank():
        return None
    _check_device(resolved.config)
    _show_plan(stage, resolved, step, promised, accept_drift=accept_drift, fresh=fresh)
    return None


def _note_first(text: str, work: Callable[[RunFolder], None], folder: RunFolder) -> None:
    console.note(text)
    work(folder)


def _execute_on_many(
    stage: Stage[R], resolved: Resolved[R], step: Step, *, accept_drift: bool, fresh: bool
) -> Outcome | None:
    """One process of several. The first one keeps lineage and says whether there is work; the others only work."""
    if not stage.on_many:
        raise UsageError(f"`puna {stage.verb}` runs on one process, {console.processes()} were started. Omit torchrun.")
    from puna.train import parallel

    parallel.join()
    try:
        if console.rank():
            if parallel.word_of_the_first("") == "work":
                stage.run(resolved.config, RunFolder(resolved.config.out))
            return None
        told = False

        def work(folder: RunFolder) -> None:
            nonlocal told
            told = True
            parallel.word_of_the_first("work")
            step.run(folder)

        try:
            return runner.execute(replace(step, run=work), accept_drift=accept_drift, fresh=fresh)
        finally:
            if not told:
                parallel.word_of_the_first("nothing")
    finally:
        parallel.leave()


def check_settings(stage: Stage[R], recipe: R) -> None:
    """Find what a dry run would find wrong with a recipe, and say nothing. Files that are not there yet are no matter.

    Raises:
        UsageError: It cannot be run.
    """
    _check_device(recipe)
    with contextlib.suppress(MissingError):
        stage.plan(recipe)


def _check_device(recipe: StageRecipe) -> None:
    """Refuse a device that is asked for and not here, before an input is missed or a plan is shown.

    Raises:
        UsageError: It is not here.
    """
    train = getattr(recipe, "train", None)
    if train is not None and train.device != "auto":
        from puna.train.machine import choose_machine

        choose_machine(train.device)


def _show_plan(
    stage: Stage[R], resolved: Resolved[R], step: Step, promised: Sequence[Path], *, accept_drift: bool, fresh: bool
) -> None:
    rows: list[PlanRow] = [("output", str(step.output))]
    rows += [(f"input {name}", str(path)) for name, path in step.inputs.items()]
    missing: MissingError | None = None
    situation = None
    waits = [str(path) for path in step.inputs.values() if _maker(path, dict.fromkeys(promised, "")) is not None]
    try:
        situation = runner.inspect(step)
        verbs = {"run": "would run", "resume": "would resume", "skip": "is finished, nothing to do"}
        if situation.record and situation.record.refused:
            verbs["resume"] = "ended with a no, would ask again"
        rows.append(("state", "would begin again" if fresh else verbs[situation.action]))
    except MissingError as error:
        if not waits:
            missing = error
        rows.append(("state", f"would run after {', '.join(waits)}" if waits else "an input is missing"))
    try:
        rows += stage.plan(resolved.config)
    except MissingError as error:
        rows.append(("estimate", f"not yet: {error}"))
        if not waits and missing is None:
            missing = error
            rows = [(what, "an input is missing" if what == "state" else value) for what, value in rows]
    console.table("", ["what", "value"], rows)
    if missing:
        raise missing
    if situation and situation.differences and not (accept_drift or fresh):
        raise DriftError(step.output, situation.differences, finished=situation.action == "skip")
