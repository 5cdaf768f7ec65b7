"""`puna sample`: sample answers and make preference pairs of them."""

from puna.cli.stage_verb import stage_command

HELP = """Sample answers and make preference pairs of them.

Draws several answers to every prompt, checks them, and pairs a right one with a wrong one.
"""

command = stage_command(
    "sample",
    HELP,
    "puna sample demo/sample",
    "puna sample demo/sample --dry-run",
)
