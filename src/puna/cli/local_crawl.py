"""`puna local-crawl`: this machine's documentation as a small web archive."""

from puna.cli.stage_verb import stage_command

HELP = """Write this machine's documentation as a web archive.

Readmes, documents and docstrings of the installed packages become HTML pages; HTML files that they bring are taken as
they are. It is what the demo curates instead of a crawl.
"""

command = stage_command(
    "local-crawl", HELP, "puna local-crawl demo/crawl", "puna local-crawl demo/crawl out=runs/mine/crawl"
)
