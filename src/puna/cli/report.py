"""`puna report`: write the report page of a run."""

from puna.cli.stage_verb import stage_command

HELP = """Write the report page of a run.

One self-contained HTML file: data funnel, tokenizer, loss curves, scores with intervals, sample answers, throughput,
lineage.
"""

command = stage_command(
    "report",
    HELP,
    "puna report demo/report",
    "puna report demo/report --dry-run",
)
