"""`puna mix`: what a pretraining recipe reads of each source, and how often."""

import click

from puna.cli.stage_verb import HELP, examples, recipe_arguments


@click.command(
    "mix",
    context_settings=HELP,
    epilog=examples("puna mix demo/pretrain", "puna mix demo/pretrain train.steps=10000"),
)
@recipe_arguments
def command(recipe: str, overrides: tuple[str, ...]) -> None:
    """Show the data mix of a pretraining recipe and what it costs.

    For each source its size, its share in each phase, the tokens that the run reads of it and how often that repeats
    it. Nothing is trained.
    """
    from puna.core import config
    from puna.stages import mix, recipes, stage

    chosen = stage.find_stage("train")
    mix.show(config.load(chosen.recipe, recipes.find_recipe(recipe), overrides).config)
