"""`puna train`: pretrain a model on packed shards."""

from puna.cli.stage_verb import stage_command

HELP = """Pretrain a model on packed shards.

Saves checkpoints while it trains; the same command resumes from the last whole one. Ctrl-C saves and ends with exit
code 75.
"""

command = stage_command(
    "train",
    HELP,
    "puna train demo/pretrain",
    "puna train demo/pretrain --dry-run",
    "puna train demo/pretrain train.steps=2000 out=runs/trial",
)
