"""`puna data`: looking into a corpus."""

import click

from puna.cli import data_clusters
from puna.cli.stage_verb import HELP, examples


@click.group("data", context_settings=HELP, epilog=examples("puna data clusters runs/mine/corpus"))
def command() -> None:
    """Look into a corpus that `puna curate` made."""


command.add_command(data_clusters.command)
