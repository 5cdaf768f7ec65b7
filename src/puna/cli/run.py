"""`puna run`: several stages in a row, as one resumable job."""

import click

from puna.cli.stage_verb import HELP, examples, recipe_arguments, run_options
from puna.cli.threads import choose_waiting


@click.command(
    "run",
    context_settings=HELP,
    epilog=examples(
        "puna run demo",
        "puna run demo --dry-run",
        "puna run demo pretrain.train.steps=2000 --accept-drift",
        "puna run my-pipeline.toml",
    ),
)
@recipe_arguments
@run_options
def command(recipe: str, overrides: tuple[str, ...], dry_run: bool, accept_drift: bool, fresh: bool) -> None:
    """Run a pipeline: several stages in a row.

    Prints the command of each stage before it runs. Finished stages are skipped, so the same command goes on after an
    interruption. STEP.key=value overrides a field of one step's recipe.
    """
    from puna.stages import pipeline, recipes
    from puna.stages.makers import makers_near

    opening = choose_waiting()
    path = recipes.find_recipe(recipe)
    flags = {"accept_drift": accept_drift, "fresh": fresh, "dry_run": dry_run}
    pipeline.run_pipeline(path, overrides, **flags, makers=makers_near(path), opening=opening)
