"""`puna show`: a recipe as it will be used, field by field."""

import click

from puna.cli.stage_verb import HELP, examples


@click.command(
    "show",
    context_settings=HELP,
    epilog=examples(
        "puna show demo",
        "puna show demo/pretrain",
        "puna show demo/pretrain train.steps=2000",
        "puna show demo/pretrain --toml > mine.toml",
        "puna show --stage 'tokenize train'",
    ),
)
@click.argument("recipe", required=False)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--stage", "verb", metavar="VERB", help="Stage that the recipe is for; needed when it cannot be told.")
@click.option("--toml", "as_toml", is_flag=True, help="Print a complete recipe instead of the list.")
def command(recipe: str | None, overrides: tuple[str, ...], verb: str | None, as_toml: bool) -> None:
    """Print every field of a recipe with value, origin, meaning.

    Without a recipe it lists the recipes that come with puna. The stage is told from the pipelines beside the recipe,
    or from the command in its header.
    """
    from puna.cli.fields import show_fields
    from puna.core import config, console
    from puna.stages import recipes, showing

    if recipe is None and verb is None:
        console.table("recipes that come with puna", ["name", "stage", "what"], showing.list_recipes())
        return
    if recipe is not None and "=" in recipe:
        recipe, overrides = None, (recipe, *overrides)
    if recipe is None and verb is not None and not (overrides or as_toml):
        show_fields(f"defaults of `puna {verb}`", config.describe_defaults(showing.schema_of(verb)))
        return
    path = recipes.find_recipe(recipe) if recipe else None
    shown = showing.resolve(path, overrides, verb)
    if as_toml:
        console.write(f"# puna {shown.verb} RECIPE\n{config.to_toml(shown.resolved.config)}")
        return
    show_fields(f"{recipe or 'defaults'}: recipe of `puna {shown.verb}`", config.describe(shown.resolved))
