"""`puna eval`: score a model on tasks, with intervals."""

from puna.cli.stage_verb import stage_command

HELP = """Score a model on tasks, with intervals.

Every score comes with its n and its 95 % interval, as JSON and as a table.
"""

command = stage_command(
    "eval",
    HELP,
    "puna eval demo/eval-sft",
    "puna eval demo/eval-sft --dry-run",
)
