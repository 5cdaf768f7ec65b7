"""`puna round`: rounds of stages, each under its own lineage, so that the whole can be killed anywhere and goes on.

    prompts -> answers of several models -> people, a judge or simulated people compare them -> labels are checked ->
    reward model -> is it good enough? -> rejection sampling -> SFT -> DPO, PPO -> average -> scores -> is it not worse?

Two gates decide. A reward model that fails its check ends the round; a new model that may be worse than the one before
does not take its place. A round that is refused ends with the old model, says why, and the next round begins with it,
with more preferences than before. Nothing is kept but what the stages write: which steps are done is read from their
folders, and `decision.json` of a round from its scores.
"""

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.core import config, console, files
from puna.core.config import Resolved
from puna.core.errors import GateError, Stopped, UsageError
from puna.evaluate.report import Results
from puna.evaluate.run import RESULTS, read_samples
from puna.post.round_gate import Decision, decide
from puna.stages import pipeline
from puna.stages.makers import makers_near
from puna.stages.page import rounds as page
from puna.stages.recipes import as_typed, find_recipe
from puna.stages.reward import FIGURES
from puna.stages.rounds.check import check_steps
from puna.stages.rounds.figures import DECISION, SUMMARY, collect
from puna.stages.rounds.recipe import RoundRecipe
from puna.stages.rounds.steps import Round, RoundStep
from puna.stages.stage import execute, find_stage

PAGE = "report.html"
PAIRS = "preferences.jsonl"


@dataclass
class _Flags:
    accept_drift: bool
    fresh: bool
    dry_run: bool


@dataclass
class _State:
    """What is known while the rounds run: the models so far, and the scores of the newest."""

    models: list[Path]
    scores: Path
    done: list[RoundStep]


def run_rounds(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    accept_drift: bool = False,
    fresh: bool = False,
    dry_run: bool = False,
) -> None:
    """Run the rounds of a recipe to their end, or as far as people have labelled.

    Args:
        path: The recipe.
        overrides: `key=value` strings.
        accept_drift: Go on although settings or inputs of steps changed.
        fresh: Move the outputs of all steps aside and begin again; people's labels stay.
        dry_run: Only look.

    Raises:
        ConfigError: The recipe, or one of its steps, cannot be used; nothing has run then.
        Stopped: People are still to label, or the work was asked to stop; the same command goes on.
        GateError: The last round was refused.
    """
    recipe = config.load(RoundRecipe, path, overrides).config
    command = shlex.join(["puna", "round", as_typed(path), *overrides])
    flags = _Flags(accept_drift, fresh, dry_run)
    makers = makers_near(path)
    if not dry_run:
        check_steps(recipe, path)
    if recipe.before:
        before = _beside(path, recipe.before)
        makers[recipe.start_from] = shlex.join(["puna", "run", as_typed(before)])
        console.command(makers[recipe.start_from])
        pipeline.run_pipeline(before, accept_drift=accept_drift, fresh=fresh, dry_run=dry_run)
        if not dry_run:
            check_steps(recipe, path)  # again, now that the model is there to tell its context
    first = Round(recipe, 1, (recipe.start_from,), promised=dry_run)
    beginning = first.scores("scores", recipe.start_from)
    start = RoundStep("eval", beginning.recipe.model_copy(update={"out": recipe.out / "start" / "scores"}))
    state = _State([recipe.start_from], start.out, [])

    def do(label: str, step: RoundStep) -> None:
        console.say(f"\n{label} {step.out.name}")
        _execute(step, state, makers, flags)
        state.done.append(step)

    decision: Decision | None = None
    try:
        do("start", start)
        for number in range(1, recipe.rounds + 1):
            decision = _round(Round(recipe, number, tuple(state.models), promised=dry_run), state, do)
    except Stopped as stopped:
        raise Stopped(f"{stopped}\n  {command}") from None
    finally:
        if not dry_run and start.out.is_dir():
            write_report(recipe, command)
    if dry_run:
        return
    console.say(f"\nreport:  {recipe.out / PAGE}")
    console.say(f"product: {state.models[-1]}")
    if decision is not None and not decision.accepted:
        told = f"round {recipe.rounds} is refused: {decision.reason}"
        raise GateError(f"{told}. Its product is the model before it, {state.models[-1]}")


def _round(now: Round, state: _State, do: Callable[[str, RoundStep], None]) -> Decision:
    """One round; the new model, if it is accepted, is the state's newest afterwards."""
    label = f"round {now.number}/{now.recipe.rounds}"
    for make in [*now.labelling(), *now.rewarding()]:
        step = make()
        do(label, step)
        if step.out == now.place("check-pairs") and not now.promised and not (step.out / PAIRS).stat().st_size:
            told = f"no exercise got a right and a wrong answer to judge a reward model by: {step.out}"
            return _decided(now, Decision(False, told), state)
    if not now.promised and (refusal := _reward_refused(now)) is not None:
        return _decided(now, refusal, state)
    for make in now.learning():
        do(label, make())
    return _decided(now, _scored(now, state), state)


def _reward_refused(now: Round) -> Decision | None:
    """Why the reward model may not be used."""
    found = files.read_json(now.place("reward-check") / FIGURES)
    failed = "; ".join(f"{c['name']}: {c['reason']}" for c in found["checks"] if not c["passed"])
    return None if found["passed"] else Decision(False, f"the reward model is not good enough: {failed}")


def _scored(now: Round, state: _State) -> Decision:
    """The gate between the old model's scores and the new one's."""
    if now.promised:
        return Decision(True, "assumed by the dry run")
    scores = now.place("scores")
    results = Results.from_json(files.read_json(scores / RESULTS))
    metrics = {task.name: task.primary.removesuffix("_macro") for task in results.tasks}
    unknown = set(now.recipe.gate.tasks) - metrics.keys()
    if unknown or not metrics:
        raise UsageError(f"gate.tasks names {sorted(unknown)}; tasks that could be asked are {sorted(metrics)}")
    return decide(read_samples(state.scores), read_samples(scores), metrics, now.recipe.gate)


def _decided(now: Round, decision: Decision, state: _State) -> Decision:
    if decision.accepted:
        state.models.append(now.product)
        state.scores = now.place("scores")
    if not now.promised:
        model = Path(os.path.relpath(state.models[-1], now.recipe.out)).as_posix()
        files.write_json(now.recipe.out / f"round-{now.number}" / DECISION, decision.as_json() | {"model": model})
        verdict = "accepted" if decision.accepted else "REFUSED, the old model stays"
        console.say(f"\nround {now.number} {verdict}: {decision.reason}")
        console.say(f"round {now.number} ends with {state.models[-1]}")
    return decision


def _execute(step: RoundStep, state: _State, makers: dict[Path, str], flags: _Flags) -> None:
    command = shlex.join(["puna", *step.verb.split(), (step.out / "config.toml").as_posix()])
    console.command(command)
    resolved: Resolved[Any] = Resolved(step.recipe, {})
    execute(
        find_stage(step.verb),
        resolved,
        command=command,
        makers=makers | {earlier.out: f"puna {earlier.verb} {earlier.out}/config.toml" for earlier in state.done},
        accept_drift=flags.accept_drift,
        fresh=flags.fresh,
        dry_run=flags.dry_run,
        promised=[earlier.out for earlier in state.done] + ([state.models[0]] if flags.dry_run else []),
    )


def _beside(path: Path, name: str) -> Path:
    beside = path.parent / name
    return beside if beside.is_file() else find_recipe(name)


def write_report(recipe: RoundRecipe, command: str) -> None:
    """Write the page and the figures of all rounds as far as they are."""
    found = collect(recipe)
    files.write_json(recipe.out / SUMMARY, found)
    with files.atomic_open(recipe.out / PAGE) as file:
        file.write(page.document_of(found, recipe, command, config.to_toml(recipe)))
