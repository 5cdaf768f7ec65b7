"""`puna average`: several checkpoints of one shape in, their mean out."""

from puna.cli.stage_verb import stage_command

HELP = """Average the weights of checkpoints.

All must have one shape and one tokenizer. Tensors are streamed, so memory does not grow with the models.
"""

command = stage_command(
    "average",
    HELP,
    "puna average round/average",
    "puna average round/average weights=[0.7,0.3]",
)
