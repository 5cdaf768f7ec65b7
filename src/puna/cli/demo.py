"""`puna demo`: `puna run demo`."""

import click

from puna.cli.stage_verb import HELP, examples, run_options
from puna.cli.threads import choose_waiting


@click.command("demo", context_settings=HELP, epilog=examples("puna demo", "puna demo --dry-run", "puna demo --fresh"))
@click.argument("overrides", nargs=-1, metavar="[STEP.KEY=VALUE]...")
@run_options
def command(overrides: tuple[str, ...], dry_run: bool, accept_drift: bool, fresh: bool) -> None:
    """The whole way on this machine: raw text in, a chat out.

    Needs no network and no GPU. The same as `puna run demo`: curate, tokenizer, shards, pretraining, SFT, DPO,
    evaluation, report. Can be stopped at any moment; the same command goes on.
    """
    from puna.stages import pipeline, recipes

    opening = choose_waiting()
    path = recipes.find_recipe("demo/run")
    pipeline.run_pipeline(path, overrides, accept_drift=accept_drift, fresh=fresh, dry_run=dry_run, opening=opening)
