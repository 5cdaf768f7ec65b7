"""`puna local-crawl`: the documentation on this machine as a small web archive, so that curation can begin at a WARC.

Every installed package's readme, documents and docstrings become HTML pages with a menu around them, and HTML files
that packages bring along are taken as they are. No network: this is what the demo has instead of a crawl.
"""

import sysconfig
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from pydantic import Field

from puna.core import console
from puna.core.files import is_sealed, seal
from puna.core.run_folder import RunFolder
from puna.data.sources import read_task, tasks_of
from puna.data.sources.python_packages import PythonPackagesConfig
from puna.data.warc_writer import Page, write_warc
from puna.stages.stage import PlanRow, Stage, StageRecipe

_DATE = "2024-04-18T00:00:00Z"  # of every record: the pages have no date, and equal pages shall make equal files


class LocalCrawlRecipe(StageRecipe):
    """What of this machine's documentation is archived."""

    max_package_bytes: int = Field(default=2 << 20, ge=1)
    """No more text than this from one package."""
    max_file_bytes: int = Field(default=1 << 20, ge=1)
    """Larger HTML files are left out."""
    pages_per_file: int = Field(default=1000, ge=1)
    """Pages of one WARC file."""


def as_html(title: str, text: str) -> str:
    """A text as a page with a menu, indented passages as code."""
    parts = []
    for block in text.split("\n\n"):
        if not block.strip():
            continue
        code = all(line.startswith("    ") for line in block.splitlines() if line.strip())
        parts.append(f"<pre><code>{escape(block)}</code></pre>" if code else f"<p>{escape(block.strip())}</p>")
    menu = '<nav><ul><li><a href="/">Home</a></li><li><a href="/search">Search</a></li></ul></nav>'
    body = "\n".join(parts)
    head = f'<head><meta charset="utf-8"><title>{escape(title)}</title></head>'
    main = f"<main><article>\n{body}\n</article></main>"
    return f"<!DOCTYPE html>\n<html>{head}<body>{menu}{main}<footer>Documentation</footer></body></html>\n"


def _pages(recipe: LocalCrawlRecipe) -> Iterator[Page]:
    config = PythonPackagesConfig(name="packages", max_package_bytes=recipe.max_package_bytes)
    for task in tasks_of(config):
        for document in read_task(config, task, lambda problem: None):
            yield Page(document.url, as_html(document.url.rpartition("/")[2], document.text), document.licence)
    root = Path(sysconfig.get_path("purelib"))
    for path in sorted(root.rglob("*.html")):
        if path.is_file() and path.stat().st_size <= recipe.max_file_bytes:
            name = path.relative_to(root).as_posix()
            yield Page(f"https://localhost/packages/{name}", path.read_bytes().decode("utf-8", "replace"))


def plan(recipe: LocalCrawlRecipe) -> Sequence[PlanRow]:
    """What there is to archive."""
    config = PythonPackagesConfig(name="packages", max_package_bytes=recipe.max_package_bytes)
    n_bytes = sum(task.n_bytes for task in tasks_of(config))
    return [("documentation, at most", console.short_bytes(n_bytes))]


def run(recipe: LocalCrawlRecipe, folder: RunFolder) -> None:
    """Write the archive."""
    pages = list(_pages(recipe))
    for number, at in enumerate(range(0, len(pages), recipe.pages_per_file)):
        path = folder.path / f"local-{number:05d}.warc.gz"
        write_warc(path, pages[at : at + recipe.pages_per_file], date=_DATE)
    if not is_sealed(folder.path):
        seal(folder.path, kind="crawl")
    console.say(f"crawl {folder.path}: {len(pages)} pages")


STAGE = Stage(verb="local-crawl", recipe=LocalCrawlRecipe, plan=plan, run=run)
