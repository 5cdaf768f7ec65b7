"""`puna sft`: fine-tune a model on dialogs."""

from puna.cli.stage_verb import stage_command

HELP = """Fine-tune a model on dialogs.

Only the assistant's words, and the token that ends its turn, are trained. Reads OpenAI messages, ShareGPT and Alpaca
rows.
"""

command = stage_command(
    "sft",
    HELP,
    "puna sft demo/sft",
    "puna sft demo/sft out=runs/mine/sft --dry-run",
)
