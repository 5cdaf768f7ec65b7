"""`puna dpo`: align a model to preference pairs."""

from puna.cli.stage_verb import stage_command

HELP = """Align a model to preference pairs.

Direct preference optimization with Llama 3's two additions: a likelihood term for the chosen answer and a mask over
format tokens.
"""

command = stage_command(
    "dpo",
    HELP,
    "puna dpo demo/dpo",
    "puna dpo demo/dpo --dry-run",
)
