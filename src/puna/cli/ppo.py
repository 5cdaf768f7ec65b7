"""`puna ppo`: align a model to rewards by sampling."""

from puna.cli.stage_verb import stage_command

HELP = """Align a model to rewards by sampling: PPO, GRPO, RLOO.

The model answers, a verifier or a reward model judges, and answers that are better than expected become likelier.
Choose the method with policy.method.
"""

command = stage_command(
    "ppo",
    HELP,
    "puna ppo demo/ppo",
    "puna ppo demo/ppo policy.method=grpo out=runs/mine/grpo",
    "puna ppo demo/ppo --dry-run",
)
