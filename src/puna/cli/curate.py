"""`puna curate`: turn sources into a clean, deduplicated corpus."""

from puna.cli.stage_verb import stage_command

HELP = """Turn sources into a clean, deduplicated corpus.

Reads the sources that the recipe lists (folders, JSONL, Parquet, WARC, the
Python library, exercises), drops what a filter refuses or was seen before, and counts every reason in the funnel.
"""

command = stage_command(
    "curate",
    HELP,
    "puna curate demo/curate",
    "puna curate demo/curate --dry-run",
    "puna curate my-corpus.toml out=runs/mine/corpus",
)
