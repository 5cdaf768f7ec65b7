"""`puna recipes`: list, copy, print and check recipes."""

import shlex
from pathlib import Path

import click

from puna.cli.stage_verb import HELP, examples


@click.group("recipes", context_settings=HELP, epilog=examples("puna recipes ls", "puna recipes validate demo"))
def command() -> None:
    """List, copy, print and check recipes.

    Recipes come with the package. Every verb that takes a recipe takes the name of one, too; a file of that name in the
    working directory goes before it.
    """


@command.command("ls", context_settings=HELP, epilog=examples("puna recipes ls", "puna recipes ls sft"))
@click.argument("what", required=False)
def ls(what: str | None) -> None:
    """List the recipes that come with puna, by verb; WHAT keeps those whose name or verb holds it."""
    from puna.core import console
    from puna.core.errors import MissingError
    from puna.stages import showing

    rows = showing.list_recipes()
    found = [row for row in rows if what is None or what in row[0] or what == row[1]]
    if not found:
        raise MissingError(f"no recipe holds {what!r} in its name or verb. Type: puna recipes ls")
    console.table("", ["verb", "name", "what"], [(verb, name, about) for name, verb, about in found])


@command.command("cat", context_settings=HELP, epilog=examples("puna recipes cat demo/sft"))
@click.argument("name")
def cat(name: str) -> None:
    """Print a recipe as it stands in its file, with its header."""
    from puna.core import config, console
    from puna.stages import recipes

    console.write(config.read_text(recipes.find_recipe(name)))


@command.command(
    "cp",
    context_settings=HELP,
    epilog=examples("puna recipes cp demo/sft my-sft.toml", "puna recipes cp demo/sft mine/"),
)
@click.argument("name")
@click.argument("destination", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Overwrite a file that is there.")
def cp(name: str, destination: Path, force: bool) -> None:
    """Copy a recipe to change it; DESTINATION is a file, or a folder (that exists, or ends with /).

    A copied pipeline names the recipes of its steps as they come with puna; copy those that you want to change, too.
    """
    from puna.core import console
    from puna.stages import recipes

    written = recipes.copy_recipe(name, destination, force=force)
    console.say(f"{written} is written. Look at it with: {shlex.join(['puna', 'show', str(written)])}")


@command.command(
    "validate", context_settings=HELP, epilog=examples("puna recipes validate demo/sft", "puna recipes validate *.toml")
)
@click.argument("names", nargs=-1, required=True)
def validate(names: tuple[str, ...]) -> None:
    """Check recipes without running them: every problem of every file at once.

    A pipeline is checked with the recipes of its steps. Nothing is read but the recipes.
    """
    from puna.core import console
    from puna.core.errors import ConfigError
    from puna.stages import showing

    problems, checked = showing.validate(names)
    if problems:
        raise ConfigError(problems, title=f"{checked} recipe{'s' if checked != 1 else ''} checked")
    console.say(f"{checked} recipe{'s are' if checked != 1 else ' is'} in order")
