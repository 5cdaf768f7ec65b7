"""`puna round`: rounds of preferences, reward model, rejection sampling, SFT, DPO, PPO, averaging and gates."""

import click

from puna.cli.stage_verb import HELP, examples, recipe_arguments, run_options
from puna.cli.threads import choose_waiting


@click.command(
    "round",
    context_settings=HELP,
    epilog=examples(
        "puna round round/two",
        "puna round round/two --dry-run",
        "puna round round/people rounds=3",
        "puna round my-rounds.toml",
    ),
)
@recipe_arguments
@run_options
def command(recipe: str, overrides: tuple[str, ...], dry_run: bool, accept_drift: bool, fresh: bool) -> None:
    """Run rounds of post-training: from preferences to the next model.

    Each round: prompts, answers of several models, labels, checks of the labels, reward model, its check, rejection
    sampling, SFT, DPO and PPO, averaging, scores, and a gate that keeps the old model when the new one may be worse.
    Every step is a stage with its own run folder, so the same command goes on after an interruption. With people as
    annotators it stops (exit code 75) and says what to type until their labels are there. report.html and summary.json
    in the output folder show all rounds. Exit code 4: the last round was refused.
    """
    from puna.stages import recipes
    from puna.stages.rounds.run import run_rounds

    choose_waiting()
    path = recipes.find_recipe(recipe)
    run_rounds(path, overrides, accept_drift=accept_drift, fresh=fresh, dry_run=dry_run)
