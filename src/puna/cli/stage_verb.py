"""The form that all stage verbs share: `puna VERB RECIPE key=value ... --dry-run --accept-drift --fresh`."""

import functools
import shlex
from collections.abc import Callable
from typing import Any

import click

from puna.cli.threads import choose_waiting

HELP = {"help_option_names": ["-h", "--help"]}


def examples(*lines: str) -> str:
    """The end of a help page: commands that can be typed."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


def recipe_arguments(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add RECIPE and the overrides to a verb."""
    function = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")(function)
    return click.argument("recipe")(function)


def run_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of every long verb, which can be stopped from its first moment on."""

    @functools.wraps(function)
    def verb(*args: Any, **kwargs: Any) -> Any:
        from puna.core.interrupt import stoppable

        with stoppable():
            return function(*args, **kwargs)

    command = click.option("--fresh", is_flag=True, help="Move what is there aside and begin again.")(verb)
    command = click.option(
        "--accept-drift", is_flag=True, help="Go on although settings or inputs changed since the recorded run."
    )(command)
    return click.option("--dry-run", is_flag=True, help="Say what would be done, what it costs, and do nothing.")(
        command
    )


def stage_command(verb: str, help_text: str, *example_lines: str) -> click.Command:
    """The command of one stage.

    Args:
        verb: Key of the stage, as in `stages.stage.STAGES`; its last word is the command's name.
        help_text: The help page without its examples.
        example_lines: Commands for the end of the help page.
    """

    @click.command(verb.split()[-1], help=help_text, epilog=examples(*example_lines), context_settings=HELP)
    @recipe_arguments
    @run_options
    def command(recipe: str, overrides: tuple[str, ...], dry_run: bool, accept_drift: bool, fresh: bool) -> None:
        from puna.core import config
        from puna.stages import makers, recipes, stage

        opening = choose_waiting()
        path = recipes.find_recipe(recipe)
        chosen = stage.find_stage(verb)
        resolved = config.load(chosen.recipe, path, overrides)
        stage.execute(
            chosen,
            resolved,
            command=shlex.join(["puna", *verb.split(), recipes.as_typed(path), *overrides]),
            makers=makers.makers_near(path),
            accept_drift=accept_drift,
            fresh=fresh,
            dry_run=dry_run,
            opening=opening,
        )

    return command
