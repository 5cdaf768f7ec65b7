"""`puna rm RECIPE` trains a reward model; `puna rm check RECIPE` says whether it is good enough to be used."""

import click

from puna.cli.stage_verb import HELP, examples, stage_command

_train = stage_command(
    "rm",
    """Train a reward model on preferences.

Reads preferences (prompt, chosen, rejected, perhaps edited) and rankings (prompt, ranking). A prompt is computed once
for all its answers.
""",
    "puna rm demo/rm",
    "puna rm demo/rm --dry-run",
    "puna rm check demo/rm-check",
)
_check = stage_command(
    "rm check",
    """Say whether a reward model is good enough to be used.

Accuracy with its interval and by strength, calibration, length bias, a page with plots. Exit code 4 when a check is not
passed.
""",
    "puna rm check demo/rm-check",
    "puna rm check demo/rm-check fail=false",
)


class _RewardVerb(click.Group):
    """`check` is a verb of its own; anything else is the recipe to train."""

    default = _train

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] == "check":
            return "check", _check, args[1:]
        return None, _train, args

    def list_commands(self, ctx: click.Context) -> list[str]:
        return ["check"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return _check if cmd_name == "check" else None


@click.command(
    "rm",
    cls=_RewardVerb,
    context_settings={**HELP, "ignore_unknown_options": True},
    subcommand_metavar="RECIPE [KEY=VALUE]... | check RECIPE [KEY=VALUE]...",
    epilog=examples("puna rm demo/rm", "puna rm demo/rm --dry-run", "puna rm check demo/rm-check"),
)
def command() -> None:
    """Train a reward model on preferences, or check one.

    `puna rm RECIPE` takes --dry-run, --accept-drift and --fresh as every stage does.
    """
